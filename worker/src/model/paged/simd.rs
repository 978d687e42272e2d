//! The SIMD room: attention of a few query rows over one context split, in one canonical order of float
//! operations, compiled once for each instruction set.
//!
//! Invariant: every compiled version gives the same bits. The order is fixed by the source: a score is a chain
//! of fused multiply-adds over the head's elements, softmax weights are summed in 16 lanes by position and
//! then pairwise, and values are accumulated by fused multiply-adds in position order. Vectors only ever run
//! across independent results. Masked positions are skipped, never multiplied.
#![allow(unsafe_code)]

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Floats handled side by side.
pub const LANES: usize = 16;
/// Query vectors that share each loaded K or V vector; tiles are padded to a multiple of it.
pub const UNROLL: usize = 4;

type Lanes = [f32; LANES];

/// An element type of the block pool.
pub trait KvElement: Copy + Send + Sync {
    /// Widens `from` into `to`; both have the same length. Exact.
    fn widen(from: &[Self], to: &mut [f32]);
}

impl KvElement for f16 {
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

impl KvElement for bf16 {
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

impl KvElement for f32 {
    fn widen(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

/// Query rows of one KV head that read the same context split.
pub struct Tile<'a> {
    /// Scaled query vectors, `[vectors, head_dim]`; `vectors` is a multiple of [`UNROLL`].
    pub queries: &'a [f32],
    /// How many positions of the split each vector may see; 0 for padding.
    pub visible: &'a [usize],
    /// Elements of a head.
    pub head_dim: usize,
}

/// Where a split's positions are in the pool: element offset of each position's head vector in K.
pub struct Split<'a, E> {
    /// K of the whole layer.
    pub keys: &'a [E],
    /// V of the whole layer.
    pub values: &'a [E],
    /// Offset of each position's vector, the same in K and V; at least as many as any vector sees.
    pub offsets: &'a [usize],
}

/// Softmax state of each query vector over one or more splits.
#[derive(Clone, Debug, PartialEq)]
pub struct Partial {
    /// Largest score; minus infinity where nothing was seen.
    pub max: Vec<f32>,
    /// Sum of `exp(score - max)`.
    pub sum: Vec<f32>,
    /// Values weighted by `exp(score - max)`, `[vectors, head_dim]`.
    pub weighted: Vec<f32>,
}

impl Partial {
    fn empty(vectors: usize, head_dim: usize) -> Self {
        let weighted = vec![0.0; vectors * head_dim];
        Self { max: vec![f32::NEG_INFINITY; vectors], sum: vec![0.0; vectors], weighted }
    }

    /// Joins the state of the next split. Splits are joined in position order, whoever computed them.
    pub fn join(&mut self, next: &Self) {
        let head_dim = self.weighted.len() / self.max.len();
        for (vector, max) in next.max.iter().enumerate() {
            if *max == f32::NEG_INFINITY {
                continue;
            }
            let joined = self.max[vector].max(*max);
            let (ours, theirs) = (exp(self.max[vector] - joined), exp(max - joined));
            self.max[vector] = joined;
            self.sum[vector] = self.sum[vector] * ours + next.sum[vector] * theirs;
            let range = vector * head_dim..(vector + 1) * head_dim;
            // Two roundings and not one: this runs outside the instruction sets that have a fused form.
            for (a, b) in self.weighted[range.clone()].iter_mut().zip(&next.weighted[range]) {
                *a = *a * ours + b * theirs;
            }
        }
    }
}

/// Attention of `tile` over `split`, with the best instruction set this CPU has.
pub fn attend<E: KvElement>(tile: &Tile<'_>, split: &Split<'_, E>) -> Partial {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
            // SAFETY: the CPU has both instruction sets, just checked. The function is otherwise safe code;
            // `every_instruction_set_gives_the_same_bits` runs it against the portable version.
            return unsafe { attend_avx512(tile, split) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return unsafe { attend_avx2(tile, split) };
        }
    }
    attend_portable(tile, split)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,fma")]
fn attend_avx512<E: KvElement>(tile: &Tile<'_>, split: &Split<'_, E>) -> Partial {
    attend_portable(tile, split)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn attend_avx2<E: KvElement>(tile: &Tile<'_>, split: &Split<'_, E>) -> Partial {
    attend_portable(tile, split)
}

/// The one source of all versions. On aarch64 this is already NEON with fused multiply-add.
#[inline(always)]
fn attend_portable<E: KvElement>(tile: &Tile<'_>, split: &Split<'_, E>) -> Partial {
    let vectors = tile.visible.len();
    let seen = tile.visible.iter().copied().max().unwrap_or(0);
    let mut partial = Partial::empty(vectors, tile.head_dim);
    let stride = seen.next_multiple_of(LANES);
    let mut weights = vec![0.0; vectors * stride];
    let mut rows = vec![0.0; LANES * tile.head_dim];
    let mut columns = vec![[0.0; LANES]; tile.head_dim];
    for base in (0..seen).step_by(LANES) {
        load_rows(split.keys, &split.offsets[base..seen.min(base + LANES)], tile.head_dim, &mut rows);
        transpose(&rows, &mut columns);
        scores(tile, &columns, base, stride, &mut weights);
    }
    for (vector, visible) in tile.visible.iter().copied().enumerate().filter(|(_, visible)| *visible > 0) {
        let weights = &mut weights[vector * stride..(vector + 1) * stride];
        (partial.max[vector], partial.sum[vector]) = softmax_weights(weights, visible);
    }
    for base in (0..seen).step_by(LANES) {
        load_rows(split.values, &split.offsets[base..seen.min(base + LANES)], tile.head_dim, &mut rows);
        accumulate(tile, &rows, &weights, base, stride, &mut partial.weighted);
    }
    partial
}

/// Widens up to 16 positions' vectors; what is not there reads as zero.
#[inline(always)]
fn load_rows<E: KvElement>(pool: &[E], offsets: &[usize], head_dim: usize, rows: &mut [f32]) {
    for (row, offset) in rows.chunks_exact_mut(head_dim).zip(offsets) {
        E::widen(&pool[*offset..*offset + head_dim], row);
    }
    rows[offsets.len() * head_dim..].fill(0.0);
}

#[inline(always)]
fn transpose(rows: &[f32], columns: &mut [Lanes]) {
    for (i, row) in rows.chunks_exact(columns.len()).enumerate() {
        for (column, value) in columns.iter_mut().zip(row) {
            column[i] = *value;
        }
    }
}

#[inline(always)]
fn scores(tile: &Tile<'_>, columns: &[Lanes], base: usize, stride: usize, weights: &mut [f32]) {
    for first in (0..tile.visible.len()).step_by(UNROLL) {
        if tile.visible[first..first + UNROLL].iter().all(|visible| *visible <= base) {
            continue;
        }
        let query = |u: usize| &tile.queries[(first + u) * tile.head_dim..][..tile.head_dim];
        let queries: [&[f32]; UNROLL] = [query(0), query(1), query(2), query(3)];
        let mut sums = [[0.0; LANES]; UNROLL];
        for (i, column) in columns.iter().enumerate() {
            for u in 0..UNROLL {
                let q = queries[u][i];
                for lane in 0..LANES {
                    sums[u][lane] = q.mul_add(column[lane], sums[u][lane]);
                }
            }
        }
        for (u, sum) in sums.iter().enumerate() {
            weights[(first + u) * stride + base..][..LANES].copy_from_slice(sum);
        }
    }
}

/// Turns scores into `exp(score - max)`, with zero for what is not visible; returns max and sum.
#[inline(always)]
fn softmax_weights(scores: &mut [f32], visible: usize) -> (f32, f32) {
    let max = scores[..visible].iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0; LANES];
    for (chunk, base) in scores.chunks_exact_mut(LANES).zip((0..).step_by(LANES)) {
        for (lane, score) in chunk.iter_mut().enumerate() {
            let weight = exp(*score - max);
            *score = if base + lane < visible { weight } else { 0.0 };
            sums[lane] += *score;
        }
    }
    (max, sum_pairwise(sums))
}

#[inline(always)]
fn sum_pairwise(mut sums: Lanes) -> f32 {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0]
}

#[inline(always)]
fn accumulate(
    tile: &Tile<'_>,
    rows: &[f32],
    weights: &[f32],
    base: usize,
    stride: usize,
    weighted: &mut [f32],
) {
    let head_dim = tile.head_dim;
    for first in (0..tile.visible.len()).step_by(UNROLL) {
        let seen = |u: usize| tile.visible[first + u].saturating_sub(base).min(LANES);
        let seen: [usize; UNROLL] = [seen(0), seen(1), seen(2), seen(3)];
        let (all, any) = seen.iter().fold((LANES, 0), |(all, any), s| (all.min(*s), any.max(*s)));
        for part in (0..head_dim).step_by(LANES) {
            let mut sums = [[0.0; LANES]; UNROLL];
            for u in 0..UNROLL {
                sums[u].copy_from_slice(&weighted[(first + u) * head_dim + part..][..LANES]);
            }
            for position in 0..any {
                let row = &rows[position * head_dim + part..][..LANES];
                for u in 0..UNROLL {
                    if position >= all && position >= seen[u] {
                        continue;
                    }
                    let weight = weights[(first + u) * stride + base + position];
                    for lane in 0..LANES {
                        sums[u][lane] = weight.mul_add(row[lane], sums[u][lane]);
                    }
                }
            }
            for u in 0..UNROLL {
                weighted[(first + u) * head_dim + part..][..LANES].copy_from_slice(&sums[u]);
            }
        }
    }
}

/// `e^x` for `x <= 0` (or minus infinity), within 2 ulp; the same bits everywhere, and branch-free so that it
/// vectorises. Range reduction and polynomial are those of Cephes' `expf` (S. Moshier, 1989).
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding it rounds to an integer in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const COEFFICIENTS: [f32; 6] =
        [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];
    // Below this the result would be subnormal; such weights change no sum.
    let x = x.max(-87.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let polynomial = COEFFICIENTS.iter().skip(1).fold(COEFFICIENTS[0], |p, c| p.mul_add(r, *c));
    let mantissa = polynomial.mul_add(r * r, r) + 1.0;
    // `shifted` holds n in its low bits; moved into the exponent field it scales by 2^n.
    f32::from_bits(mantissa.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small deterministic stream of floats in [-1, 1).
    fn floats(seed: u32, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn exp_is_within_two_ulp() {
        for i in 0..870_000 {
            let x = -(i as f32) / 10_000.0;
            let expected = f64::from(x).exp() as f32;
            let ulps = (exp(x).to_bits() as i64 - expected.to_bits() as i64).abs();
            assert!(ulps <= 2, "exp({x}) is {} and not {expected}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn attention_equals_a_plain_f64_softmax() {
        let (head_dim, visible) = (32, [37usize, 5, 21, 0]);
        let queries = floats(1, 4 * head_dim);
        let (keys, values) = (floats(2, 40 * head_dim), floats(3, 40 * head_dim));
        let offsets: Vec<usize> = (0..40).rev().map(|i| i * head_dim).collect();
        let tile = Tile { queries: &queries, visible: &visible, head_dim };
        let partial = attend(&tile, &Split { keys: &keys, values: &values, offsets: &offsets });
        for (vector, visible) in visible.iter().enumerate().filter(|(_, v)| **v > 0) {
            let query = &queries[vector * head_dim..][..head_dim];
            let dot = |o: &usize| -> f64 {
                query.iter().zip(&keys[*o..]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let weights: Vec<f64> = offsets[..*visible].iter().map(|o| dot(o).exp()).collect();
            let total: f64 = weights.iter().sum();
            for i in 0..head_dim {
                let weighted = weights.iter().zip(&offsets).map(|(w, o)| w * f64::from(values[o + i]));
                let expected = weighted.sum::<f64>() / total;
                let found = partial.weighted[vector * head_dim + i] / partial.sum[vector];
                assert!((f64::from(found) - expected).abs() < 1e-5, "{found} is not {expected}");
            }
        }
        assert_eq!(partial.max[3], f32::NEG_INFINITY);
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let head_dim = 64;
        let visible = [200usize, 199, 16, 1, 0, 77, 200, 3];
        let queries = floats(4, 8 * head_dim);
        let keys: Vec<f16> = floats(5, 256 * head_dim).into_iter().map(f16::from_f32).collect();
        let values: Vec<f16> = floats(6, 256 * head_dim).into_iter().map(f16::from_f32).collect();
        let offsets: Vec<usize> = (0..200).map(|i| (i * 7 % 256) * head_dim).collect();
        let tile = Tile { queries: &queries, visible: &visible, head_dim };
        let split = Split { keys: &keys, values: &values, offsets: &offsets };
        let portable = attend_portable(&tile, &split);
        assert_eq!(attend(&tile, &split), portable);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: just checked.
            assert_eq!(unsafe { attend_avx2(&tile, &split) }, portable);
        }
    }

    #[test]
    fn what_is_not_visible_is_not_touched() {
        let head_dim = 16;
        let queries = floats(7, 4 * head_dim);
        let mut keys = floats(8, 16 * head_dim);
        let mut values = floats(9, 16 * head_dim);
        keys[2 * head_dim..].fill(f32::NAN);
        values[2 * head_dim..].fill(f32::NAN);
        let offsets: Vec<usize> = (0..16).map(|i| i * head_dim).collect();
        // The second vector sees a position that the first must not: its NaN stays with the second.
        let tile = Tile { queries: &queries, visible: &[2, 3, 0, 0], head_dim };
        let partial = attend(&tile, &Split { keys: &keys, values: &values, offsets: &offsets });
        assert!(partial.weighted[..head_dim].iter().all(|x| x.is_finite()));
        assert!(partial.sum[0].is_finite());
        assert!(partial.weighted[head_dim..2 * head_dim].iter().all(|x| x.is_nan()));
    }
}
