//! Rules of settings. A rule is one sentence; all broken rules are told at once.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::{ByteSize, Checked, SettingsError};

/// Sizes are at most a pebibyte. Redis's scripts count exactly up to eight times that, and sums of sizes fit 64 bits.
pub const MOST_BYTES: ByteSize = ByteSize::new(1 << 50);
/// Times that a program waits are at most a week. Longer ones are mistakes in the unit.
const MOST_WAIT_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// Redis refuses times to live near the end of its range, and a script that is refused there has written half.
const MAX_TTL_MS: u64 = 10 * 366 * 24 * 60 * 60 * 1000;
/// The highest limit on attempts, turns or the like: as good as none.
pub const MOST: u32 = 1_000_000_000;

/// What is wrong with settings: a sentence for each rule that is broken.
#[derive(Debug, Default)]
pub struct Problems(Vec<String>);

impl Problems {
    /// Checks `settings`.
    ///
    /// # Errors
    /// Every broken rule.
    pub fn of(settings: &impl Checked) -> Result<(), SettingsError> {
        let mut problems = Self::default();
        settings.check(&mut problems);
        if problems.0.is_empty() { Ok(()) } else { Err(SettingsError::Invalid(problems.0)) }
    }

    /// Notes a problem in a sentence of its own.
    pub fn note(&mut self, sentence: String) {
        self.0.push(sentence);
    }

    /// Notes that `name` is not `rule`, unless it `holds`; returns whether it does, as the others do.
    pub fn require(&mut self, holds: bool, name: &str, value: impl Display, rule: impl Display) -> bool {
        if !holds {
            self.0.push(format!("{name} is {value}; it must be {rule}"));
        }
        holds
    }

    /// Requires a value in `range`.
    pub fn within<T: Display + PartialOrd>(
        &mut self,
        name: &str,
        value: T,
        range: RangeInclusive<T>,
    ) -> bool {
        let rule = format!("from {} to {}", range.start(), range.end());
        self.require(range.contains(&value), name, value, rule)
    }

    /// Requires a time that a program can wait, `least` or longer.
    pub fn wait(&mut self, name: &str, ms: u64, least: u64) -> bool {
        let rule = format!("from {least} to {MOST_WAIT_MS} (a week)");
        self.require((least..=MOST_WAIT_MS).contains(&ms), name, ms, rule)
    }

    /// Requires a time for which Redis can keep something, `least` or longer; `said` is how `least` is told.
    pub fn time_to_live(&mut self, name: &str, ms: u64, least: u64, said: impl Display) -> bool {
        let rule = format!("from {said} to {MAX_TTL_MS} (ten years)");
        self.require((least..=MAX_TTL_MS).contains(&ms), name, ms, rule)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::sample;
    use super::*;

    #[test]
    fn all_problems_are_told_at_once_and_each_in_a_sentence() {
        assert!(Problems::of(&sample(&[])).is_ok());
        let refused =
            Problems::of(&sample(&["--lease-ms=0", "--block-tokens=24"])).expect_err("two problems");
        assert_eq!(
            refused.to_string(),
            "block_tokens is 24; it must be a power of two from 8 to 256\nlease_ms is 0; it must be from 300 to 604800000 (a week)"
        );
    }

    #[test]
    fn the_ends_of_a_range_are_in_it() {
        let holds = |value, range| Problems::default().within("x", value, range);
        assert_eq!([0, 1, 3, 4].map(|value| holds(value, 1..=3)), [false, true, true, false]);
        let lives = |ms| Problems::default().time_to_live("x", ms, 1000, 1000);
        assert_eq!([999, 1000, MAX_TTL_MS, MAX_TTL_MS + 1].map(lives), [false, true, true, false]);
    }
}
