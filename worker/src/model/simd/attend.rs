//! Attention of some query vectors over one context split.
//!
//! The canonical order: a score is summed in 16 lanes, each a chain of fused multiply-adds over every sixteenth element of the head,
//! and then pairwise; softmax weights are summed
//! in 16 lanes by position within the split and then pairwise; values are accumulated by fused multiply-adds in position
//! order. What a vector must not see is skipped, never multiplied.

use std::ops::Range;

use half::{bf16, f16};

use super::vector::prefetch;
use super::{LANES, Lanes, Vector, for_each_isa};

/// Positions whose K and V are widened together; they and the vectors' sums stay in the first-level cache.
const STRIP: usize = 2 * LANES;

/// Vectors for which K is read row by row.
const FEW_VECTORS: usize = 8;

/// An element type of the block pool.
pub trait KvElement: Copy + Send + Sync + 'static {
    /// Widened; exact.
    fn widen<V: Vector>(from: &[Self; LANES]) -> V;
}

impl KvElement for f16 {
    #[inline(always)]
    fn widen<V: Vector>(from: &[Self; LANES]) -> V {
        V::from_f16(from)
    }
}

impl KvElement for bf16 {
    #[inline(always)]
    fn widen<V: Vector>(from: &[Self; LANES]) -> V {
        V::from_bf16(from)
    }
}

impl KvElement for f32 {
    #[inline(always)]
    fn widen<V: Vector>(from: &[Self; LANES]) -> V {
        V::load(from)
    }
}

/// Query vectors that read the same context split: as many of each of some KV heads that lie side by side.
pub struct Queries<'a> {
    /// `[heads, vectors, head_dim]`, scaled.
    pub vectors: &'a [f32],
    /// Which positions of the split each vector of a head sees, the same for every head.
    pub visible: &'a [Range<usize>],
    /// KV heads.
    pub heads: usize,
    /// Elements of a head, a multiple of 16.
    pub head_dim: usize,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
}

impl Queries<'_> {
    fn vector(&self, index: usize) -> &[f32] {
        &self.vectors[index * self.head_dim..][..self.head_dim]
    }

    /// The first vector of each head, and where the head begins in K and V.
    fn heads(&self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.heads).map(|head| (head * self.visible.len(), head * self.head_dim))
    }

    /// What all of some vectors see of `strip`, and what any of them sees.
    fn seen(&self, vectors: Range<usize>, strip: &Range<usize>) -> (Range<usize>, Range<usize>) {
        let clamp = |position: usize| position.clamp(strip.start, strip.end);
        let ranges = vectors
            .map(|vector| &self.visible[vector % self.visible.len()])
            .map(|range| clamp(range.start)..clamp(range.end));
        ranges.fold((strip.clone(), strip.end..strip.start), |(all, any), range| {
            let all = all.start.max(range.start)..all.end.min(range.end);
            if range.is_empty() {
                (all, any)
            } else {
                (all, any.start.min(range.start)..any.end.max(range.end))
            }
        })
    }
}

/// Where a split's positions are in the pool.
#[derive(Clone, Copy)]
pub struct Split<'a, E> {
    /// K of the whole layer.
    pub keys: &'a [E],
    /// V of the whole layer.
    pub values: &'a [E],
    /// Element offset of each position's first head, the same in K and V; at least as many as any vector sees.
    pub offsets: &'a [usize],
    /// Elements from an offset on to ask for ahead of their use: the heads' own, or those of the heads that are read next too.
    pub ahead: usize,
}

/// Softmax state of each query vector over one or more splits; `vectors` are those of all heads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Partial {
    /// Largest score; minus infinity where nothing was seen.
    pub max: Vec<f32>,
    /// Sum of `exp(score - max)`.
    pub sum: Vec<f32>,
    /// Values weighted by `exp(score - max)`, `[vectors, head_dim]`.
    pub weighted: Vec<f32>,
}

impl Partial {
    /// Forgets everything and takes the state of `vectors` vectors that have seen nothing.
    pub fn reset(&mut self, vectors: usize, head_dim: usize) {
        for (values, count, value) in [
            (&mut self.max, vectors, f32::NEG_INFINITY),
            (&mut self.sum, vectors, 0.0),
            (&mut self.weighted, vectors * head_dim, 0.0),
        ] {
            values.clear();
            values.resize(count, value);
        }
    }
}

/// Memory that a thread keeps between splits.
#[derive(Default)]
pub struct Scratch {
    /// Scores, then weights: `[heads * vectors, positions]`.
    weights: Vec<Lanes>,
    /// K of a strip: `[head_dim, 2]` vectors of 16 positions.
    columns: Vec<[Lanes; 2]>,
    /// V of a strip: `[STRIP, head_dim / 16]`.
    rows: Vec<Lanes>,
}

for_each_isa! {
    /// Attention of `queries` over `split`, into `partial`.
    pub fn attend<E: KvElement>(queries: &Queries<'_>, split: &Split<'_, E>, scratch: &mut Scratch, partial: &mut Partial) = attend_split
}

/// Calls `$piece` for `$count` vectors from `$from` on in pieces for which it is compiled, largest first.
macro_rules! in_pieces {
    ($from:expr, $count:expr, [$($size:literal),+], |$first:ident| $piece:ident $arguments:tt) => {
        let (mut $first, end) = ($from, $from + $count);
        $(
            while end - $first >= $size {
                $piece::<V, $size> $arguments;
                $first += $size;
            }
        )+
    };
}

/// Strip by strip through all heads, so that K, and then V, are read in the order they lie in.
#[inline(always)]
fn attend_split<V: Vector, E: KvElement>(
    queries: &Queries<'_>,
    split: &Split<'_, E>,
    scratch: &mut Scratch,
    partial: &mut Partial,
) {
    let (count, parts) = (queries.visible.len(), queries.head_dim / LANES);
    partial.reset(queries.heads * count, queries.head_dim);
    let seen = queries.visible.iter().filter(|visible| !visible.is_empty());
    let all = |all: Range<usize>, one: Range<usize>| all.start.min(one.start)..all.end.max(one.end);
    let Some(seen) = seen.cloned().reduce(all) else { return };
    // Strips begin at multiples of their length, so that a position's lane does not depend on who else looks.
    let strips = (seen.start / STRIP * STRIP..seen.end).step_by(STRIP);
    let chunks = seen.end.div_ceil(STRIP) * 2;
    scratch.weights.resize(scratch.weights.len().max(queries.heads * count * chunks), [0.0; LANES]);
    scratch.columns.resize(queries.head_dim, [[0.0; LANES]; 2]);
    scratch.rows.resize(STRIP * parts, [0.0; LANES]);

    for base in strips.clone() {
        let strip = base..seen.end.min(base + STRIP);
        for (from, offset) in queries.heads() {
            fetch_beside(queries, split, &strip, &seen, offset);
            let weights = &mut scratch.weights;
            if count <= FEW_VECTORS {
                in_pieces!(from, count, [4, 3, 2, 1], |first| scores_by_row(
                    queries, first, split, offset, &strip, weights, chunks
                ));
            } else {
                load_columns::<V, E>(split, offset, &strip, &mut scratch.columns);
                let columns = &scratch.columns;
                in_pieces!(from, count, [4, 3, 2, 1], |first| scores(
                    queries, first, &strip, columns, weights, chunks
                ));
            }
        }
    }
    for (vector, visible) in (0..queries.heads * count).zip(queries.visible.iter().cycle()) {
        if !visible.is_empty() {
            let weights = &mut scratch.weights[vector * chunks..][..chunks];
            (partial.max[vector], partial.sum[vector]) =
                softmax_weights::<V>(weights, visible, queries.soft_cap);
        }
    }
    let (weights, stride) = (scratch.weights.as_flattened(), chunks * LANES);
    let out = partial.weighted.as_chunks_mut().0;
    for base in strips {
        let strip = base..seen.end.min(base + STRIP);
        for (from, offset) in queries.heads() {
            fetch_after(queries, split, split.values, strip.end, offset);
            if count <= FEW_VECTORS {
                let rows = InPool { split, offset };
                in_pieces!(from, count, [4, 3, 2, 1], |first| accumulate(
                    queries, first, &strip, &rows, weights, stride, out
                ));
            } else {
                load_rows::<V, E>(split, offset, &strip, parts, &mut scratch.rows);
                let rows = Widened { rows: &scratch.rows, start: strip.start, parts };
                in_pieces!(from, count, [4, 3, 2, 1], |first| accumulate(
                    queries, first, &strip, &rows, weights, stride, out
                ));
            }
        }
    }
}

/// Asks for what is read after K of `strip`: K of the next strip, or the first strip of V.
#[inline(always)]
fn fetch_beside<E>(
    queries: &Queries<'_>,
    split: &Split<'_, E>,
    strip: &Range<usize>,
    seen: &Range<usize>,
    offset: usize,
) {
    if strip.end < seen.end {
        fetch_after(queries, split, split.keys, strip.end, offset);
    } else {
        fetch_after(queries, split, split.values, seen.start / STRIP * STRIP, offset);
    }
}

/// Asks for a head's share of the strip from `start` on.
#[inline(always)]
fn fetch_after<E>(queries: &Queries<'_>, split: &Split<'_, E>, pool: &[E], start: usize, offset: usize) {
    let head = offset / queries.head_dim;
    let share = |head: usize| (start + head * STRIP / queries.heads).min(split.offsets.len());
    for offset in &split.offsets[share(head)..share(head + 1)] {
        prefetch(&pool[*offset..pool.len().min(offset + split.ahead)]);
    }
}

/// Scores of `U` vectors for a strip, row by row of K: for few vectors, that do not pay for turning K.
#[inline(always)]
fn scores_by_row<V: Vector, const U: usize>(
    queries: &Queries<'_>,
    first: usize,
    split: &Split<'_, impl KvElement>,
    offset: usize,
    strip: &Range<usize>,
    weights: &mut [Lanes],
    chunks: usize,
) {
    let at = (offset, strip, chunks);
    match queries.head_dim / LANES {
        4 => products_by_row::<V, U, 4>(queries, first, split, at, weights),
        8 => products_by_row::<V, U, 8>(queries, first, split, at, weights),
        _ => products_by_row::<V, U, 1>(queries, first, split, at, weights),
    }
}

/// [`scores_by_row`]: `P` is the number of 16 elements that a head has, and then the vectors stay in registers; or it is 1.
#[inline(always)]
fn products_by_row<V: Vector, const U: usize, const P: usize>(
    queries: &Queries<'_>,
    first: usize,
    split: &Split<'_, impl KvElement>,
    (offset, strip, chunks): (usize, &Range<usize>, usize),
    weights: &mut [Lanes],
) {
    let vectors: [&[[Lanes; P]]; U] =
        std::array::from_fn(|u| queries.vector(first + u).as_chunks().0.as_chunks().0);
    let mut kept = [[V::zero(); P]; U];
    for u in 0..U {
        for part in 0..P {
            kept[u][part] = V::load(&vectors[u][0][part]);
        }
    }
    let mut products = [[V::zero(); LANES]; U];
    for (half, base) in (strip.start..strip.end).step_by(LANES).enumerate() {
        let positions = &split.offsets[base..strip.end.min(base + LANES)];
        for (row, position) in positions.iter().enumerate() {
            let key = &split.keys[position + offset..][..queries.head_dim];
            let key: &[[_; P]] = key.as_chunks().0.as_chunks().0;
            let mut sums = [V::zero(); U];
            for part in 0..P {
                let key = KvElement::widen::<V>(&key[0][part]);
                for u in 0..U {
                    sums[u] = kept[u][part].mul_add(key, sums[u]);
                }
            }
            if P == 1 {
                for step in 1..queries.head_dim / LANES {
                    let key = KvElement::widen::<V>(&key[step][0]);
                    for u in 0..U {
                        sums[u] = V::load(&vectors[u][step][0]).mul_add(key, sums[u]);
                    }
                }
            }
            for u in 0..U {
                products[u][row % LANES] = sums[u];
            }
        }
        for u in 0..U {
            V::sums(&products[u]).store(&mut weights[(first + u) * chunks + strip.start / LANES + half]);
        }
    }
}

/// Widens K of a strip and turns positions into lanes; positions that are not there read as zero.
#[inline(always)]
fn load_columns<V: Vector, E: KvElement>(
    split: &Split<'_, E>,
    offset: usize,
    strip: &Range<usize>,
    columns: &mut [[Lanes; 2]],
) {
    for half in 0..2 {
        let first = strip.start + half * LANES;
        let offsets = &split.offsets[first.min(strip.end)..strip.end.min(first + LANES)];
        for part in (0..columns.len()).step_by(LANES) {
            let mut rows = [V::zero(); LANES];
            for (row, position) in rows.iter_mut().zip(offsets) {
                *row = E::widen(sixteen(&split.keys[position + offset + part..]));
            }
            V::transpose(&mut rows);
            for (column, row) in columns[part..part + LANES].iter_mut().zip(rows) {
                row.store(&mut column[half]);
            }
        }
    }
}

/// Widens V of a strip.
#[inline(always)]
fn load_rows<V: Vector, E: KvElement>(
    split: &Split<'_, E>,
    offset: usize,
    strip: &Range<usize>,
    parts: usize,
    rows: &mut [Lanes],
) {
    for (row, position) in rows.chunks_exact_mut(parts).zip(&split.offsets[strip.clone()]) {
        for (part, lanes) in row.iter_mut().enumerate() {
            E::widen::<V>(sixteen(&split.values[position + offset + part * LANES..])).store(lanes);
        }
    }
}

#[inline(always)]
fn sixteen<E>(from: &[E]) -> &[E; LANES] {
    from.first_chunk().expect("a head has whole vectors")
}

/// Scores of `U` vectors for a strip, whose positions are lanes: the same sums as [`scores_by_row`]'s, element by element.
#[inline(always)]
fn scores<V: Vector, const U: usize>(
    queries: &Queries<'_>,
    first: usize,
    strip: &Range<usize>,
    columns: &[[Lanes; 2]],
    weights: &mut [Lanes],
    chunks: usize,
) {
    if queries.seen(first..first + U, strip).1.is_empty() {
        return;
    }
    let vectors: [&[f32]; U] = std::array::from_fn(|u| &queries.vector(first + u)[..columns.len()]);
    // The tree of `Vector::sum`: lanes i and i + 8, then what is 4, 2 and 1 apart.
    let mut sums = [[V::zero(); 2]; U];
    for one in 0..2 {
        let mut ones = [[V::zero(); 2]; U];
        for two in 0..2 {
            let mut twos = [[V::zero(); 2]; U];
            for four in 0..2 {
                let lane = one + 2 * two + 4 * four;
                let mut fours = products::<V, U>(&vectors, columns, lane);
                add(&mut fours, &products(&vectors, columns, lane + 8), false);
                add(&mut twos, &fours, four == 0);
            }
            add(&mut ones, &twos, two == 0);
        }
        add(&mut sums, &ones, one == 0);
    }
    for u in 0..U {
        let at = (first + u) * chunks + strip.start / LANES;
        sums[u][0].store(&mut weights[at]);
        sums[u][1].store(&mut weights[at + 1]);
    }
}

/// Every sixteenth product from `lane` on, added in order.
#[inline(always)]
fn products<V: Vector, const U: usize>(
    vectors: &[&[f32]; U],
    columns: &[[Lanes; 2]],
    lane: usize,
) -> [[V; 2]; U] {
    let mut sums = [[V::zero(); 2]; U];
    for element in (lane..columns.len()).step_by(LANES) {
        let [low, high] = &columns[element];
        let (low, high) = (V::load(low), V::load(high));
        for u in 0..U {
            let q = V::splat(vectors[u][element]);
            sums[u] = [q.mul_add(low, sums[u][0]), q.mul_add(high, sums[u][1])];
        }
    }
    sums
}

/// Adds `more`, or takes it where it is the first.
#[inline(always)]
fn add<V: Vector, const U: usize>(sums: &mut [[V; 2]; U], more: &[[V; 2]; U], first: bool) {
    for u in 0..U {
        for half in 0..2 {
            sums[u][half] = if first { more[u][half] } else { sums[u][half].add(more[u][half]) };
        }
    }
}

/// Turns scores into `exp(score - max)`, with zero for what is not visible; returns max and sum.
#[inline(always)]
fn softmax_weights<V: Vector>(
    scores: &mut [Lanes],
    visible: &Range<usize>,
    soft_cap: Option<f32>,
) -> (f32, f32) {
    let chunks = visible.start / LANES..visible.end.div_ceil(LANES);
    let mut largest = V::splat(f32::NEG_INFINITY);
    for index in chunks.clone() {
        if let Some(cap) = soft_cap {
            V::load(&scores[index]).capped(cap).store(&mut scores[index]);
        }
        hide(&mut scores[index], index * LANES, visible, f32::NEG_INFINITY);
        largest = V::load(&scores[index]).max(largest);
    }
    let max = largest.largest();
    let mut sums = V::zero();
    for index in chunks {
        V::load(&scores[index]).sub(V::splat(max)).exp().store(&mut scores[index]);
        hide(&mut scores[index], index * LANES, visible, 0.0);
        sums = sums.add(V::load(&scores[index]));
    }
    (max, sums.sum())
}

/// Replaces what is not visible of the 16 positions from `base` on.
#[inline(always)]
fn hide(lanes: &mut Lanes, base: usize, visible: &Range<usize>, value: f32) {
    if visible.start > base || visible.end < base + LANES {
        for (lane, at) in lanes.iter_mut().zip(base..) {
            if !visible.contains(&at) {
                *lane = value;
            }
        }
    }
}

/// Where values are read from.
trait ValueRows {
    /// The value at `position`, from element `16 * part` on.
    fn widened<V: Vector, const P: usize>(&self, position: usize, part: usize) -> [V; P];
}

/// Values as they lie in the pool, for few vectors.
struct InPool<'a, E> {
    split: &'a Split<'a, E>,
    /// Where the head begins.
    offset: usize,
}

impl<E: KvElement> ValueRows for InPool<'_, E> {
    #[inline(always)]
    fn widened<V: Vector, const P: usize>(&self, position: usize, part: usize) -> [V; P] {
        let at = self.split.offsets[position] + self.offset + part * LANES;
        let lanes = &self.split.values[at..][..P * LANES].as_chunks().0;
        let mut row = [V::zero(); P];
        for p in 0..P {
            row[p] = E::widen(&lanes[p]);
        }
        row
    }
}

/// Values of a strip, widened once for many vectors.
struct Widened<'a> {
    /// `[STRIP, parts]`.
    rows: &'a [Lanes],
    /// Position of the strip's first row.
    start: usize,
    parts: usize,
}

impl ValueRows for Widened<'_> {
    #[inline(always)]
    fn widened<V: Vector, const P: usize>(&self, position: usize, part: usize) -> [V; P] {
        let lanes = &self.rows[(position - self.start) * self.parts + part..][..P];
        let mut row = [V::zero(); P];
        for p in 0..P {
            row[p] = V::load(&lanes[p]);
        }
        row
    }
}

/// Adds the weighted values of a strip to the sums of `U` vectors.
#[inline(always)]
fn accumulate<V: Vector, const U: usize>(
    queries: &Queries<'_>,
    first: usize,
    strip: &Range<usize>,
    rows: &impl ValueRows,
    weights: &[f32],
    stride: usize,
    out: &mut [Lanes],
) {
    let (all, any) = queries.seen(first..first + U, strip);
    if any.is_empty() {
        return;
    }
    let parts = queries.head_dim / LANES;
    let mut part = 0;
    let at = Block { queries, first, parts, stride, all: &all, any: &any };
    while part + 4 <= parts {
        accumulate_parts::<V, U, 4>(&at, part, rows, weights, out);
        part += 4;
    }
    while part < parts {
        accumulate_parts::<V, U, 1>(&at, part, rows, weights, out);
        part += 1;
    }
}

/// A few vectors before a strip.
struct Block<'a> {
    queries: &'a Queries<'a>,
    first: usize,
    parts: usize,
    /// Weights a vector.
    stride: usize,
    /// What all the vectors see of the strip.
    all: &'a Range<usize>,
    /// What any of them sees.
    any: &'a Range<usize>,
}

#[inline(always)]
fn accumulate_parts<V: Vector, const U: usize, const P: usize>(
    at: &Block<'_>,
    part: usize,
    rows: &impl ValueRows,
    weights: &[f32],
    out: &mut [Lanes],
) {
    let place = |u: usize, p: usize| (at.first + u) * at.parts + part + p;
    let mut sums = [[V::zero(); P]; U];
    for u in 0..U {
        for p in 0..P {
            sums[u][p] = V::load(&out[place(u, p)]);
        }
    }
    if at.all == at.any {
        let weights: [&[f32]; U] =
            std::array::from_fn(|u| &weights[(at.first + u) * at.stride..][at.any.clone()]);
        for (index, position) in at.any.clone().enumerate() {
            let row: [V; P] = rows.widened(position, part);
            for u in 0..U {
                let weight = V::splat(weights[u][index]);
                for p in 0..P {
                    sums[u][p] = weight.mul_add(row[p], sums[u][p]);
                }
            }
        }
    } else {
        for position in at.any.clone() {
            let row: [V; P] = rows.widened(position, part);
            for u in 0..U {
                if at.queries.visible[(at.first + u) % at.queries.visible.len()].contains(&position) {
                    let weight = V::splat(weights[(at.first + u) * at.stride + position]);
                    for p in 0..P {
                        sums[u][p] = weight.mul_add(row[p], sums[u][p]);
                    }
                }
            }
        }
    }
    for u in 0..U {
        for p in 0..P {
            sums[u][p].store(&mut out[place(u, p)]);
        }
    }
}

for_each_isa! {
    /// Joins the state of the next split to that of the splits before it: the vectors from `first` on of `next`. Splits are joined
    /// in position order, on whichever thread they were computed.
    pub fn join(partial: &mut Partial, next: &Partial, first: usize) = join_next
}

#[inline(always)]
fn join_next<V: Vector>(partial: &mut Partial, next: &Partial, first: usize) {
    let head_dim = partial.weighted.len() / partial.max.len();
    for vector in 0..partial.max.len() {
        let (max, theirs) = (next.max[first + vector], first + vector);
        if max == f32::NEG_INFINITY {
            continue;
        }
        if partial.max[vector] == f32::NEG_INFINITY {
            (partial.max[vector], partial.sum[vector]) = (max, next.sum[theirs]);
            let theirs = &next.weighted[theirs * head_dim..][..head_dim];
            partial.weighted[vector * head_dim..][..head_dim].copy_from_slice(theirs);
            continue;
        }
        let joined = if partial.max[vector] > max { partial.max[vector] } else { max };
        let factor = |max: f32| V::splat(max - joined).exp();
        let (our_factor, their_factor) = (factor(partial.max[vector]), factor(max));
        partial.max[vector] = joined;
        let ours = our_factor.mul(V::splat(partial.sum[vector]));
        partial.sum[vector] = first_lane(their_factor.mul_add(V::splat(next.sum[theirs]), ours));
        let theirs = next.weighted[theirs * head_dim..][..head_dim].as_chunks().0;
        let ours = partial.weighted[vector * head_dim..][..head_dim].as_chunks_mut().0;
        for (ours, theirs) in ours.iter_mut().zip(theirs) {
            their_factor.mul_add(V::load(theirs), our_factor.mul(V::load(ours))).store(ours);
        }
    }
}

#[inline(always)]
fn first_lane<V: Vector>(vector: V) -> f32 {
    let mut lanes = [0.0; LANES];
    vector.store(&mut lanes);
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::simd::Isa;
    use crate::model::simd::testing::floats;

    fn attended<E: KvElement>(isa: Isa, queries: &Queries<'_>, split: &Split<'_, E>) -> Partial {
        let (mut scratch, mut partial) = (Scratch::default(), Partial::default());
        attend(isa, queries, split, &mut scratch, &mut partial);
        partial
    }

    #[test]
    fn attention_equals_a_plain_f64_softmax() {
        for (head_dim, soft_cap) in [(32, None), (64, None), (80, Some(2.0)), (16, None)] {
            let visible = [0..37usize, 0..5, 3..21, 0..0, 33..40];
            let vectors = floats(1, 5 * head_dim);
            let (keys, values) = (floats(2, 40 * head_dim), floats(3, 40 * head_dim));
            let offsets: Vec<usize> = (0..40).rev().map(|i| i * head_dim).collect();
            let queries = Queries { vectors: &vectors, visible: &visible, heads: 1, head_dim, soft_cap };
            let split = Split { keys: &keys, values: &values, offsets: &offsets, ahead: head_dim };
            let partial = attended(Isa::detect(), &queries, &split);
            for (index, visible) in visible.iter().enumerate().filter(|(_, v)| !v.is_empty()) {
                let query = queries.vector(index);
                let score = |o: &usize| -> f64 {
                    let dot: f64 =
                        query.iter().zip(&keys[*o..]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    soft_cap.map_or(dot, |cap| f64::from(cap) * (dot / f64::from(cap)).tanh())
                };
                let offsets = &offsets[visible.clone()];
                let weights: Vec<f64> = offsets.iter().map(|o| score(o).exp()).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..head_dim {
                    let weighted = weights.iter().zip(offsets).map(|(w, o)| w * f64::from(values[o + i]));
                    let expected = weighted.sum::<f64>() / total;
                    let found = partial.weighted[index * head_dim + i] / partial.sum[index];
                    assert!((f64::from(found) - expected).abs() < 1e-5, "{found} is not {expected}");
                }
            }
            assert_eq!(partial.max[3], f32::NEG_INFINITY);
        }
    }

    #[test]
    fn same_bits_on_every_instruction_set_and_in_every_company() {
        let head_dim = 96;
        let visible = [0..200usize, 0..199, 0..16, 0..1, 0..0, 60..77, 31..200, 0..3, 0..64, 199..200, 5..6];
        let vectors = floats(4, visible.len() * head_dim);
        let convert =
            |seed| -> Vec<f16> { floats(seed, 256 * head_dim).into_iter().map(f16::from_f32).collect() };
        let (keys, values) = (convert(5), convert(6));
        let offsets: Vec<usize> = (0..200).map(|i| (i * 7 % 256) * head_dim).collect();
        let queries = Queries { vectors: &vectors, visible: &visible, heads: 1, head_dim, soft_cap: None };
        let split = Split { keys: &keys, values: &values, offsets: &offsets, ahead: head_dim };
        let portable = attended(Isa::Portable, &queries, &split);
        let join_twice = |isa, mut partial: Partial| {
            join(isa, &mut partial, &portable, 0);
            partial
        };
        for isa in Isa::all_here() {
            assert_eq!(attended(isa, &queries, &split), portable, "{isa:?}");
            let joined = join_twice(isa, portable.clone());
            assert_eq!(joined, join_twice(Isa::Portable, portable.clone()), "{isa:?}");
            for (index, visible) in visible.iter().enumerate() {
                let alone = Queries {
                    vectors: queries.vector(index),
                    visible: std::slice::from_ref(visible),
                    heads: 1,
                    head_dim,
                    soft_cap: None,
                };
                let alone = attended(isa, &alone, &split);
                assert_eq!((alone.max[0], alone.sum[0]), (portable.max[index], portable.sum[index]));
                assert_eq!(
                    alone.weighted,
                    portable.weighted[index * head_dim..][..head_dim],
                    "{isa:?} {index}"
                );
            }
        }
    }

    #[test]
    fn heads_together_give_the_bits_of_each_alone() {
        let (heads, head_dim) = (3, 64);
        for visible in [vec![0..200, 40..170, 0..1], vec![0..90; 11]] {
            let count = visible.len();
            let vectors = floats(10, heads * count * head_dim);
            let (keys, values) = (floats(11, 256 * heads * head_dim), floats(12, 256 * heads * head_dim));
            let offsets = |head: usize| -> Vec<usize> {
                (0..200).map(|i| (i * 7 % 256) * heads * head_dim + head * head_dim).collect()
            };
            let (all, queries) = (offsets(0), |heads: Range<usize>| Queries {
                vectors: &vectors[heads.start * count * head_dim..heads.end * count * head_dim],
                visible: &visible,
                heads: heads.len(),
                head_dim,
                soft_cap: None,
            });
            let split = Split { keys: &keys, values: &values, offsets: &all, ahead: heads * head_dim };
            for isa in Isa::all_here() {
                let together = attended(isa, &queries(0..heads), &split);
                for head in 0..heads {
                    let of_head = offsets(head);
                    let alone =
                        attended(isa, &queries(head..head + 1), &Split { offsets: &of_head, ..split });
                    let range = head * count..(head + 1) * count;
                    assert_eq!(alone.max, together.max[range.clone()], "{isa:?}");
                    assert_eq!(alone.sum, together.sum[range.clone()]);
                    let range = range.start * head_dim..range.end * head_dim;
                    assert_eq!(alone.weighted, together.weighted[range]);
                }
            }
        }
    }

    #[test]
    fn what_is_not_visible_is_not_touched() {
        let head_dim = 16;
        let vectors = floats(7, 4 * head_dim);
        let mut keys = floats(8, 16 * head_dim);
        let mut values = floats(9, 16 * head_dim);
        keys[2 * head_dim..].fill(f32::NAN);
        values[2 * head_dim..].fill(f32::NAN);
        let offsets: Vec<usize> = (0..16).map(|i| i * head_dim).collect();
        // The second vector sees a position that the first must not: its NaN stays with the second.
        let queries = Queries {
            vectors: &vectors,
            visible: &[0..2, 0..3, 0..0, 1..2],
            heads: 1,
            head_dim,
            soft_cap: None,
        };
        let split = Split { keys: &keys, values: &values, offsets: &offsets, ahead: head_dim };
        let partial = attended(Isa::detect(), &queries, &split);
        assert!(partial.weighted[..head_dim].iter().all(|x| x.is_finite()));
        assert!(partial.sum[0].is_finite());
        assert!(partial.weighted[head_dim..2 * head_dim].iter().all(|x| x.is_nan()));
        assert!(partial.weighted[3 * head_dim..].iter().all(|x| x.is_finite()));
    }
}
