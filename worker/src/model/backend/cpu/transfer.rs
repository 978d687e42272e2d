//! Copies whole blocks between the pool and staging memory, for those who store blocks elsewhere.
//!
//! Staging layout: for each layer all K and then all V, each `[blocks, block_tokens, kv_heads, head_dim]` in the pool's
//! element type, little endian. A block's K (and V) of a layer lies in one piece, so these are plain copies; layers are
//! shared out among the threads of the engine.

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::pool::Pool;
use crate::kv::BlockId;
use crate::model::backend::KvShape;

impl Pool {
    /// The contents of `blocks`.
    pub fn read_blocks(&self, blocks: &[BlockId]) -> Vec<u8> {
        let shape = self.shape();
        let mut staging = vec![0; blocks.len() * shape.block_bytes()];
        if !blocks.is_empty() {
            let layer_bytes = staging.len() / shape.layers;
            staging.par_chunks_exact_mut(layer_bytes).zip(self.bytes()).for_each(|(staging, pool)| {
                pieces(shape, (0, blocks.len()), blocks, |to, from, bytes| {
                    staging[to..][..bytes].copy_from_slice(&pool[from..][..bytes]);
                });
            });
        }
        staging
    }

    /// Replaces the contents of `blocks`, which nobody reads, by those in `staging` after its first `skip` blocks.
    pub fn write_blocks(&mut self, skip: usize, blocks: &[BlockId], staging: &[u8]) -> Result<()> {
        let shape = self.shape();
        let count = staging.len() / shape.block_bytes();
        if !staging.len().is_multiple_of(shape.block_bytes()) || skip + blocks.len() > count {
            let wanted = skip + blocks.len();
            bail!("{} bytes are not {wanted} blocks of {} or more", staging.len(), shape.block_bytes());
        }
        if !blocks.is_empty() {
            let layers = staging.par_chunks_exact(staging.len() / shape.layers);
            layers.zip(self.bytes_mut()).for_each(|(staging, pool)| {
                pieces(shape, (skip, count), blocks, |from, to, bytes| {
                    pool[to..][..bytes].copy_from_slice(&staging[from..][..bytes]);
                });
            });
        }
        Ok(())
    }
}

/// Calls `copy` with the offset in a layer's staging, the offset in the layer and the length in bytes of every piece of
/// `blocks`. Staging has `place.1` blocks, of which `place.0` come before these.
fn pieces(
    shape: KvShape,
    place: (usize, usize),
    blocks: &[BlockId],
    mut copy: impl FnMut(usize, usize, usize),
) {
    let (bytes, (skip, count)) = (shape.half_block_bytes(), place);
    for (half, start) in [0, shape.blocks * bytes].into_iter().enumerate() {
        for (index, block) in blocks.iter().enumerate() {
            copy((half * count + skip + index) * bytes, start + block.0 as usize * bytes, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KvDtype;

    #[test]
    fn what_is_written_is_read_and_nothing_else_changes() {
        for dtype in [KvDtype::F16, KvDtype::Bf16, KvDtype::F32] {
            let shape = KvShape { layers: 3, blocks: 5, block_tokens: 8, kv_heads: 2, head_dim: 16, dtype };
            let mut pool = Pool::new(shape).expect("there is room");
            let ids = |ids: &[u32]| ids.iter().copied().map(BlockId).collect::<Vec<_>>();
            let bytes = shape.block_bytes();
            // Finite in every type: the high byte of an element stays small.
            let fill = |seed: usize, blocks: usize| -> Vec<u8> {
                (0..blocks * bytes).map(|i| ((i * 31 + seed) % 61) as u8).collect()
            };
            pool.write_blocks(0, &ids(&[0, 1, 2, 3, 4]), &fill(1, 5)).expect("written");
            let before = pool.read_blocks(&ids(&[0, 2, 4]));
            pool.write_blocks(0, &ids(&[3, 1]), &fill(7, 2)).expect("written");
            assert_eq!(pool.read_blocks(&ids(&[3, 1])), fill(7, 2));
            assert_ne!(pool.read_blocks(&ids(&[1, 3])), fill(7, 2));
            assert_eq!(pool.read_blocks(&ids(&[0, 2, 4])), before);
            assert!(pool.read_blocks(&[]).is_empty());
            assert!(pool.write_blocks(0, &ids(&[1]), &[0; 3]).is_err());
            // One of the middle.
            let read = pool.read_blocks(&ids(&[4, 3, 0]));
            pool.write_blocks(1, &ids(&[1]), &read).expect("written");
            assert!(pool.write_blocks(2, &ids(&[1, 2]), &read).is_err());
            assert_eq!(pool.read_blocks(&ids(&[1, 4])), pool.read_blocks(&ids(&[3, 4])));
        }
    }
}
