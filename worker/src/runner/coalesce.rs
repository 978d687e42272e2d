//! How long tokens wait for others before they are published together.
//!
//! A lone turn's reader sees each token at once; a busy worker, of which there are many beside one Redis, publishes several
//! tokens in one append. What decides is how many tokens the worker makes a second, over all its turns: the appends it
//! would need without waiting. Waiting changes the number of appends and not the number of tokens, so it cannot switch
//! itself off and on again.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Plain appends to one stream after the other that one core of Redis does in a second, at 7 µs each (measured on Redis 7.0).
const REDIS_APPENDS_PER_SECOND: f64 = 141_000.0;
/// Below this rate tokens are published at once: a 400th of Redis's core, or 352 tokens a second. That is one turn of a small
/// model, and 400 such workers fill the core.
const AT_ONCE: f64 = REDIS_APPENDS_PER_SECOND / 400.0;
/// From this rate on they wait as long as they may: a 300th of Redis's core, or 470 tokens a second. That is more than one turn
/// makes: a worker whose machine is slow and whose turns are many saves most by waiting, because each of them makes few tokens in
/// a tenth of a second.
const LONGEST: f64 = REDIS_APPENDS_PER_SECOND / 300.0;
/// How far back the rate looks: long enough to see a steady rate in steps of many tokens, short enough that the first turn
/// after a busy time waits for no more than a few of its tokens.
const MEMORY: Duration = Duration::from_secs(1);

/// Says how long tokens wait; one for all turns of a worker.
#[derive(Debug)]
pub struct Coalescing {
    longest: Duration,
    made: Mutex<DecayingRate>,
}

impl Coalescing {
    /// Tokens wait for at most `longest`.
    pub fn new(longest: Duration) -> Self {
        Self { longest, made: Mutex::default() }
    }

    /// Counts a token made at `at`, and says how long it may wait for others from then on.
    pub fn wait(&self, at: Instant) -> Duration {
        // A number has no state in which a panic could leave it half changed.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        self.longest.mul_f64(share(made.count(at)))
    }
}

/// Which part of the longest wait is due at a rate of tokens a second: none, a growing part, all of it.
fn share(rate: f64) -> f64 {
    ((rate - AT_ONCE) / (LONGEST - AT_ONCE)).clamp(0.0, 1.0)
}

/// Events a second, of which older ones count for less: after [`MEMORY`] for 1/e.
#[derive(Debug, Default)]
struct DecayingRate {
    rate: f64,
    /// The latest event that was counted.
    last: Option<Instant>,
}

impl DecayingRate {
    /// Counts an event, and gives the rate with it. Turns report in any order: an earlier event than the latest counts for as
    /// much as it would had it come in time.
    fn count(&mut self, at: Instant) -> f64 {
        let last = self.last.map_or(at, |last| last.max(at));
        let before = self.last.map_or(Duration::ZERO, |before| last - before);
        self.rate = self.rate * kept(before) + kept(last - at) / MEMORY.as_secs_f64();
        self.last = Some(last);
        self.rate
    }
}

/// What remains of an event's weight after some time.
fn kept(after: Duration) -> f64 {
    (-after.as_secs_f64() / MEMORY.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);

    /// When `tokens` a second are made from `from` on, for `seconds` seconds.
    fn steady(from: Instant, tokens: u32, seconds: u32) -> impl Iterator<Item = Instant> {
        (0..tokens * seconds).map(move |i| from + Duration::from_secs(1) * i / tokens)
    }

    /// The wait of the last of them.
    fn last_wait(coalescing: &Coalescing, made: impl Iterator<Item = Instant>) -> Duration {
        made.map(|at| coalescing.wait(at)).last().expect("some tokens are made")
    }

    #[test]
    fn a_lone_turn_never_waits_and_a_full_worker_waits_as_long_as_it_may() {
        let begin = Instant::now();
        let lone = Coalescing::new(LIMIT);
        assert!(steady(begin, 280, 20).all(|at| lone.wait(at).is_zero()), "280 tokens a second");
        assert_eq!(last_wait(&Coalescing::new(LIMIT), steady(begin, 1600, 5)), LIMIT);
    }

    #[test]
    fn the_wait_grows_with_the_rate() {
        let begin = Instant::now();
        let wait = |tokens| last_wait(&Coalescing::new(LIMIT), steady(begin, tokens, 8));
        let waits: Vec<Duration> = (1..=60).map(|tens| wait(10 * tens)).collect();
        assert!(waits.is_sorted(), "{waits:?}");
        let between = waits.iter().filter(|wait| !wait.is_zero() && **wait < LIMIT).count();
        assert!(between >= 4, "it jumps: {waits:?}");
    }

    #[test]
    fn the_rate_is_that_of_tokens_and_stays_where_it_is() {
        let begin = Instant::now();
        let coalescing = Coalescing::new(LIMIT);
        let waits: Vec<Duration> = steady(begin, 1600, 30).map(|at| coalescing.wait(at)).collect();
        // The first seconds tell it that the worker is busy; whatever is published together from then on changes nothing.
        assert!(waits[0].is_zero());
        assert!(waits.is_sorted(), "it swings");
        assert!(waits[3 * 1600..].iter().all(|wait| *wait == LIMIT));
    }

    #[test]
    fn after_a_busy_time_tokens_go_at_once_again() {
        let begin = Instant::now();
        let coalescing = Coalescing::new(LIMIT);
        assert_eq!(last_wait(&coalescing, steady(begin, 1600, 5)), LIMIT);
        assert!(last_wait(&coalescing, steady(begin + Duration::from_secs(5), 50, 3)).is_zero());
    }

    #[test]
    fn turns_report_in_any_order() {
        let begin = Instant::now();
        let made: Vec<Instant> = steady(begin, 700, 4).collect();
        let (mut in_order, mut in_batches) = (DecayingRate::default(), DecayingRate::default());
        made.iter().for_each(|at| {
            in_order.count(*at);
        });
        // A turn whose append took long reports its tokens together, the newest first at worst.
        made.chunks(50).for_each(|batch| {
            batch.iter().rev().for_each(|at| {
                in_batches.count(*at);
            });
        });
        let difference = (in_order.rate - in_batches.rate).abs();
        assert!(difference < 1e-6 * in_order.rate, "{} and {}", in_order.rate, in_batches.rate);
        assert!((in_order.rate - 700.0).abs() < 35.0, "{} of 700 tokens a second", in_order.rate);
    }

    #[test]
    fn a_token_a_step_of_many_turns_counts_as_any() {
        let begin = Instant::now();
        let coalescing = Coalescing::new(LIMIT);
        // 32 turns, a step every 20 ms.
        let steps =
            (0..200u32).flat_map(|step| (0..32).map(move |_| begin + Duration::from_millis(20) * step));
        assert_eq!(last_wait(&coalescing, steps), LIMIT);
    }
}
