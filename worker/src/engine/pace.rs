//! How fast prompts are computed, from the steps that were made.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Believed until a step has shown better: a small model on a few cores.
const ASSUMED: f64 = 1000.0;
/// Steps with fewer rows say nothing about prompts.
const LEAST_ROWS: usize = 64;
/// Weight of a new step.
const WEIGHT: f64 = 0.25;

/// A moving average, written by the engine's thread and read by anybody.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Rows a second, as the bits of a float; 0 before the first step.
    rate: AtomicU64,
}

impl Pace {
    /// A step over `rows` rows was made.
    pub fn step(&self, rows: usize, took: Duration) {
        if rows < LEAST_ROWS || took.is_zero() {
            return;
        }
        let new = rows as f64 / took.as_secs_f64();
        let rate = match self.rate() {
            0.0 => new,
            old => old + WEIGHT * (new - old),
        };
        self.rate.store(rate.to_bits(), Ordering::Relaxed);
    }

    /// Prompt tokens a second; never 0.
    pub fn prefill_rate(&self) -> f64 {
        match self.rate() {
            0.0 => ASSUMED,
            rate => rate,
        }
    }

    fn rate(&self) -> f64 {
        f64::from_bits(self.rate.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_steps_with_many_rows_count_and_the_last_ones_weigh_most() {
        let pace = Pace::default();
        assert_eq!(pace.prefill_rate(), ASSUMED);
        pace.step(LEAST_ROWS - 1, Duration::from_secs(9));
        pace.step(512, Duration::ZERO);
        assert_eq!(pace.prefill_rate(), ASSUMED);
        pace.step(100, Duration::from_secs(1));
        assert_eq!(pace.prefill_rate(), 100.0);
        (0..30).for_each(|_| pace.step(512, Duration::from_secs(1)));
        assert!((pace.prefill_rate() - 512.0).abs() < 1.0, "{}", pace.prefill_rate());
    }
}
