//! Paged attention: reads K and V where they lie, through block tables.
//!
//! Invariant: context splits lie at fixed absolute positions and are joined in order, the same in decode and prefill; the
//! load decides only who computes them (rule 2 of ADR 0003).

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::AttentionShape;
use super::memory::Rows;
use super::pool::{Elements, Pool};
use crate::model::simd::Isa;
use crate::model::simd::attend::{KvElement, Partial, Queries, Scratch, Split, attend, join};
use crate::model::simd::tiles::{Tile, Tiles};
use crate::schedule::StepPlan;

/// Positions in a context split. Changing it changes bits: bump the numerics revision.
const SPLIT_TOKENS: usize = 256;
/// Query vectors that a task takes through a split together; their scores stay in the second-level cache.
const TILE_VECTORS: usize = 96;

/// A step's addresses, shared by all layers: where rows write and what they read.
pub struct StepAddresses {
    /// Position of each row, `[T]`.
    positions: Vec<u32>,
    /// Slot of each row, `[T]`.
    slots: Vec<u32>,
    sequences: Vec<SequenceRows>,
}

/// One sequence's rows in a step.
struct SequenceRows {
    rows: Range<usize>,
    /// Position of its first row.
    first_position: usize,
    blocks: Vec<u32>,
}

impl StepAddresses {
    /// Collects the addresses of `plan`.
    pub fn new(plan: &StepPlan) -> Self {
        let mut end = 0;
        let sequences = plan.sequences.iter().map(|sequence| {
            let rows = sequence.query_tokens as usize;
            end += rows;
            SequenceRows {
                rows: end - rows..end,
                first_position: sequence.context_tokens as usize - rows,
                blocks: sequence.blocks.iter().map(|block| block.0).collect(),
            }
        });
        Self { sequences: sequences.collect(), positions: plan.positions.clone(), slots: plan.slots.clone() }
    }

    /// Position of each row, `[T]`.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Slot of each row, `[T]`.
    pub fn slots(&self) -> &[u32] {
        &self.slots
    }
}

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

/// A few rows of one sequence for one KV head: the unit of work. Its tile has these rows, and a column for each element of
/// the query heads that share the KV head.
struct Task<'a> {
    sequence: &'a SequenceRows,
    kv_head: usize,
    out: Tile<'a>,
}

impl Task<'_> {
    /// Position of a row of the step.
    fn position(&self, row: usize) -> usize {
        self.sequence.first_position + row - self.sequence.rows.start
    }

    /// Positions up to its last row's.
    fn context(&self) -> usize {
        self.position(self.out.rows().end)
    }
}

impl Layer<'_> {
    fn run<E: KvElement>(&self, step: &StepAddresses, pool: KeysValues<'_, E>, out: &mut Rows) {
        let tasks = self.tasks(step, out);
        // Few tasks over long contexts share out their splits. Joined in order either way.
        let share_splits = tasks.len() < 2 * rayon::current_num_threads();
        tasks.into_par_iter().with_max_len(1).for_each(|mut task| match share_splits {
            true => self.in_parallel(&mut task, pool),
            false => self.in_order(&mut task, pool),
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
                    whose.push((sequence, kv_head));
                }
            }
        }
        let tiles = Tiles::new(&mut out.values, out.width).cut(cuts);
        let tasks = whose.into_iter().zip(tiles);
        tasks.map(|((sequence, kv_head), out)| Task { sequence, kv_head, out }).collect()
    }

    /// All splits of the task's context that any of its rows sees.
    fn splits(&self, task: &Task<'_>) -> Range<usize> {
        let first = self.visible(task.position(task.out.rows().start)).start;
        first / SPLIT_TOKENS..task.context().div_ceil(SPLIT_TOKENS)
    }

    /// Positions that a row at `position` sees.
    fn visible(&self, position: usize) -> Range<usize> {
        let end = position + 1;
        self.shape.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    fn in_order<E: KvElement>(&self, task: &mut Task<'_>, pool: KeysValues<'_, E>) {
        KEPT.with_borrow_mut(|kept| {
            self.take_queries(task, &mut kept.queries);
            let queries = std::mem::take(&mut kept.queries);
            let mut joined = std::mem::take(&mut kept.joined);
            let splits = self.splits(task);
            self.split(task, splits.start, &queries, pool, kept, &mut joined);
            for split in splits.skip(1) {
                let mut next = std::mem::take(&mut kept.next);
                self.split(task, split, &queries, pool, kept, &mut next);
                join(self.isa, &mut joined, &next);
                kept.next = next;
            }
            self.store(task, &joined);
            (kept.queries, kept.joined) = (queries, joined);
        });
    }

    fn in_parallel<E: KvElement>(&self, task: &mut Task<'_>, pool: KeysValues<'_, E>) {
        let mut queries = Vec::new();
        self.take_queries(task, &mut queries);
        let split = |split: usize| {
            let mut partial = Partial::default();
            KEPT.with_borrow_mut(|kept| self.split(task, split, &queries, pool, kept, &mut partial));
            partial
        };
        let partials: Vec<Partial> = self.splits(task).into_par_iter().with_max_len(1).map(split).collect();
        let mut partials = partials.into_iter();
        let mut joined = partials.next().expect("a row sees at least itself");
        partials.for_each(|next| join(self.isa, &mut joined, &next));
        self.store(task, &joined);
    }

    /// The task's query vectors times the scale, `[rows, group, head_dim]`.
    fn take_queries(&self, task: &Task<'_>, queries: &mut Vec<f32>) {
        queries.clear();
        for row in task.out.rows() {
            queries.extend(self.qkv.row(row)[task.out.columns()].iter().map(|q| q * self.shape.scale));
        }
    }

    /// Attention of the task's vectors over one split.
    fn split<E: KvElement>(
        &self,
        task: &Task<'_>,
        split: usize,
        vectors: &[f32],
        (keys, values): KeysValues<'_, E>,
        kept: &mut Kept,
        partial: &mut Partial,
    ) {
        let start = split * SPLIT_TOKENS;
        let end = task.context().min(start + SPLIT_TOKENS);
        let relative = |position: usize| position.clamp(start, end) - start;
        kept.visible.clear();
        for row in task.out.rows() {
            let visible = self.visible(task.position(row));
            let visible = relative(visible.start)..relative(visible.end);
            kept.visible.extend(std::iter::repeat_n(visible, self.shape.group()));
        }
        kept.offsets.clear();
        kept.offsets.extend((start..end).map(|position| self.offset(task, position)));
        let (head_dim, soft_cap) = (self.shape.head_dim, self.shape.soft_cap);
        let queries = Queries { vectors, visible: &kept.visible, head_dim, soft_cap };
        let split = Split { keys, values, offsets: &kept.offsets };
        attend(self.isa, &queries, &split, &mut kept.scratch, partial);
    }

    /// Where the head vector of `position` lies in K (and V) of the layer.
    fn offset(&self, task: &Task<'_>, position: usize) -> usize {
        let block = task.sequence.blocks[position / self.block_tokens] as usize;
        let slot = block * self.block_tokens + position % self.block_tokens;
        slot * self.shape.kv_width() + task.kv_head * self.shape.head_dim
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
