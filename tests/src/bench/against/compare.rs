//! The ratio of a figure, and what is known of it.

use serde::Serialize;

use super::part::{Figure, Unit};
use crate::bench::rounds::median;

/// A ratio below it is named: 3 % slower.
pub const LIMIT: f64 = 0.97;
/// How often the true ratio may lie outside of the interval that is given.
const OUTSIDE: f64 = 0.1;

/// One figure of both sides.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// What was measured.
    pub name: String,
    /// What it counts.
    pub unit: Unit,
    /// The commit's median.
    pub old: f64,
    /// This tree's median.
    pub new: f64,
    /// How many times as fast this tree is: the median of the rounds' ratios.
    pub ratio: f64,
    /// The true ratio lies between these in at least nine of ten runs. None: there are too few rounds to tell.
    pub interval: Option<[f64; 2]>,
    /// What follows from ratio and interval.
    pub verdict: Verdict,
    /// Old and new of each round.
    pub rounds: Vec<[f64; 2]>,
}

/// Whether a figure is more than 3 % slower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The ratio is below it.
    Slower,
    /// The ratio is not, but the interval reaches below it, or there is none.
    Unclear,
    /// It is not slower.
    Fine,
}

impl Verdict {
    fn of(ratio: f64, interval: Option<[f64; 2]>) -> Self {
        if ratio < LIMIT {
            Self::Slower
        } else if interval.is_none_or(|[low, _]| low < LIMIT) {
            Self::Unclear
        } else {
            Self::Fine
        }
    }
}

/// Compares the figures of one part; each round has those of both sides, in the same order.
pub(super) fn figures(rounds: &[[Vec<Figure>; 2]]) -> Vec<Compared> {
    let count = rounds.iter().flatten().map(Vec::len).min().unwrap_or(0);
    let first = rounds.first().map_or(&[][..], |[old, _]| &old[..count]);
    let values = |index: usize| {
        rounds.iter().map(|[old, new]| [old[index].value, new[index].value]).collect::<Vec<_>>()
    };
    first.iter().enumerate().map(|(index, figure)| compared(figure, values(index))).collect()
}

fn compared(figure: &Figure, rounds: Vec<[f64; 2]>) -> Compared {
    let side = |side: usize| median(&rounds.iter().map(|round| round[side]).collect::<Vec<_>>());
    let mut ratios: Vec<f64> = rounds.iter().map(|[old, new]| figure.unit.ratio(*old, *new)).collect();
    ratios.sort_by(f64::total_cmp);
    let (ratio, interval) = (median(&ratios), interval(&ratios));
    Compared {
        name: figure.name.clone(),
        unit: figure.unit,
        old: side(0),
        new: side(1),
        ratio,
        interval,
        verdict: Verdict::of(ratio, interval),
        rounds,
    }
}

/// The narrowest interval between two of the sorted values, as far from either end, that has the true median with the wanted
/// probability whatever the distribution is: the median lies below the value number k (from 0) if at most k of the n values
/// do, which is as likely as at most k heads of n coins.
fn interval(sorted: &[f64]) -> Option<[f64; 2]> {
    let n = sorted.len();
    let (mut heads, mut below, mut best) = (0.5_f64.powi(i32::try_from(n).ok()?), 0.0, None);
    for k in 0..n.div_ceil(2) {
        below += heads;
        if 2.0 * below > OUTSIDE {
            break;
        }
        best = Some([sorted[k], sorted[n - 1 - k]]);
        heads *= (n - k) as f64 / (k + 1) as f64;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One figure whose rounds have these values, the old one being 100.
    fn of(news: &[f64]) -> Compared {
        let figure = |value| vec![Figure { name: "decode x1".to_owned(), unit: Unit::Tokens, value }];
        let rounds: Vec<_> = news.iter().map(|new| [figure(100.0), figure(*new)]).collect();
        figures(&rounds).remove(0)
    }

    #[test]
    fn intervals_are_those_of_the_sign_test() {
        let sorted: Vec<f64> = (1..=100).map(f64::from).collect();
        let bounds = |n: usize| interval(&sorted[..n]);
        assert_eq!([bounds(0), bounds(1), bounds(4)], [None; 3]);
        // Published tables for 90 %: the value number 1 of 5 to 7, 2 of 8 to 10, 3 of 11 and 12, 6 of 20, 42 of 100.
        for (n, first) in [(5, 1), (7, 1), (8, 2), (10, 2), (11, 3), (12, 3), (20, 6), (100, 42)] {
            let last = n + 1 - first;
            assert_eq!(bounds(n), Some([first as f64, last as f64]), "{n}");
        }
    }

    #[test]
    fn ratios_are_those_of_pairs() {
        let figure = |value| vec![Figure { name: "restore".to_owned(), unit: Unit::Milliseconds, value }];
        // The machine becomes ten times as slow; the second side takes half the time all along.
        let rounds = [[10.0, 5.0], [20.0, 10.0], [100.0, 50.0]].map(|pair| pair.map(figure));
        let compared = figures(&rounds).remove(0);
        assert_eq!((compared.old, compared.new, compared.ratio), (20.0, 10.0, 2.0));
        assert_eq!(compared.rounds, [[10.0, 5.0], [20.0, 10.0], [100.0, 50.0]]);
    }

    #[test]
    fn slower_by_more_than_3_percent_is_named_and_what_cannot_be_told_is_not_called_fine() {
        let verdicts: [(&[f64], Verdict); 6] = [
            (&[96.0; 8], Verdict::Slower),
            (&[97.5; 8], Verdict::Fine),
            (&[90.0, 90.0, 99.0, 99.0, 99.0, 101.0, 101.0, 101.0], Verdict::Unclear),
            (&[50.0, 99.0, 99.0, 99.0, 99.0, 101.0, 101.0, 101.0], Verdict::Fine),
            (&[100.0; 4], Verdict::Unclear),
            (&[90.0], Verdict::Slower),
        ];
        for (news, verdict) in verdicts {
            assert_eq!(of(news).verdict, verdict, "{news:?}");
        }
    }
}
