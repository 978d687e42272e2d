//! Paged attention on the CPU: reads K and V where they lie, through block tables.
//!
//! Invariant: context splits lie at fixed absolute positions and are joined in order, the same in decode and
//! prefill; the load decides only who computes them (rule 2 of ADR 0003).

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, bail};
use rayon::prelude::*;

use super::simd::{KvElement, Partial, Split, Tile, UNROLL, attend};
use super::write::rows;
use super::{SequenceRows, StepAddresses};

/// Positions in a context split. Changing it changes bits: bump the numerics revision.
const SPLIT_TOKENS: usize = 256;
/// Query vectors that a task takes through a split together; their scores stay in the second-level cache.
const TILE_VECTORS: usize = 32;

/// Reads queries `[T, heads, head_dim]` f32 and a layer's pool tensor; gives `[T, heads, head_dim]` f32.
pub struct PagedAttention {
    /// The step's addresses.
    pub addresses: Arc<StepAddresses>,
    /// Query heads.
    pub heads: usize,
}

impl CustomOp2 for PagedAttention {
    fn name(&self) -> &'static str {
        "paged-attention"
    }

    fn cpu_fwd(
        &self,
        queries: &CpuStorage,
        layout: &Layout,
        pool: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let queries = rows(queries, layout)?;
        let out = match pool {
            CpuStorage::F16(pool) => self.run(queries, pool),
            CpuStorage::BF16(pool) => self.run(queries, pool),
            CpuStorage::F32(pool) => self.run(queries, pool),
            _ => bail!("the block pool is f16, bf16 or f32"),
        };
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// A few rows of one sequence for one KV head: the unit of work.
struct Task<'a> {
    sequence: &'a SequenceRows,
    kv_head: usize,
    /// Rows within the sequence's rows.
    first: usize,
    rows: usize,
}

impl PagedAttention {
    fn group(&self) -> usize {
        self.heads / self.addresses.shape.kv_heads
    }

    fn run<E: KvElement>(&self, queries: &[f32], pool: &[E]) -> Vec<f32> {
        let tasks = self.tasks();
        let results: Vec<Vec<f32>> =
            tasks.par_iter().map(|task| self.attend_task(task, queries, pool)).collect();
        let mut out = vec![0.0; queries.len()];
        let width = self.group() * self.addresses.shape.head_dim;
        for (task, result) in tasks.iter().zip(&results) {
            for (row, values) in result.chunks_exact(width).take(task.rows).enumerate() {
                out[self.offset(task, row)..][..width].copy_from_slice(values);
            }
        }
        out
    }

    fn tasks(&self) -> Vec<Task<'_>> {
        let tile_rows = (TILE_VECTORS / self.group()).max(1);
        let mut tasks = Vec::new();
        for sequence in &self.addresses.sequences {
            for first in (0..sequence.rows).step_by(tile_rows) {
                let rows = tile_rows.min(sequence.rows - first);
                let kv_heads = 0..self.addresses.shape.kv_heads;
                tasks.extend(kv_heads.map(|kv_head| Task { sequence, kv_head, first, rows }));
            }
        }
        tasks
    }

    /// Element offset in queries and output of the group of query heads that `task` computes for its `row`.
    fn offset(&self, task: &Task<'_>, row: usize) -> usize {
        let row = task.sequence.first_row + task.first + row;
        (row * self.heads + task.kv_head * self.group()) * self.addresses.shape.head_dim
    }

    /// Attention of a task's rows over their whole context, `[rows, group, head_dim]` (padded at the end).
    fn attend_task<E: KvElement>(&self, task: &Task<'_>, queries: &[f32], pool: &[E]) -> Vec<f32> {
        let shape = self.addresses.shape;
        let vectors = task.rows * self.group();
        let scaled = self.scaled_queries(task, queries);
        let position = |vector: usize| task.sequence.first_position + task.first + vector / self.group();
        let context = position(vectors - 1) + 1;
        let (keys, values) = pool.split_at(shape.half_elements());
        let attend_split = |split: usize| {
            let start = split * SPLIT_TOKENS;
            let visible = |vector| (position(vector) + 1).saturating_sub(start).min(SPLIT_TOKENS);
            let mut visible: Vec<usize> = (0..vectors).map(visible).collect();
            visible.resize(vectors.next_multiple_of(UNROLL), 0);
            let offsets = self.offsets(task, start..context.min(start + SPLIT_TOKENS));
            let tile = Tile { queries: &scaled, visible: &visible, head_dim: shape.head_dim };
            attend(&tile, &Split { keys, values, offsets: &offsets })
        };
        // Few rows over a long context: the splits are shared out. Joined in order either way.
        let partials: Vec<Partial> =
            (0..context.div_ceil(SPLIT_TOKENS)).into_par_iter().map(attend_split).collect();
        let mut partials = partials.into_iter();
        let mut joined = partials.next().expect("a row sees at least itself");
        partials.for_each(|next| joined.join(&next));
        for (values, sum) in joined.weighted.chunks_exact_mut(shape.head_dim).zip(&joined.sum) {
            values.iter_mut().for_each(|value| *value /= sum);
        }
        joined.weighted
    }

    /// The task's query vectors times `1 / sqrt(head_dim)`, padded with zero vectors.
    fn scaled_queries(&self, task: &Task<'_>, queries: &[f32]) -> Vec<f32> {
        let head_dim = self.addresses.shape.head_dim;
        let width = self.group() * head_dim;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut scaled = Vec::with_capacity((task.rows * self.group()).next_multiple_of(UNROLL) * head_dim);
        for row in 0..task.rows {
            scaled.extend(queries[self.offset(task, row)..][..width].iter().map(|q| q * scale));
        }
        scaled.resize((task.rows * self.group()).next_multiple_of(UNROLL) * head_dim, 0.0);
        scaled
    }

    /// Where the head vectors of `positions` lie in K (and V) of the layer.
    fn offsets(&self, task: &Task<'_>, positions: std::ops::Range<usize>) -> Vec<usize> {
        let shape = self.addresses.shape;
        let offset = |position: usize| {
            let block = task.sequence.blocks[position / shape.block_tokens] as usize;
            let slot = block * shape.block_tokens + position % shape.block_tokens;
            slot * shape.token_elements() + task.kv_head * shape.head_dim
        };
        positions.map(offset).collect()
    }
}
