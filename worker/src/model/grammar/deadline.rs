//! Ends steps of grammars that take too long. llguidance bounds most work of a step by itself, but not how many bytes it takes to be
//! forced: `x{1000000}` alone is four seconds and 330 MB.
#![allow(clippy::disallowed_methods, reason = "bounds the work of this machine; no simulation runs grammars")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use llguidance::CancellationHandle;

use super::error::GrammarError;
use super::limits::Times;

/// What no step is doing.
const IDLE: u64 = 0;

/// The thread that watches the steps of all matchers. It lives as long as its matchers or this.
pub struct Deadline {
    shared: Arc<Shared>,
}

struct Shared {
    times: Times,
    start: Instant,
    steps: Mutex<Vec<Weak<Step>>>,
    /// There are steps to watch, or nobody is left who could start one.
    changed: Condvar,
}

/// The steps of one matcher.
pub struct Step {
    shared: Arc<Shared>,
    /// Microseconds after `start` at which the running step began, plus one.
    since: AtomicU64,
    cancel: CancellationHandle,
}

impl Deadline {
    /// Starts to watch.
    pub fn new(times: Times) -> Result<Self, GrammarError> {
        let (steps, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { times, start: Instant::now(), steps, changed });
        let watched = Arc::downgrade(&shared);
        let thread = std::thread::Builder::new().name("grammar-deadline".to_owned());
        let spawned = thread.spawn(move || {
            while let Some(shared) = watched.upgrade() {
                shared.check_once();
            }
        });
        spawned.map_err(|e| GrammarError::Failed(format!("cannot start a thread to watch grammars: {e}")))?;
        Ok(Self { shared })
    }

    /// Watches a matcher, which `cancel` cancels.
    pub fn watch(&self, cancel: CancellationHandle) -> Arc<Step> {
        let step = Arc::new(Step { shared: self.shared.clone(), since: AtomicU64::new(IDLE), cancel });
        self.shared.lock().push(Arc::downgrade(&step));
        self.shared.changed.notify_one();
        step
    }
}

impl Step {
    /// What the matcher may take.
    pub fn times(&self) -> Times {
        self.shared.times
    }

    /// Runs `work`, which ends early and with an error if it takes too long. Returns how long it took, too.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> (T, Duration) {
        let began = self.shared.start.elapsed();
        self.since.store(began.as_micros() as u64 + 1, Ordering::Relaxed);
        let result = work();
        self.since.store(IDLE, Ordering::Relaxed);
        (result, self.shared.start.elapsed().saturating_sub(began))
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Step>>> {
        // Nothing panics while holding it.
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cancels what runs too long, then waits: briefly if there is anything to watch, until there is otherwise.
    fn check_once(&self) {
        let mut steps = self.lock();
        let now = self.start.elapsed();
        steps.retain(|step| {
            let Some(step) = step.upgrade() else { return false };
            let since = step.since.load(Ordering::Relaxed);
            let runs = since != IDLE && now.saturating_sub(Duration::from_micros(since)) > self.times.step;
            if runs {
                step.cancel.cancel();
            }
            !runs
        });
        let wait = if steps.is_empty() { Duration::from_secs(5) } else { self.times.step / 4 };
        drop(self.changed.wait_timeout(steps, wait));
    }
}
