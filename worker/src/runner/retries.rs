//! Pauses before attempts after the first: exponential backoff with full jitter, so that turns which failed together are
//! not tried again together.
//!
//! Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

use std::time::Duration;

use crate::surroundings::Surroundings;

/// Bounds of the pauses.
#[derive(Clone, Copy, Debug)]
pub struct Retries {
    /// Longest pause after the first attempt; doubles with each.
    pub base: Duration,
    /// Longest pause of all.
    pub max: Duration,
}

impl Retries {
    /// A pause after attempt number `attempt`, from 1.
    pub fn delay(&self, attempt: u32, surroundings: &Surroundings) -> Duration {
        self.longest(attempt).mul_f64(surroundings.random())
    }

    fn longest(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let retries = Retries { base: Duration::from_secs(1), max: Duration::from_secs(10) };
        let longest = [1, 2, 3, 4, 5, u32::MAX].map(|attempt| retries.longest(attempt).as_secs());
        assert_eq!(longest, [1, 2, 4, 8, 10, 10]);
        let surroundings = Surroundings::machine();
        let delays: Vec<Duration> = (0..100).map(|_| retries.delay(5, &surroundings)).collect();
        assert!(delays.iter().all(|delay| *delay < retries.max), "{delays:?}");
        assert!(delays.iter().any(|delay| *delay < retries.max / 2), "full jitter starts at 0: {delays:?}");
    }
}
