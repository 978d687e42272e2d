//! Draws a token by weights.
//!
//! A draw is a place on a line that is as long as all weights together, and on which the tokens lie one after the other: by id,
//! or, with top-p, by weight (heaviest first, among equals the lower id). Sums are those of stretches of the line, whose bounds
//! depend on the row alone; only the stretch that holds the place is walked token by token.

use super::{Candidate, Scratch, by_weight, keep_top};
use crate::model::simd::{Isa, logits};

/// Tokens of a stretch by id.
const STRETCH: usize = 1024;

/// Bits of a weight below those that say in which stretch by weight it is: the exponent and four bits of the mantissa, so that
/// the weights of a stretch differ by 6 % at most, and none holds many tokens unless they are much alike.
const FINE_BITS: u32 = 19;

/// Stretches by weight: weights are at most 1.
const STRETCHES: usize = stretch(1.0) + 1;

/// What is left out of a draw.
#[derive(Clone, Copy, Debug)]
pub struct Filters {
    /// All but the heaviest so many tokens; 0: nothing.
    pub top_k: usize,
    /// All but the fewest tokens, heaviest first, that have this share of the weight; 1: nothing.
    pub top_p: f64,
}

/// The token at `uniform`, in [0, 1), of the line that `filters` leave of `weights`; none if no weight is above 0. Weights are
/// from 0 to 1, none of them subnormal.
pub fn token(weights: &[f32], filters: Filters, uniform: f64, scratch: &mut Scratch) -> Option<u32> {
    if (1..weights.len()).contains(&filters.top_k) {
        let candidates = &mut scratch.candidates;
        keep_top(weights, filters.top_k, candidates);
        candidates.retain(|(weight, _)| *weight > 0.0);
        return among(candidates, filters.top_p, uniform);
    }
    if filters.top_p < 1.0 {
        return by_rank(weights, filters.top_p, uniform, scratch);
    }
    by_id(weights, uniform)
}

/// Draws from all tokens, by id.
fn by_id(weights: &[f32], uniform: f64) -> Option<u32> {
    let isa = Isa::detect();
    let sums = || weights.chunks(STRETCH).map(|stretch| logits::sum(isa, stretch));
    let mut left = uniform * sums().sum::<f64>();
    match sums().position(|sum| !passes(&mut left, sum)) {
        Some(stretch) => {
            let start = stretch * STRETCH;
            walk(weights[start..].iter().copied().zip(start as u32..).take(STRETCH), left)
        }
        // Rounding may leave a crumb: it belongs to the last token.
        None => weights.iter().rposition(|weight| *weight > 0.0).map(|token| token as u32),
    }
}

/// Draws from `candidates` alone.
fn among(candidates: &mut Vec<Candidate>, top_p: f64, uniform: f64) -> Option<u32> {
    let sum = |candidates: &[Candidate]| candidates.iter().map(|(weight, _)| f64::from(*weight)).sum::<f64>();
    if top_p < 1.0 {
        candidates.sort_unstable_by(by_weight);
        let enough = top_p * sum(candidates);
        keep_weight(candidates, enough);
    } else {
        candidates.sort_unstable_by_key(|(_, token)| *token);
    }
    walk(candidates.iter().copied(), uniform * sum(candidates))
}

/// Draws from the heaviest tokens that have `top_p` of the weight, by weight.
fn by_rank(weights: &[f32], top_p: f64, uniform: f64, scratch: &mut Scratch) -> Option<u32> {
    let total = logits::sum(Isa::detect(), weights);
    let Scratch { candidates, members } = scratch;
    candidates.clear();
    logits::at_least(Isa::detect(), weights, negligible(total, top_p, weights.len()), candidates);
    let mut sums = [0.0; STRETCHES];
    for (weight, _) in &*candidates {
        sums[stretch(*weight)] += f64::from(*weight);
    }
    let enough = total * top_p;
    // The stretch in which the tokens have enough, and what those before it have.
    let (mut before, mut last) = (0.0, None);
    for (index, sum) in sums.iter().enumerate().rev().filter(|(_, sum)| **sum > 0.0) {
        before += last.map_or(0.0, |last: usize| sums[last]);
        last = Some(index);
        if before + sum >= enough {
            break;
        }
    }
    let last = last?;
    collect(candidates, last, members);
    let kept = before + keep_weight(members, enough - before);
    let mut left = uniform * kept;
    let drawn = (last + 1..STRETCHES).rev().find(|index| !passes(&mut left, sums[*index]));
    if let Some(drawn) = drawn {
        collect(candidates, drawn, members);
    }
    walk(members.iter().copied(), left)
}

/// The tokens of a stretch, by weight.
fn collect(candidates: &[Candidate], index: usize, members: &mut Vec<Candidate>) {
    members.clear();
    members.extend(candidates.iter().filter(|(weight, _)| stretch(*weight) == index));
    members.sort_unstable_by(by_weight);
}

/// A weight that no token has which top-p keeps, but larger ones: all tokens of smaller weights together have less than
/// what top-p leaves out.
fn negligible(total: f64, top_p: f64, tokens: usize) -> f32 {
    // A little less, so that no rounding matters.
    let least = 0.999 * (1.0 - top_p) * total / tokens as f64;
    (least as f32).max(f32::MIN_POSITIVE)
}

/// Keeps the first of `candidates` that have `enough` weight; returns what they have.
fn keep_weight(candidates: &mut Vec<Candidate>, enough: f64) -> f64 {
    let mut reached = 0.0;
    let last = candidates.iter().position(|(weight, _)| {
        reached += f64::from(*weight);
        reached >= enough
    });
    candidates.truncate(last.map_or(candidates.len(), |last| last + 1));
    reached
}

/// Goes along the line until what is `left` of the way ends in a token.
fn walk(candidates: impl Iterator<Item = Candidate>, mut left: f64) -> Option<u32> {
    let mut last = None;
    for (weight, token) in candidates.filter(|(weight, _)| *weight > 0.0) {
        if !passes(&mut left, f64::from(weight)) {
            return Some(token);
        }
        last = Some(token);
    }
    // Rounding may leave a crumb: it belongs to the last token.
    last
}

/// Goes on along the line by `length`, unless what is `left` of the way ends before.
fn passes(left: &mut f64, length: f64) -> bool {
    let passes = *left >= length;
    if passes {
        *left -= length;
    }
    passes
}

/// The stretch by weight of a weight.
const fn stretch(weight: f32) -> usize {
    (weight.to_bits() >> FINE_BITS) as usize
}
