//! The block pool's memory: for each layer `[2, blocks, block_tokens, kv_heads, head_dim]`, where 0 is K and 1 is V.
//!
//! Invariants: attention reads K and V only from here, after rounding to the pool's type, also within its own step;
//! slots that hold nothing yet are never read.

use bytemuck::{cast_slice, cast_slice_mut};
use candle_core::Result;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::memory::Rows;
use super::{AttentionShape, KvShape};
use crate::config::KvDtype;
use crate::model::simd::pages::LargePages;

/// Rows from which on K and V are written by two threads.
const SHARED_ROWS: usize = 64;

/// All layers.
pub struct Pool {
    shape: KvShape,
    memory: LargePages<u8>,
    layer_bytes: usize,
}

/// One layer.
pub enum Elements<'a> {
    /// The default.
    F16(&'a [f16]),
    /// For models trained in it.
    Bf16(&'a [bf16]),
    /// For comparisons.
    F32(&'a [f32]),
}

impl Pool {
    /// A pool that nothing was written to. Fails where the system has no room.
    pub fn new(shape: KvShape) -> Result<Self> {
        let layer_bytes = shape.blocks * shape.block_bytes() / shape.layers;
        Ok(Self { shape, memory: LargePages::zeroed(layer_bytes * shape.layers)?, layer_bytes })
    }

    /// Its extent.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// One layer.
    pub fn layer(&self, index: usize) -> Elements<'_> {
        let layer = &self.memory[index * self.layer_bytes..][..self.layer_bytes];
        match self.shape.dtype {
            KvDtype::F16 => Elements::F16(cast_slice(layer)),
            KvDtype::Bf16 => Elements::Bf16(cast_slice(layer)),
            KvDtype::F32 => Elements::F32(cast_slice(layer)),
        }
    }

    /// The bytes of every layer.
    pub(super) fn bytes(&self) -> impl IndexedParallelIterator<Item = &[u8]> {
        self.memory.par_chunks_exact(self.layer_bytes)
    }

    /// The same, to be written.
    pub(super) fn bytes_mut(&mut self) -> impl IndexedParallelIterator<Item = &mut [u8]> {
        self.memory.par_chunks_exact_mut(self.layer_bytes)
    }

    /// Writes zeros everywhere, so that the system hands out the memory now and not within somebody's first step.
    pub fn touch(&mut self) {
        self.bytes_mut().for_each(|bytes| bytes.fill(0));
    }

    /// Writes K and V of every row of `qkv` into its slot of `shape`'s layer.
    pub fn write(&mut self, shape: &AttentionShape, slots: &[u32], qkv: &Rows) {
        let at = Scatter { shape, slots, qkv, half: self.shape.half_elements() };
        let layer = &mut self.memory[shape.layer * self.layer_bytes..][..self.layer_bytes];
        match self.shape.dtype {
            KvDtype::F16 => at.run::<f16>(cast_slice_mut(layer), |to, from| to.convert_from_f32_slice(from)),
            KvDtype::Bf16 => {
                at.run::<bf16>(cast_slice_mut(layer), |to, from| to.convert_from_f32_slice(from))
            }
            KvDtype::F32 => at.run::<f32>(cast_slice_mut(layer), |to, from| to.copy_from_slice(from)),
        }
    }
}

struct Scatter<'a> {
    shape: &'a AttentionShape,
    slots: &'a [u32],
    qkv: &'a Rows,
    /// Elements of all of K.
    half: usize,
}

impl Scatter<'_> {
    fn run<E: Send>(&self, elements: &mut [E], store: impl Fn(&mut [E], &[f32]) + Sync) {
        let (keys, values) = elements.split_at_mut(self.half);
        let width = self.shape.kv_width();
        let first = self.shape.query_width();
        let write = |elements: &mut [E], column: usize| {
            for (row, slot) in self.slots.iter().enumerate() {
                store(
                    &mut elements[*slot as usize * width..][..width],
                    &self.qkv.row(row)[column..column + width],
                );
            }
        };
        if self.slots.len() < SHARED_ROWS {
            write(keys, first);
            write(values, first + width);
        } else {
            rayon::join(|| write(keys, first), || write(values, first + width));
        }
    }
}
