//! What a fetch costs, from the fetches that were made.
//!
//! Invariants: the estimate is never refused and never zero or infinite; one that nobody refreshed for [`STALE`] is
//! forgotten, since a store that looks too slow is not asked and could never look better.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::surroundings::Surroundings;

/// What to expect of segments that are fetched from the store, several at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FetchCost {
    /// From asking to the first byte.
    pub latency: Duration,
    /// Bytes a second as they are stored, of all fetches under way together, verification included.
    pub bytes_per_second: f64,
}

/// What is believed of a store that was never asked, or not for long: good enough to ask it.
const OPTIMISTIC: FetchCost = FetchCost { latency: Duration::from_millis(1), bytes_per_second: 1e9 };
/// Older than this, an estimate is no reason not to ask.
const STALE: Duration = Duration::from_secs(30);
/// Weight of a new latency.
const WEIGHT: f64 = 0.25;
/// Seconds of transfer that the throughput is averaged over.
const WINDOW_SECONDS: f64 = 1.0;
/// Seconds of transfer that the optimism at first stands for: one object outweighs it.
const OPTIMISTIC_SECONDS: f64 = 0.001;

/// Moving averages. Throughput is bytes over the time in which at least one transfer was under way: the share of one
/// of many parallel transfers says nothing about how long all of them take.
#[derive(Debug)]
pub(super) struct CostMeter {
    surroundings: Surroundings,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    latency: Duration,
    /// What the estimate is made of.
    learnt: Transferred,
    /// What happened since nothing was under way. Its seconds are counted before their bytes, so it says something
    /// only when it is over.
    busy: Transferred,
    transfers: usize,
    /// Until when the time under way is counted.
    counted: Instant,
    /// When the last thing was learnt.
    learnt_at: Instant,
}

#[derive(Clone, Copy, Debug, Default)]
struct Transferred {
    bytes: f64,
    seconds: f64,
}

impl State {
    fn new(now: Instant) -> Self {
        let bytes = OPTIMISTIC.bytes_per_second * OPTIMISTIC_SECONDS;
        let learnt = Transferred { bytes, seconds: OPTIMISTIC_SECONDS };
        let (latency, busy) = (OPTIMISTIC.latency, Transferred::default());
        Self { latency, learnt, busy, transfers: 0, counted: now, learnt_at: now }
    }

    fn forget_if_stale(&mut self, now: Instant) {
        if self.transfers == 0 && now.saturating_duration_since(self.learnt_at) > STALE {
            *self = Self::new(now);
        }
    }

    /// Counts the time since the last event, if something was under way in it.
    fn count(&mut self, now: Instant) {
        if self.transfers > 0 {
            self.busy.seconds += now.saturating_duration_since(self.counted).as_secs_f64();
        }
        self.counted = now;
    }

    /// Takes in what is over; what is older than the window weighs less with everything new. Transfers without a
    /// pause are taken in once they fill the window, when the bytes still under way matter little.
    fn learn(&mut self) {
        if self.transfers > 0 && self.busy.seconds < WINDOW_SECONDS {
            return;
        }
        let busy = std::mem::take(&mut self.busy);
        let (bytes, seconds) = (self.learnt.bytes + busy.bytes, self.learnt.seconds + busy.seconds);
        let fade = (WINDOW_SECONDS / seconds).min(1.0);
        self.learnt = Transferred { bytes: bytes * fade, seconds: seconds * fade };
    }

    fn answered(&mut self, latency: Duration, now: Instant) {
        self.forget_if_stale(now);
        self.latency = self.latency.mul_f64(1.0 - WEIGHT) + latency.mul_f64(WEIGHT);
        self.learnt_at = now;
    }
}

impl CostMeter {
    pub fn new(surroundings: Surroundings) -> Self {
        let state = Mutex::new(State::new(surroundings.now()));
        Self { surroundings, state }
    }

    /// The store answered, `latency` after it was asked, and what it says is now transferred. A transfer that is
    /// dropped before it is [done](Transfer::done) counts as time without bytes.
    pub fn transfer(&self, latency: Duration, now: Instant) -> Transfer<'_> {
        let mut state = self.lock();
        state.answered(latency, now);
        state.count(now);
        state.transfers += 1;
        Transfer { meter: self }
    }

    /// The store did not answer for this time, or answered without any bytes.
    pub fn no_bytes(&self, after: Duration, now: Instant) {
        self.lock().answered(after, now);
    }

    pub fn estimate(&self, now: Instant) -> FetchCost {
        let mut state = self.lock();
        state.forget_if_stale(now);
        let learnt = state.learnt;
        // At least one, so that nobody divides by zero after a second of transfers that brought nothing.
        FetchCost { latency: state.latency, bytes_per_second: (learnt.bytes / learnt.seconds).max(1.0) }
    }

    fn end(&self, bytes: usize, now: Instant) {
        let mut state = self.lock();
        state.count(now);
        state.busy.bytes += bytes as f64;
        state.transfers -= 1;
        state.learn();
        state.learnt_at = now;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Numbers only: one that panicked elsewhere left nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An object that is being read.
pub(super) struct Transfer<'a> {
    meter: &'a CostMeter,
}

impl Transfer<'_> {
    /// All its bytes are here and verified.
    pub fn done(self, bytes: usize, now: Instant) {
        self.meter.end(bytes, now);
        std::mem::forget(self);
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        self.meter.end(0, self.meter.surroundings.now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn it_is_optimistic_at_first_and_soon_knows_better() {
        let meter = CostMeter::new(Surroundings::machine());
        let mut now = Instant::now();
        assert_eq!(meter.estimate(now), OPTIMISTIC);
        for _ in 0..20 {
            let transfer = meter.transfer(ms(40), now);
            now += ms(100);
            transfer.done(MIB, now);
        }
        let FetchCost { latency, bytes_per_second } = meter.estimate(now);
        assert!((ms(39)..=ms(40)).contains(&latency), "{latency:?}");
        assert!((bytes_per_second / (10.0 * MIB as f64) - 1.0).abs() < 0.1, "{bytes_per_second}");
    }

    #[test]
    fn parallel_transfers_share_their_time() {
        let meter = CostMeter::new(Surroundings::machine());
        let start = Instant::now();
        let mut now = start;
        for _ in 0..10 {
            let transfers = [0; 4].map(|_| meter.transfer(ms(1), now));
            now += ms(500);
            transfers.into_iter().for_each(|transfer| transfer.done(MIB, now));
            // Nothing is under way: no time of transfer.
            now += ms(5000);
        }
        let rate = meter.estimate(now).bytes_per_second;
        assert!((rate / (8.0 * MIB as f64) - 1.0).abs() < 0.1, "{rate}");
    }

    #[test]
    fn a_silent_store_looks_slow_until_it_may_be_asked_again() {
        let meter = CostMeter::new(Surroundings::machine());
        let now = Instant::now();
        for _ in 0..3 {
            meter.no_bytes(ms(4000), now);
        }
        assert!(meter.estimate(now + STALE).latency > ms(2000));
        assert_eq!(meter.estimate(now + STALE + ms(1)), OPTIMISTIC);
    }

    #[test]
    fn transfers_that_brought_nothing_leave_a_number_to_divide_by() {
        let meter = CostMeter::new(Surroundings::machine());
        let now = Instant::now();
        for second in 1..1000 {
            let transfer = meter.transfer(ms(1), now + ms(1000 * second));
            transfer.done(0, now + ms(1000 * second + 1000));
        }
        let rate = meter.estimate(now + ms(1_000_000)).bytes_per_second;
        assert!((1.0..10.0).contains(&rate), "{rate}");
    }
}
