//! Paged attention: reads K and V where they lie, through block tables; sequences that begin with the same blocks read them
//! together.
//!
//! Invariant: context splits lie at fixed absolute positions and are joined in order, the same in decode and prefill; the
//! load decides only who computes them (rule 2 of ADR 0003).

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::AttentionShape;
use super::addresses::{SPLIT_TOKENS, SequenceRows, SharedSplit, StepAddresses};
use super::memory::Rows;
use super::pool::{Elements, Pool};
use crate::model::simd::Isa;
use crate::model::simd::attend::{KvElement, Partial, Queries, Scratch, Split, attend, join};
use crate::model::simd::tiles::{Tile, Tiles};

/// Query vectors that a task takes through a split together; their scores stay in the second-level cache.
const TILE_VECTORS: usize = 96;

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

impl Layer<'_> {
    fn run<E: KvElement>(&self, step: &StepAddresses, pool: KeysValues<'_, E>, out: &mut Rows) {
        // A window seldom reaches back to what is shared.
        let together = self.shape.window.is_none();
        let shared = if together { self.shared_splits(step, pool) } else { Vec::new() };
        let tasks = self.tasks(step, out);
        // Few tasks over long contexts share out their splits. Joined in order either way.
        let share_splits = tasks.len() < 2 * rayon::current_num_threads();
        tasks.into_par_iter().with_max_len(1).for_each(|mut task| {
            if together && task.part.sequence.shares {
                self.join_shared(&mut task, step, &shared);
            } else if share_splits {
                self.in_parallel(&mut task, pool);
            } else {
                self.in_order(&mut task, pool);
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
            self.split(parts, task.kv_head, splits.start, pool, kept, &mut joined);
            for split in splits.skip(1) {
                self.split(parts, task.kv_head, split, pool, kept, &mut next);
                join(self.isa, &mut joined, &next, 0);
            }
            self.store(task, &joined);
            (kept.joined, kept.next) = (joined, next);
        });
    }

    fn in_parallel<E: KvElement>(&self, task: &mut Task<'_>, pool: KeysValues<'_, E>) {
        let parts = std::slice::from_ref(&task.part);
        let split = |split: usize| self.split_alone(parts, task.kv_head, split, pool);
        let partials: Vec<Partial> =
            self.splits(&task.part).into_par_iter().with_max_len(1).map(split).collect();
        let mut partials = partials.into_iter();
        let mut joined = partials.next().expect("a row sees at least itself");
        partials.for_each(|next| join(self.isa, &mut joined, &next, 0));
        self.store(task, &joined);
    }

    /// Every shared split of the step for every KV head: `[shared, kv_heads]`.
    fn shared_splits<E: KvElement>(&self, step: &StepAddresses, pool: KeysValues<'_, E>) -> Vec<Partial> {
        let heads = self.shape.kv_heads;
        let compute = |index: usize| {
            let SharedSplit { split, sequences } = &step.shared[index / heads];
            let part = |sequence: &usize| {
                let sequence = &step.sequences[*sequence];
                Part { sequence, rows: sequence.rows.clone() }
            };
            let parts: Vec<Part<'_>> = sequences.iter().map(part).collect();
            self.split_alone(&parts, index % heads, *split, pool)
        };
        (0..step.shared.len() * heads).into_par_iter().with_max_len(1).map(compute).collect()
    }

    /// Joins what [`Self::shared_splits`] found for the task's sequence.
    fn join_shared(&self, task: &mut Task<'_>, step: &StepAddresses, shared: &[Partial]) {
        let vectors = task.part.rows.len() * self.shape.group();
        let mut joined = Partial::default();
        joined.reset(vectors, self.shape.head_dim);
        for (found, SharedSplit { sequences, .. }) in shared.chunks(self.shape.kv_heads).zip(&step.shared) {
            let mut first = 0;
            for sequence in sequences.iter().map(|index| &step.sequences[*index]) {
                if std::ptr::eq(sequence, task.part.sequence) {
                    join(self.isa, &mut joined, &found[task.kv_head], first);
                }
                first += sequence.rows.len() * self.shape.group();
            }
        }
        self.store(task, &joined);
    }

    /// [`Self::split`] with memory of its own.
    fn split_alone<E: KvElement>(
        &self,
        parts: &[Part<'_>],
        kv_head: usize,
        split: usize,
        pool: KeysValues<'_, E>,
    ) -> Partial {
        let mut partial = Partial::default();
        KEPT.with_borrow_mut(|kept| self.split(parts, kv_head, split, pool, kept, &mut partial));
        partial
    }

    /// Attention of the vectors of `parts` over one split, which lies in the same blocks for all of them.
    fn split<E: KvElement>(
        &self,
        parts: &[Part<'_>],
        kv_head: usize,
        split: usize,
        (keys, values): KeysValues<'_, E>,
        kept: &mut Kept,
        partial: &mut Partial,
    ) {
        let (head_dim, group) = (self.shape.head_dim, self.shape.group());
        let columns = kv_head * group * head_dim..(kv_head + 1) * group * head_dim;
        let start = split * SPLIT_TOKENS;
        let context = parts.iter().map(Part::context).max().unwrap_or(0);
        let end = context.min(start + SPLIT_TOKENS);
        let relative = |position: usize| position.clamp(start, end) - start;
        kept.queries.clear();
        kept.visible.clear();
        for (part, row) in parts.iter().flat_map(|part| part.rows.clone().map(move |row| (part, row))) {
            kept.queries.extend(self.qkv.row(row)[columns.clone()].iter().map(|q| q * self.shape.scale));
            let visible = self.visible(part.sequence.position(row));
            let visible = relative(visible.start)..relative(visible.end);
            kept.visible.extend(std::iter::repeat_n(visible, group));
        }
        let offset = |position: usize| {
            let block = parts[0].sequence.blocks[position / self.block_tokens] as usize;
            let slot = block * self.block_tokens + position % self.block_tokens;
            slot * self.shape.kv_width() + kv_head * head_dim
        };
        kept.offsets.clear();
        kept.offsets.extend((start..end).map(offset));
        let soft_cap = self.shape.soft_cap;
        let queries = Queries { vectors: &kept.queries, visible: &kept.visible, head_dim, soft_cap };
        // A thread goes on with the next head of the same tokens, and memory likes to be read in the order it lies in.
        let ahead = (self.shape.kv_heads - kv_head) * head_dim;
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
