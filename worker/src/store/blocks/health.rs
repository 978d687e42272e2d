//! Whether the store does what it is asked.
//!
//! Invariants: [`LIMIT`] failures in a row are trouble, and the first success is its end; each episode is logged twice,
//! at its first failure and at its end, however many segments it costs; while reads fail, a turn does not wait for the store
//! more often than once every [`RETRY`].

use std::fmt::{Debug, Formatter};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::StoreUrl;

/// Fewer failures in a row than this may be chance.
const LIMIT: u32 = 3;
/// While reads fail, one is tried this often.
const RETRY: Duration = Duration::from_secs(1);

/// Who is told, in a sentence, that there is trouble, or that there is none.
type Listener = Box<dyn Fn(Option<String>) + Send>;

pub(super) struct Health {
    url: StoreUrl,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    reads: Failures,
    writes: Failures,
    listener: Option<Listener>,
}

/// Failures in a row, and the last one's words. A store that is full takes no writes and may well be read, so each kind
/// has its own.
#[derive(Default)]
struct Failures {
    count: u32,
    reason: String,
    tried: Option<Instant>,
}

impl Failures {
    fn is_trouble(&self) -> bool {
        self.count >= LIMIT
    }
}

impl Health {
    pub fn new(url: StoreUrl) -> Self {
        Self { url, state: Mutex::default() }
    }

    /// Tells `listener` how it is now and at every change.
    pub fn listen(&self, listener: Listener) {
        let mut state = self.lock();
        listener(self.trouble(&state));
        state.listener = Some(listener);
    }

    /// Whether a read is worth its time, or the last failure's words.
    pub fn may_read(&self, now: Instant) -> Result<(), String> {
        let mut state = self.lock();
        let reads = &mut state.reads;
        let just_tried = reads.tried.is_some_and(|at| now.saturating_duration_since(at) < RETRY);
        if reads.is_trouble() && just_tried {
            return Err(reads.reason.clone());
        }
        reads.tried = Some(now);
        Ok(())
    }

    /// The store answered a read, if only that there is no such object.
    pub fn read(&self) {
        self.update(|state| {
            if std::mem::take(&mut state.reads.count) > 0 {
                tracing::info!(store = %self.url, "the object store is read again");
            }
        });
    }

    /// A read failed.
    pub fn read_failed(&self, reason: &str) {
        self.update(|state| {
            if failed(&mut state.reads, reason) {
                tracing::warn!(store = %self.url, reason, "the object store cannot be read; KV is computed again");
            }
        });
    }

    /// The store has taken a segment, or has it already: it can be reached, whatever reads say.
    pub fn written(&self) {
        self.update(|state| {
            state.reads.count = 0;
            if std::mem::take(&mut state.writes.count) > 0 {
                tracing::info!(store = %self.url, "the object store is written to again");
            }
        });
    }

    /// A write failed.
    pub fn write_failed(&self, reason: &str) {
        self.update(|state| {
            if failed(&mut state.writes, reason) {
                tracing::warn!(
                    store = %self.url, reason,
                    "the object store takes no writes; KV made meanwhile stays in this worker"
                );
            }
        });
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        let before = self.trouble(&state).is_some();
        change(&mut state);
        let now = self.trouble(&state);
        if before != now.is_some()
            && let Some(listener) = &state.listener
        {
            listener(now);
        }
    }

    fn trouble(&self, state: &State) -> Option<String> {
        let (kind, failures) = match (state.reads.is_trouble(), state.writes.is_trouble()) {
            (true, _) => ("reads", &state.reads),
            (false, true) => ("writes", &state.writes),
            (false, false) => return None,
        };
        Some(format!(
            "{kind} of the object store {} fail: {}; what cannot be restored is computed",
            self.url, failures.reason
        ))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Counts and words: a listener that panicked left nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether this failure is the first of its episode.
fn failed(failures: &mut Failures, reason: &str) -> bool {
    failures.count = failures.count.saturating_add(1);
    reason.clone_into(&mut failures.reason);
    failures.count == 1
}

impl Debug for Health {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health").field("url", &self.url).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A health, and everything it told since it was last asked.
    fn listened() -> (Health, impl Fn() -> Vec<Option<String>>) {
        let health = Health::new(StoreUrl::from("s3://id:s3cret@bucket".to_owned()));
        let told: Arc<Mutex<Vec<_>>> = Arc::default();
        let sink = told.clone();
        health.listen(Box::new(move |trouble| sink.lock().expect("no panic").push(trouble)));
        (health, move || std::mem::take(&mut *told.lock().expect("no panic")))
    }

    #[test]
    fn three_failures_in_a_row_are_trouble_and_one_success_ends_it() {
        let (health, told) = listened();
        assert_eq!(told(), [None], "at once");
        for _ in 0..2 {
            health.read_failed("cut");
            health.read_failed("cut");
            health.read();
        }
        assert_eq!(told(), []);
        (0..5).for_each(|_| health.read_failed("no route"));
        let [Some(trouble)] = &told()[..] else { panic!("not told once") };
        assert!(trouble.contains("reads of the object store s3://id:***@bucket fail: no route"), "{trouble}");
        health.read();
        assert_eq!(told(), [None]);
    }

    #[test]
    fn a_store_that_is_full_is_read_all_the_same() {
        let (health, told) = listened();
        told();
        let now = Instant::now();
        for _ in 0..LIMIT {
            health.write_failed("no space left");
            health.read();
        }
        assert!(matches!(&told()[..], [Some(trouble)] if trouble.contains("writes")));
        assert_eq!([health.may_read(now), health.may_read(now)], [Ok(()), Ok(())]);
        health.written();
        assert_eq!(told(), [None]);
    }

    #[test]
    fn while_reads_fail_one_a_second_is_tried() {
        let (health, _) = listened();
        let now = Instant::now();
        for _ in 0..LIMIT {
            assert_eq!(health.may_read(now), Ok(()));
            health.read_failed("no route");
        }
        assert_eq!(health.may_read(now), Err("no route".into()));
        assert_eq!(health.may_read(now + RETRY), Ok(()));
        assert_eq!(health.may_read(now + RETRY), Err("no route".into()));
        health.written();
        assert_eq!([health.may_read(now + RETRY), health.may_read(now + RETRY)], [Ok(()), Ok(())]);
    }
}
