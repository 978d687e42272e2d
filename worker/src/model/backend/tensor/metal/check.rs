//! Whether the kernels are right on the machine they run on: a few sequences over a small pool, beside gathering.

use candle_core::{Device, Result, Tensor, bail};

use super::super::gather::Gathering;
use super::super::pool::TensorPool;
use super::kernels::PagedKernels;
use crate::kv::BlockId;
use crate::model::backend::{AttentionShape, KvShape};
use crate::schedule::{PlannedSequence, SequenceId, StepPlan};

/// Rows and context of the sequences: decode within and across partitions, and prefill from the start and later.
const SEQUENCES: [(u32, u32); 5] = [(1, 1), (1, 290), (3, 40), (70, 70), (40, 300)];
/// Tokens in a block of the small pool.
const BLOCK_TOKENS: usize = 16;
/// Largest difference of an element of the output, all inputs being within 1.
const TOLERANCE: f32 = 2e-3;
/// Largest difference of a stored element: one bit of bf16, should a device round the other way.
const ROUNDING: f32 = 1.0 / 128.0;

/// Refuses `kernels` that do not give what gathering gives.
pub fn check(kernels: &PagedKernels) -> Result<()> {
    let plan = plan();
    let blocks = plan.sequences.iter().map(|sequence| sequence.blocks.len()).sum();
    let kv = KvShape { layers: 1, blocks, block_tokens: BLOCK_TOKENS, ..kernels.kv() };
    let device = kernels.device();
    let (ours, theirs) = (TensorPool::new(kv, device)?, TensorPool::new(kv, device)?);
    // Everything that sequences have seen before this step; the same in both pools.
    let old: Vec<u32> = (0..(blocks * BLOCK_TOKENS) as u32).collect();
    let keys = noise(old.len(), kv.token_elements(), 1, device)?;
    let values = noise(old.len(), kv.token_elements(), 2, device)?;
    for pool in [&ours, &theirs] {
        pool.write(0, &pool.targets(&old)?, &keys, &values)?;
    }
    let heads = kernels.group() * kv.kv_heads;
    let keys = noise(plan.rows(), kv.token_elements(), 3, device)?;
    let values = noise(plan.rows(), kv.token_elements(), 4, device)?;
    let queries = noise(plan.rows(), heads * kv.head_dim, 5, device)?;
    let step = kernels.begin(&plan)?;
    for (window, soft_cap) in [(None, None), (Some(33), Some(2.0))] {
        let shape = AttentionShape {
            layer: 0,
            heads,
            kv_heads: kv.kv_heads,
            head_dim: kv.head_dim,
            scale: 1.0 / (kv.head_dim as f32).sqrt(),
            window,
            soft_cap,
            norm_epsilon: 0.0,
        };
        kernels.write(&keys, &values, &ours, &shape, &step)?;
        theirs.write(0, &theirs.targets(&plan.slots)?, &keys, &values)?;
        let all = Tensor::new(old.as_slice(), device)?;
        let (found, wanted) = (ours.gather(0, &all)?, theirs.gather(0, &all)?);
        equal("K", &found.0, &wanted.0, ROUNDING)?;
        equal("V", &found.1, &wanted.1, ROUNDING)?;
        let found = kernels.attend(&queries, &ours, &shape, &step)?;
        let wanted = Gathering::new(&plan, BLOCK_TOKENS, window, device)?.attend(&queries, &ours, &shape)?;
        equal("attention", &found, &wanted, TOLERANCE)?;
    }
    Ok(())
}

fn equal(what: &str, found: &Tensor, wanted: &Tensor, tolerance: f32) -> Result<()> {
    let differences: Vec<f32> = (found - wanted)?.flatten_all()?.to_vec1()?;
    // NaN is over every tolerance.
    let over = |difference: &&f32| difference.is_nan() || difference.abs() > tolerance;
    match differences.iter().find(over) {
        Some(difference) => bail!("their {what} differs from candle's by {difference}"),
        None => Ok(()),
    }
}

/// Numbers in [-1, 1) that look random, `[rows, width]`.
fn noise(rows: usize, width: usize, seed: u32, device: &Device) -> Result<Tensor> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..rows * width).map(|_| next()).collect();
    Tensor::from_vec(values, (rows, width), device)
}

/// The sequences, each with blocks of its own in descending order.
fn plan() -> StepPlan {
    let mut plan = StepPlan::default();
    let mut next_block = 0;
    for ((query_tokens, context_tokens), id) in SEQUENCES.into_iter().zip(0..) {
        let count = context_tokens.div_ceil(BLOCK_TOKENS as u32);
        let blocks: Vec<BlockId> = (next_block..next_block + count).rev().map(BlockId).collect();
        next_block += count;
        for position in context_tokens - query_tokens..context_tokens {
            let (block, offset) = (position / BLOCK_TOKENS as u32, position % BLOCK_TOKENS as u32);
            plan.tokens.push(0);
            plan.positions.push(position);
            plan.slots.push(blocks[block as usize].0 * BLOCK_TOKENS as u32 + offset);
        }
        let id = SequenceId(id);
        plan.sequences.push(PlannedSequence { id, query_tokens, context_tokens, blocks, samples: 1 });
    }
    plan
}
