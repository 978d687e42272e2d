//! Copies whole blocks between the pool and staging memory, for whoever stores blocks elsewhere.
//!
//! Staging layout: for each layer all K and then all V, each `[blocks, block_tokens, kv_heads, head_dim]` in the pool's
//! element type, little endian. A block's K (and V) of a layer lies in one piece, so these are plain copies; layers are
//! shared out among the threads of the engine.

use bytemuck::{cast_slice, cast_slice_mut};
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, bail};
use rayon::prelude::*;

use super::KvTensors;
use crate::kv::BlockId;

impl KvTensors {
    /// Bytes of a block's K (or V) in one layer.
    fn half_block_bytes(&self) -> usize {
        self.shape.block_tokens * self.shape.token_elements() * self.element_bytes
    }

    /// Bytes of one block in all layers, K and V.
    pub fn block_bytes(&self) -> usize {
        2 * self.layers.len() * self.half_block_bytes()
    }

    /// The contents of `blocks`.
    pub fn read_blocks(&self, blocks: &[BlockId]) -> Result<Vec<u8>> {
        let layer_bytes = 2 * blocks.len() * self.half_block_bytes();
        let mut staging = vec![0; layer_bytes * self.layers.len()];
        if blocks.is_empty() {
            return Ok(staging);
        }
        staging.par_chunks_exact_mut(layer_bytes).zip(&self.layers).try_for_each(|(staging, layer)| {
            let (storage, _) = layer.storage_and_layout();
            let Storage::Cpu(storage) = &*storage else {
                bail!("blocks are read from the CPU's memory only")
            };
            let pool: &[u8] = match storage {
                CpuStorage::F16(pool) => cast_slice(pool),
                CpuStorage::BF16(pool) => cast_slice(pool),
                CpuStorage::F32(pool) => cast_slice(pool),
                _ => bail!("the block pool is f16, bf16 or f32"),
            };
            self.pieces((0, blocks.len()), blocks, |to, from, bytes| {
                staging[to..][..bytes].copy_from_slice(&pool[from..][..bytes])
            });
            Ok(())
        })?;
        Ok(staging)
    }

    /// Replaces the contents of `blocks`, which nobody reads, by those in `staging` after its first `skip` blocks.
    pub fn write_blocks(&self, skip: usize, blocks: &[BlockId], staging: &[u8]) -> Result<()> {
        let count = staging.len() / self.block_bytes();
        if !staging.len().is_multiple_of(self.block_bytes()) || skip + blocks.len() > count {
            let wanted = skip + blocks.len();
            bail!("{} bytes are not {wanted} blocks of {} or more", staging.len(), self.block_bytes());
        }
        if blocks.is_empty() {
            return Ok(());
        }
        let layer_bytes = staging.len() / self.layers.len();
        staging.par_chunks_exact(layer_bytes).zip(&self.layers).try_for_each(|(staging, layer)| {
            layer.inplace_op1(&WriteBlocks { tensors: self, place: (skip, count), blocks, staging })
        })
    }

    /// Writes zeros everywhere, so that the system hands out the memory now and not within somebody's first step.
    pub fn touch(&self) -> Result<()> {
        self.layers.par_iter().try_for_each(|layer| layer.inplace_op1(&Touch))
    }

    /// Calls `copy` with the offset in a layer's staging, the offset in the layer and the length in bytes of every piece of
    /// `blocks`. Staging has `place.1` blocks, of which `place.0` come before these.
    fn pieces(&self, place: (usize, usize), blocks: &[BlockId], mut copy: impl FnMut(usize, usize, usize)) {
        let (bytes, (skip, count)) = (self.half_block_bytes(), place);
        for (half, start) in [0, self.shape.half_elements() * self.element_bytes].into_iter().enumerate() {
            for (index, block) in blocks.iter().enumerate() {
                copy((half * count + skip + index) * bytes, start + block.0 as usize * bytes, bytes);
            }
        }
    }
}

/// One layer's share of [`KvTensors::write_blocks`].
struct WriteBlocks<'a> {
    tensors: &'a KvTensors,
    place: (usize, usize),
    blocks: &'a [BlockId],
    staging: &'a [u8],
}

impl InplaceOp1 for WriteBlocks<'_> {
    fn name(&self) -> &'static str {
        "write-blocks"
    }

    fn cpu_fwd(&self, pool: &mut CpuStorage, _: &Layout) -> Result<()> {
        let pool = bytes_mut(pool)?;
        self.tensors.pieces(self.place, self.blocks, |from, to, bytes| {
            pool[to..][..bytes].copy_from_slice(&self.staging[from..][..bytes]);
        });
        Ok(())
    }
}

struct Touch;

impl InplaceOp1 for Touch {
    fn name(&self) -> &'static str {
        "touch"
    }

    fn cpu_fwd(&self, pool: &mut CpuStorage, _: &Layout) -> Result<()> {
        bytes_mut(pool)?.fill(0);
        Ok(())
    }
}

fn bytes_mut(pool: &mut CpuStorage) -> Result<&mut [u8]> {
    match pool {
        CpuStorage::F16(pool) => Ok(cast_slice_mut(pool)),
        CpuStorage::BF16(pool) => Ok(cast_slice_mut(pool)),
        CpuStorage::F32(pool) => Ok(cast_slice_mut(pool)),
        _ => bail!("the block pool is f16, bf16 or f32"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::KvShape;
    use super::*;
    use crate::config::KvDtype;

    #[test]
    fn what_is_written_is_read_and_nothing_else_changes() {
        for dtype in [KvDtype::F16, KvDtype::Bf16, KvDtype::F32] {
            let shape = KvShape { blocks: 5, block_tokens: 8, kv_heads: 2, head_dim: 16 };
            let pool = KvTensors::new(3, shape, dtype, &Device::Cpu).expect("room");
            let ids = |ids: &[u32]| ids.iter().copied().map(BlockId).collect::<Vec<_>>();
            let bytes = pool.block_bytes();
            // Finite in every type: the high byte of an element stays small.
            let fill = |seed: usize, blocks: usize| -> Vec<u8> {
                (0..blocks * bytes).map(|i| ((i * 31 + seed) % 61) as u8).collect()
            };
            pool.write_blocks(0, &ids(&[0, 1, 2, 3, 4]), &fill(1, 5)).expect("written");
            let before = pool.read_blocks(&ids(&[0, 2, 4])).expect("read");
            pool.write_blocks(0, &ids(&[3, 1]), &fill(7, 2)).expect("written");
            assert_eq!(pool.read_blocks(&ids(&[3, 1])).expect("read"), fill(7, 2));
            assert_ne!(pool.read_blocks(&ids(&[1, 3])).expect("read"), fill(7, 2));
            assert_eq!(pool.read_blocks(&ids(&[0, 2, 4])).expect("read"), before);
            assert!(pool.read_blocks(&[]).expect("read").is_empty());
            assert!(pool.write_blocks(0, &ids(&[1]), &[0; 3]).is_err());
            // One of the middle.
            let read = pool.read_blocks(&ids(&[4, 3, 0])).expect("read");
            pool.write_blocks(1, &ids(&[1]), &read).expect("written");
            assert!(pool.write_blocks(2, &ids(&[1, 2]), &read).is_err());
            let both = |blocks: &[u32]| pool.read_blocks(&ids(blocks)).expect("read");
            assert_eq!(both(&[1, 4]), both(&[3, 4]));
        }
    }
}
