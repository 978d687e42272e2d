//! Tokens per second of running turns, from how many were published at each reading.
//!
//! A speed needs two readings: until then it is unknown. Between two readings at least [`WINDOW_MS`] apart it is the
//! average, so that it does not jump with every token.

use std::collections::{HashMap, HashSet, VecDeque};

use turnmill_client::operate::running::{Running, RunningTurn};
use turnmill_client::schema::TurnId;

/// A speed is measured over about so long.
const WINDOW_MS: u64 = 5_000;

/// What a reading said of a turn.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// The server's clock.
    at_ms: u64,
    published: u64,
}

/// The newest readings of each running turn.
#[derive(Debug, Default)]
pub struct Rates {
    turns: HashMap<TurnId, VecDeque<Sample>>,
}

impl Rates {
    /// Takes a reading; without one, everything before it is of no use any more.
    pub fn add(&mut self, running: Option<&Running>) {
        let Some(Running { read_ms, turns }) = running else { return self.turns.clear() };
        let here: HashSet<TurnId> = turns.iter().map(|turn| turn.turn).collect();
        self.turns.retain(|turn, _| here.contains(turn));
        for turn in turns {
            let samples = self.turns.entry(turn.turn).or_default();
            match turn.published {
                Some(published) => push(samples, Sample { at_ms: *read_ms, published }),
                None => samples.clear(),
            }
        }
    }

    /// Tokens per second of a turn.
    pub fn of(&self, turn: TurnId) -> Option<f64> {
        let samples = self.turns.get(&turn)?;
        let (first, last) = (samples.front()?, samples.back()?);
        let ms = last.at_ms - first.at_ms;
        (ms > 0).then(|| (last.published - first.published) as f64 * 1000.0 / ms as f64)
    }

    /// Of several together, as far as it is known; none where there are turns and nothing is.
    pub fn sum<'a>(&self, turns: impl IntoIterator<Item = &'a RunningTurn>) -> Option<f64> {
        let (mut sum, mut known, mut any) = (0.0, false, false);
        for turn in turns {
            any = true;
            if let Some(rate) = self.of(turn.turn) {
                (sum, known) = (sum + rate, true);
            }
        }
        (known || !any).then_some(sum)
    }
}

fn push(samples: &mut VecDeque<Sample>, sample: Sample) {
    let backwards = |last: &Sample| sample.published < last.published || sample.at_ms < last.at_ms;
    if samples.back().is_some_and(backwards) {
        // Redis lost its last second, or is another one.
        samples.clear();
    }
    if samples.back().is_none_or(|last| last.at_ms < sample.at_ms) {
        samples.push_back(sample);
    }
    while samples.len() > 2 && samples[1].at_ms + WINDOW_MS <= sample.at_ms {
        samples.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::running_turn;
    use super::*;

    /// A reading of one turn.
    fn read(rates: &mut Rates, turn: &RunningTurn, at_ms: u64, published: Option<u64>) {
        let turn = RunningTurn { published, ..turn.clone() };
        rates.add(Some(&Running { read_ms: at_ms, turns: vec![turn] }));
    }

    #[test]
    fn a_speed_needs_two_readings_and_covers_the_last_seconds() {
        let (mut rates, turn) = (Rates::default(), running_turn("a", 0));
        assert_eq!(rates.of(turn.turn), None);
        read(&mut rates, &turn, 1_000, Some(10));
        assert_eq!(rates.of(turn.turn), None, "one reading");
        read(&mut rates, &turn, 1_000, Some(10));
        assert_eq!(rates.of(turn.turn), None, "the same moment");
        read(&mut rates, &turn, 2_000, Some(40));
        assert_eq!(rates.of(turn.turn), Some(30.0));
        for second in 3..=20 {
            read(&mut rates, &turn, second * 1_000, Some(40));
        }
        assert_eq!(rates.of(turn.turn), Some(0.0), "it stands still, and that is known");
        // Readings further apart than the window still give a speed.
        read(&mut rates, &turn, 40_000, Some(60));
        assert_eq!(rates.of(turn.turn), Some(1.0));
    }

    #[test]
    fn what_goes_backwards_begins_anew() {
        let (mut rates, turn) = (Rates::default(), running_turn("a", 0));
        read(&mut rates, &turn, 1_000, Some(10));
        read(&mut rates, &turn, 2_000, Some(20));
        read(&mut rates, &turn, 3_000, Some(15));
        assert_eq!(rates.of(turn.turn), None, "Redis lost tokens");
        read(&mut rates, &turn, 4_000, Some(16));
        assert_eq!(rates.of(turn.turn), Some(1.0));
        read(&mut rates, &turn, 500, Some(17));
        assert_eq!(rates.of(turn.turn), None, "another clock");
        read(&mut rates, &turn, 1_500, None);
        assert_eq!(rates.of(turn.turn), None, "it could not be read");
        read(&mut rates, &turn, 2_500, Some(20));
        rates.add(None);
        read(&mut rates, &turn, 3_500, Some(30));
        assert_eq!(rates.of(turn.turn), None, "nothing could be read between");
    }

    #[test]
    fn a_sum_is_of_what_is_known() {
        let (a, b) = (running_turn("a", 0), running_turn("b", 0));
        let mut rates = Rates::default();
        assert_eq!(rates.sum([]), Some(0.0), "nothing runs");
        rates.add(Some(&Running { read_ms: 1_000, turns: vec![a.clone()] }));
        assert_eq!(rates.sum([&a]), None);
        let later = RunningTurn { published: Some(5), ..a.clone() };
        rates.add(Some(&Running { read_ms: 2_000, turns: vec![later.clone(), b.clone()] }));
        assert_eq!(rates.sum([&later, &b]), Some(5.0), "b was read once");
        rates.add(Some(&Running { read_ms: 3_000, turns: vec![b] }));
        assert_eq!(rates.of(a.turn), None, "it ended and is forgotten");
    }
}
