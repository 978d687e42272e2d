//! How the newest turns ended: outcomes, the share of prompt tokens that were cached, and how many ended each second.
//!
//! Seconds that were not watched whole are unknown, not empty: only the newest thousand ends are read at once.

use std::collections::{BTreeMap, VecDeque};

use turnmill_client::operate::ends::EndsRead;
use turnmill_client::schema::Outcome;

/// Ends that outcomes and cached shares are of.
pub const ENDS_KEPT: usize = 1000;
/// Seconds of which the ends are counted: more than a terminal has columns.
const SECONDS_KEPT: u64 = 900;
/// Seconds over which the pace of ends is taken.
const PACE_SECONDS: u64 = 10;
/// Outcomes, as they are shown.
pub const OUTCOMES: [Outcome; 4] =
    [Outcome::Completed, Outcome::Failed, Outcome::Cancelled, Outcome::Expired];

#[derive(Clone, Copy, Debug)]
struct End {
    at_ms: u64,
    outcome: Outcome,
    prompt_tokens: u64,
    cached_tokens: u64,
}

/// What is known of the newest ends.
#[derive(Debug, Default)]
pub struct Ends {
    newest: VecDeque<End>,
    /// Ends in each second that had some.
    seconds: BTreeMap<u64, u64>,
    /// The first second that was watched whole.
    since_s: u64,
    /// The server's clock at the newest reading; none where that failed.
    read_ms: Option<u64>,
}

impl Ends {
    /// Takes a reading; without one, nothing is known any more.
    pub fn add(&mut self, read: Option<&EndsRead>) {
        let Some(read) = read else { return *self = Self::default() };
        if read.first || self.read_ms.is_none() {
            *self = Self::default();
        }
        if !read.whole
            && let Some(oldest) = read.ended.first()
        {
            self.since_s = oldest.id.epoch / 1000 + 1;
        }
        for ended in &read.ended {
            let usage = ended.end.usage;
            *self.seconds.entry(ended.id.epoch / 1000).or_default() += 1;
            self.newest.push_back(End {
                at_ms: ended.id.epoch,
                outcome: ended.end.outcome,
                prompt_tokens: usage.prompt_tokens.into(),
                cached_tokens: usage.cached_tokens.into(),
            });
        }
        let too_many = self.newest.len().saturating_sub(ENDS_KEPT);
        self.newest.drain(..too_many);
        let oldest_s = (read.read_ms / 1000).saturating_sub(SECONDS_KEPT);
        self.since_s = self.since_s.max(oldest_s);
        self.seconds = self.seconds.split_off(&self.since_s);
        self.read_ms = Some(read.read_ms);
    }

    /// How many ends the outcomes and shares are of; none where they are unknown.
    pub fn count(&self) -> Option<usize> {
        self.read_ms.map(|_| self.newest.len())
    }

    /// How many ended in each way of [`OUTCOMES`].
    pub fn outcomes(&self) -> Option<[usize; 4]> {
        self.read_ms?;
        Some(OUTCOMES.map(|outcome| self.newest.iter().filter(|end| end.outcome == outcome).count()))
    }

    /// The share of prompt tokens that were found in a cache, of all the newest ends or of those of the last `ms`; none where
    /// no prompt was read.
    pub fn cached_share(&self, last_ms: Option<u64>) -> Option<f64> {
        let from_ms = last_ms.map_or(0, |ms| self.read_ms.unwrap_or(0).saturating_sub(ms));
        let (mut prompt, mut cached) = (0, 0);
        for end in self.newest.iter().filter(|end| end.at_ms >= from_ms) {
            prompt += end.prompt_tokens;
            cached += end.cached_tokens;
        }
        (prompt > 0).then(|| cached as f64 / prompt as f64)
    }

    /// How many ended in each of the last `seconds` whole seconds, the newest last; none where a second was not watched.
    pub fn per_second(&self, seconds: u64) -> Vec<Option<u64>> {
        let Some(read_ms) = self.read_ms else { return vec![None; seconds as usize] };
        let now_s = read_ms / 1000;
        let of = |second| self.seconds.get(&second).copied().unwrap_or(0);
        let second = |ago| now_s.checked_sub(ago).filter(|second| *second >= self.since_s).map(of);
        (1..=seconds).rev().map(second).collect()
    }

    /// Turns that end a second, over the last ten or as many as were watched.
    pub fn pace(&self) -> Option<f64> {
        let watched: Vec<u64> = self.per_second(PACE_SECONDS).into_iter().flatten().collect();
        (!watched.is_empty()).then(|| watched.iter().sum::<u64>() as f64 / watched.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::ended;
    use super::*;

    fn read(
        read_ms: u64,
        first: bool,
        whole: bool,
        ended: Vec<turnmill_client::events::EndedTurn>,
    ) -> EndsRead {
        EndsRead { read_ms, ended, whole, first }
    }

    #[test]
    fn before_a_reading_nothing_is_known() {
        let mut ends = Ends::default();
        assert_eq!(
            (ends.count(), ends.outcomes(), ends.cached_share(None), ends.pace()),
            (None, None, None, None)
        );
        assert_eq!(ends.per_second(2), [None, None]);
        ends.add(Some(&read(10_500, true, true, vec![ended(9_100, Outcome::Completed, 10, 5)])));
        assert_eq!(ends.count(), Some(1));
        ends.add(None);
        assert_eq!((ends.count(), ends.per_second(1)), (None, vec![None]));
    }

    #[test]
    fn outcomes_and_cached_shares_are_of_the_newest() {
        let mut ends = Ends::default();
        let old = vec![ended(1_000, Outcome::Completed, 100, 0), ended(2_000, Outcome::Failed, 0, 0)];
        ends.add(Some(&read(3_000, true, true, old)));
        assert_eq!(ends.cached_share(None), Some(0.0), "none was cached, and that is known");
        let new = vec![ended(90_000, Outcome::Completed, 100, 80), ended(91_000, Outcome::Cancelled, 0, 0)];
        ends.add(Some(&read(92_000, false, true, new)));
        assert_eq!(ends.outcomes(), Some([2, 1, 1, 0]));
        assert_eq!(ends.cached_share(None), Some(0.4));
        assert_eq!(ends.cached_share(Some(60_000)), Some(0.8));
        let many = (0..ENDS_KEPT as u64).map(|i| ended(93_000 + i, Outcome::Expired, 0, 0)).collect();
        ends.add(Some(&read(95_000, false, true, many)));
        assert_eq!(ends.outcomes(), Some([0, 0, 0, ENDS_KEPT]));
        assert_eq!(ends.cached_share(None), None, "no prompt was read");
    }

    #[test]
    fn seconds_that_were_not_watched_are_unknown() {
        let mut ends = Ends::default();
        let at = |ms| ended(ms, Outcome::Completed, 1, 1);
        // More had ended before these: second 5 may have had others.
        ends.add(Some(&read(8_300, true, false, vec![at(5_900), at(6_100), at(6_200)])));
        assert_eq!(ends.per_second(4), [None, None, Some(2), Some(0)]);
        assert_eq!(ends.pace(), Some(1.0), "over the two seconds that are known");
        ends.add(Some(&read(9_300, false, true, vec![at(8_900)])));
        assert_eq!(ends.per_second(3), [Some(2), Some(0), Some(1)]);
        // Too many at once: what lies between is not known.
        ends.add(Some(&read(12_000, false, false, vec![at(10_500), at(11_000)])));
        assert_eq!(ends.per_second(4), [None, None, None, Some(1)]);
        // A first reading after an outage counts nothing twice.
        ends.add(Some(&read(13_000, true, true, vec![at(11_000)])));
        assert_eq!((ends.count(), ends.per_second(3)), (Some(1), vec![Some(0), Some(1), Some(0)]));
    }
}
