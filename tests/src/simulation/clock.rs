//! Simulated time: one monotonic clock, and the queue's wall clock, which may jump ahead of it.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::memory_broker::Clock;

/// What the queue's clock shows when a simulation starts, in Unix milliseconds.
pub const START_MS: u64 = 1_700_000_000_000;

const NANOS_A_MS: u64 = 1_000_000;

/// Simulated time. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct SimClock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// What the monotonic clock shows at the start; nothing depends on which moment that is.
    origin: Instant,
    now_ns: AtomicU64,
    jumped_ms: AtomicU64,
    /// By when they are due, then by when they were set.
    timers: Mutex<BTreeMap<(u64, u64), Waker>>,
    last: AtomicU64,
}

impl SimClock {
    /// At [`START_MS`].
    pub fn start() -> Self {
        Self(Arc::new(Inner {
            origin: Instant::now(),
            now_ns: AtomicU64::new(0),
            jumped_ms: AtomicU64::new(0),
            timers: Mutex::default(),
            last: AtomicU64::new(0),
        }))
    }

    /// What the monotonic clock shows.
    pub fn now(&self) -> Instant {
        self.0.origin + Duration::from_nanos(self.nanos())
    }

    /// Milliseconds since the start, whatever the wall clock shows.
    pub fn elapsed_ms(&self) -> u64 {
        self.nanos() / NANOS_A_MS
    }

    /// Ends after `ms`.
    pub fn sleep(&self, ms: u64) -> Until {
        self.until_nanos(self.nanos() + ms * NANOS_A_MS)
    }

    /// Ends after `us` microseconds.
    pub fn sleep_us(&self, us: u64) -> Until {
        self.until_nanos(self.nanos() + us * 1000)
    }

    /// Ends when the monotonic clock shows `at`.
    pub fn sleep_until(&self, at: Instant) -> Until {
        let nanos = at.saturating_duration_since(self.0.origin).as_nanos();
        self.until_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The wall clock jumps ahead.
    pub fn jump(&self, ms: u64) {
        self.0.jumped_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// Goes on to the next timer; false if there is none.
    pub(super) fn advance(&self) -> bool {
        let mut due = Vec::new();
        let mut timers = self.timers();
        let Some((&(at_ns, _), _)) = timers.first_key_value() else { return false };
        self.0.now_ns.fetch_max(at_ns, Ordering::Relaxed);
        while let Some(first) = timers.first_entry()
            && first.key().0 <= at_ns
        {
            due.push(first.remove());
        }
        drop(timers);
        due.into_iter().for_each(Waker::wake);
        true
    }

    fn nanos(&self) -> u64 {
        self.0.now_ns.load(Ordering::Relaxed)
    }

    fn until_nanos(&self, at_ns: u64) -> Until {
        Until { clock: self.clone(), at_ns, timer: None }
    }

    fn timers(&self) -> MutexGuard<'_, BTreeMap<(u64, u64), Waker>> {
        self.0.timers.lock().expect("not poisoned")
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        START_MS + self.elapsed_ms() + self.0.jumped_ms.load(Ordering::Relaxed)
    }

    fn until(&self, at_ms: u64) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.sleep(at_ms.saturating_sub(self.now_ms())))
    }
}

/// A wait for a time.
#[derive(Debug)]
pub struct Until {
    clock: SimClock,
    at_ns: u64,
    timer: Option<(u64, u64)>,
}

impl Future for Until {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.clock.nanos() >= self.at_ns {
            return Poll::Ready(());
        }
        let set = || (self.at_ns, self.clock.0.last.fetch_add(1, Ordering::Relaxed));
        let timer = self.timer.unwrap_or_else(set);
        self.clock.timers().insert(timer, context.waker().clone());
        self.timer = Some(timer);
        Poll::Pending
    }
}

impl Drop for Until {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            let waker = self.clock.timers().remove(&timer);
            // Outside the lock.
            drop(waker);
        }
    }
}
