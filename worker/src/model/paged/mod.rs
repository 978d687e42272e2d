//! K and V in candle tensors, and the two custom ops that touch them.
//!
//! Owns: one tensor a layer, `[2, blocks, block_tokens, kv_heads, head_dim]` (0 is K, 1 is V), written by
//! [`WriteKv`] and read by [`PagedAttention`]; whole blocks come and go through `transfer`. Nothing else reads or
//! writes them, so a Metal backend is one more `…_fwd` in each op.
//!
//! Invariants: attention reads K and V only from here, after rounding to the pool's type, also within its own
//! chunk; slots that hold nothing yet are never read.

mod attention;
mod simd;
mod transfer;
mod write;

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

pub use attention::PagedAttention;
pub use write::WriteKv;

use crate::config::KvDtype;
use crate::schedule::StepPlan;

/// Extent of the pool's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Blocks in the pool.
    pub blocks: usize,
    /// Tokens in a block.
    pub block_tokens: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head, a multiple of 16.
    pub head_dim: usize,
}

impl KvShape {
    /// Elements of one token's K (or V).
    fn token_elements(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Elements of all of K, which is where V starts.
    fn half_elements(&self) -> usize {
        self.blocks * self.block_tokens * self.token_elements()
    }

    /// Bytes a token takes in the whole pool of a model with `layers` layers.
    pub fn token_bytes(layers: usize, kv_heads: usize, head_dim: usize, dtype: KvDtype) -> usize {
        2 * layers * kv_heads * head_dim * tensor_type(dtype).size_in_bytes()
    }
}

fn tensor_type(dtype: KvDtype) -> DType {
    match dtype {
        KvDtype::F16 => DType::F16,
        KvDtype::Bf16 => DType::BF16,
        KvDtype::F32 => DType::F32,
    }
}

/// The block pool's contents.
pub struct KvTensors {
    layers: Vec<Tensor>,
    shape: KvShape,
    element_bytes: usize,
}

impl KvTensors {
    /// Allocates the whole pool.
    pub fn new(layers: usize, shape: KvShape, dtype: KvDtype, device: &Device) -> Result<Self> {
        let dims = [2, shape.blocks, shape.block_tokens, shape.kv_heads, shape.head_dim];
        let zeros = || Tensor::zeros(&dims, tensor_type(dtype), device);
        let element_bytes = tensor_type(dtype).size_in_bytes();
        Ok(Self { layers: (0..layers).map(|_| zeros()).collect::<Result<_>>()?, shape, element_bytes })
    }

    /// The tensor of one layer.
    pub fn layer(&self, index: usize) -> &Tensor {
        &self.layers[index]
    }

    /// The pool's extent.
    pub fn shape(&self) -> KvShape {
        self.shape
    }
}

/// A step's addresses, shared by all layers: where rows write and what they read.
pub struct StepAddresses {
    /// Slot of each row, `[T]`.
    slots: Vec<u32>,
    sequences: Vec<SequenceRows>,
    shape: KvShape,
}

/// One sequence's rows in a step.
struct SequenceRows {
    /// Its first row.
    first_row: usize,
    rows: usize,
    /// Position of its first row.
    first_position: usize,
    blocks: Vec<u32>,
}

impl StepAddresses {
    /// Collects the addresses of `plan` over a pool of `shape`.
    pub fn new(plan: &StepPlan, shape: KvShape) -> Arc<Self> {
        let mut first_row = 0;
        let sequences = plan.sequences.iter().map(|sequence| {
            let rows = sequence.query_tokens as usize;
            first_row += rows;
            SequenceRows {
                first_row: first_row - rows,
                rows,
                first_position: sequence.context_tokens as usize - rows,
                blocks: sequence.blocks.iter().map(|block| block.0).collect(),
            }
        });
        Arc::new(Self { sequences: sequences.collect(), slots: plan.slots.clone(), shape })
    }
}
