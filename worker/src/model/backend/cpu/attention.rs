//! Paged attention: reads K and V where they lie, through block tables; sequences that begin with the same blocks read them
//! together.
//!
//! Invariant: context splits lie at fixed absolute positions and are joined in order, the same in decode and prefill; the
//! load decides only who computes them (rule 2 of ADR 0003).

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::AttentionShape;
use super::addresses::{SPLIT_TOKENS, SequenceRows, SplitReaders, StepAddresses};
use super::memory::Rows;
use super::pool::{Elements, Pool};
use crate::model::simd::Isa;
use crate::model::simd::attend::{KvElement, Partial, Queries, Scratch, Split, attend, join};
use crate::model::simd::tiles::{Tile, Tiles};

/// Query vectors that a task takes through a split together; their scores stay in the second-level cache.
const TILE_VECTORS: usize = 96;

/// Query vectors of a KV head up to which a task takes all heads through a split, so that K and V are read in the order they
/// lie in. With more of them computing takes longer than reading.
const HEADS_TOGETHER_VECTORS: usize = 8;

/// What a thread keeps between tasks.
#[derive(Default)]
struct Kept {
    scratch: Scratch,
    queries: Vec<f32>,
    offsets: Vec<usize>,
    visible: Vec<Range<usize>>,
    joined: Partial,
    next: Partial,
}

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

/// Attention of the queries in `qkv` over the pool, into `out`.
pub fn run(isa: Isa, shape: &AttentionShape, step: &StepAddresses, pool: &Pool, qkv: &Rows, out: &mut Rows) {
    let layer = Layer { isa, shape, qkv, block_tokens: pool.shape().block_tokens };
    let half = pool.shape().half_elements();
    match pool.layer(shape.layer) {
        Elements::F16(elements) => layer.run(step, elements.split_at(half), out),
        Elements::Bf16(elements) => layer.run(step, elements.split_at(half), out),
        Elements::F32(elements) => layer.run(step, elements.split_at(half), out),
    }
}

/// A layer's K and V.
type KeysValues<'a, E> = (&'a [E], &'a [E]);

struct Layer<'a> {
    isa: Isa,
    shape: &'a AttentionShape,
    qkv: &'a Rows,
    block_tokens: usize,
}

/// Some rows of one sequence.
#[derive(Clone)]
struct Part<'a> {
    sequence: &'a SequenceRows,
    rows: Range<usize>,
}

impl Part<'_> {
    /// Positions up to its last row's.
    fn context(&self) -> usize {
        self.sequence.position(self.rows.end)
    }
}

/// A part for one KV head, with its rectangle of the output: a column for each element of the query heads that share the head.
struct Task<'a> {
    part: Part<'a>,
    kv_head: usize,
    out: Tile<'a>,
}

/// What every KV head found in a split.
enum HeadPartials {
    /// Nobody sees it.
    Unseen,
    /// `vectors` vectors of each head, one head after the other.
    Together {
        partial: Partial,
        vectors: usize,
    },
    Each(Vec<Partial>),
}

impl HeadPartials {
    /// Where a head's vectors are: in which state, and from which on.
    fn of(&self, kv_head: usize) -> (&Partial, usize) {
        match self {
            Self::Unseen => unreachable!("who sees a split has it computed"),
            Self::Together { partial, vectors } => (partial, kv_head * vectors),
            Self::Each(partials) => (&partials[kv_head], 0),
        }
    }
}

impl Layer<'_> {
    fn run<E: KvElement>(&self, step: &StepAddresses, pool: KeysValues<'_, E>, out: &mut Rows) {
        let partials = self.splits_of_many(step, pool);
        self.tasks(step, out).into_par_iter().with_max_len(1).for_each(|mut task| {
            if task.part.sequence.by_split.is_empty() {
                self.in_order(&mut task, pool);
            } else {
                self.join_splits(&mut task, step, &partials);
            }
        });
    }

    fn tasks<'a>(&self, step: &'a StepAddresses, out: &'a mut Rows) -> Vec<Task<'a>> {
        let tile_rows = (TILE_VECTORS / self.shape.group()).max(1);
        let width = self.shape.group() * self.shape.head_dim;
        let mut cuts = Vec::new();
        let mut whose = Vec::new();
        for sequence in &step.sequences {
            for first in sequence.rows.clone().step_by(tile_rows) {
                let rows = first..sequence.rows.end.min(first + tile_rows);
                for kv_head in 0..self.shape.kv_heads {
                    cuts.push((rows.clone(), kv_head * width..(kv_head + 1) * width));
                    whose.push((Part { sequence, rows: rows.clone() }, kv_head));
                }
            }
        }
        let tiles = Tiles::new(&mut out.values, out.width).cut(cuts);
        whose.into_iter().zip(tiles).map(|((part, kv_head), out)| Task { part, kv_head, out }).collect()
    }

    /// All splits of the part's context that any of its rows sees.
    fn splits(&self, part: &Part<'_>) -> Range<usize> {
        let first = self.visible(part.sequence.position(part.rows.start)).start;
        first / SPLIT_TOKENS..part.context().div_ceil(SPLIT_TOKENS)
    }

    /// Positions that a row at `position` sees.
    fn visible(&self, position: usize) -> Range<usize> {
        let end = position + 1;
        self.shape.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    fn in_order<E: KvElement>(&self, task: &mut Task<'_>, pool: KeysValues<'_, E>) {
        KEPT.with_borrow_mut(|kept| {
            let mut joined = std::mem::take(&mut kept.joined);
            let mut next = std::mem::take(&mut kept.next);
            let splits = self.splits(&task.part);
            let parts = std::slice::from_ref(&task.part);
            let head = task.kv_head..task.kv_head + 1;
            self.split(parts, head.clone(), splits.start, pool, kept, &mut joined);
            for split in splits.skip(1) {
                self.split(parts, head.clone(), split, pool, kept, &mut next);
                join(self.isa, &mut joined, &next, 0);
            }
            self.store(task, &joined);
            (kept.joined, kept.next) = (joined, next);
        });
    }

    /// Every split of the sequences that are read split by split. A thread goes on with the next head of the same tokens.
    fn splits_of_many<E: KvElement>(
        &self,
        step: &StepAddresses,
        pool: KeysValues<'_, E>,
    ) -> Vec<HeadPartials> {
        let heads = self.shape.kv_heads;
        // Where there is little to share out, every head is a task.
        let plenty = step.splits.len() >= 2 * rayon::current_num_threads();
        let compute = |SplitReaders { split, sequences }: &SplitReaders| {
            let part = |sequence: &usize| {
                let sequence = &step.sequences[*sequence];
                Part { sequence, rows: sequence.rows.clone() }
            };
            let parts: Vec<Part<'_>> = sequences.iter().map(part).collect();
            if !parts.iter().any(|part| self.splits(part).contains(split)) {
                return HeadPartials::Unseen;
            }
            let vectors = self.shape.group() * parts.iter().map(|part| part.rows.len()).sum::<usize>();
            if plenty && vectors <= HEADS_TOGETHER_VECTORS {
                let partial = self.split_alone(&parts, 0..heads, *split, pool);
                return HeadPartials::Together { partial, vectors };
            }
            let head = |head| self.split_alone(&parts, head..head + 1, *split, pool);
            HeadPartials::Each((0..heads).into_par_iter().with_max_len(1).map(head).collect())
        };
        step.splits.par_iter().with_max_len(1).map(compute).collect()
    }

    /// Joins what [`Self::splits_of_many`] found for the task's sequence.
    fn join_splits(&self, task: &mut Task<'_>, step: &StepAddresses, partials: &[HeadPartials]) {
        let group = self.shape.group();
        let seen = self.splits(&task.part);
        let mut joined = Partial::default();
        joined.reset(task.part.rows.len() * group, self.shape.head_dim);
        for place in &task.part.sequence.by_split {
            if seen.contains(&step.splits[place.index].split) {
                let (partial, first) = partials[place.index].of(task.kv_head);
                join(self.isa, &mut joined, partial, first + place.first_row * group);
            }
        }
        self.store(task, &joined);
    }

    /// [`Self::split`] with memory of its own.
    fn split_alone<E: KvElement>(
        &self,
        parts: &[Part<'_>],
        kv_heads: Range<usize>,
        split: usize,
        pool: KeysValues<'_, E>,
    ) -> Partial {
        let mut partial = Partial::default();
        KEPT.with_borrow_mut(|kept| self.split(parts, kv_heads, split, pool, kept, &mut partial));
        partial
    }

    /// Attention of the vectors of `parts` over one split, which lies in the same blocks for all of them.
    fn split<E: KvElement>(
        &self,
        parts: &[Part<'_>],
        kv_heads: Range<usize>,
        split: usize,
        (keys, values): KeysValues<'_, E>,
        kept: &mut Kept,
        partial: &mut Partial,
    ) {
        let (head_dim, group) = (self.shape.head_dim, self.shape.group());
        let start = split * SPLIT_TOKENS;
        let context = parts.iter().map(Part::context).max().unwrap_or(0);
        let end = context.min(start + SPLIT_TOKENS);
        let relative = |position: usize| position.clamp(start, end) - start;
        let rows = || parts.iter().flat_map(|part| part.rows.clone().map(move |row| (part, row)));
        kept.visible.clear();
        for (part, row) in rows() {
            let visible = self.visible(part.sequence.position(row));
            let visible = relative(visible.start)..relative(visible.end);
            kept.visible.extend(std::iter::repeat_n(visible, group));
        }
        kept.queries.clear();
        for head in kv_heads.clone() {
            let columns = head * group * head_dim..(head + 1) * group * head_dim;
            for (_, row) in rows() {
                let queries = &self.qkv.row(row)[columns.clone()];
                kept.queries.extend(queries.iter().map(|q| q * self.shape.scale));
            }
        }
        kept.offsets.clear();
        while start + kept.offsets.len() < end {
            let position = start + kept.offsets.len();
            let (block, slot) = (position / self.block_tokens, position % self.block_tokens);
            let first = parts[0].sequence.blocks[block] as usize * self.block_tokens + slot;
            let slots = first..first + (self.block_tokens - slot).min(end - position);
            let offset = |slot| slot * self.shape.kv_width() + kv_heads.start * head_dim;
            kept.offsets.extend(slots.map(offset));
        }
        let queries = Queries {
            vectors: &kept.queries,
            visible: &kept.visible,
            heads: kv_heads.len(),
            head_dim,
            soft_cap: self.shape.soft_cap,
        };
        // A thread goes on with the next head of the same tokens, and memory likes to be read in the order it lies in.
        let ahead = (self.shape.kv_heads - kv_heads.start) * head_dim;
        let split = Split { keys, values, offsets: &kept.offsets, ahead };
        attend(self.isa, &queries, &split, &mut kept.scratch, partial);
    }

    fn store(&self, task: &mut Task<'_>, joined: &Partial) {
        let (head_dim, group) = (self.shape.head_dim, self.shape.group());
        let rows = joined.weighted.chunks_exact(group * head_dim).zip(joined.sum.chunks_exact(group));
        for (row, (values, sums)) in task.out.rows().zip(rows) {
            let heads = task.out.row(row).chunks_exact_mut(head_dim).zip(values.chunks_exact(head_dim));
            for ((out, values), sum) in heads.zip(sums) {
                out.iter_mut().zip(values).for_each(|(out, value)| *out = value / sum);
            }
        }
    }
}
