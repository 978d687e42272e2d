//! The block pool's contents as candle tensors, one a layer: `[2, blocks, block_tokens, kv_heads, head_dim]`, 0 is K and 1 is V.
//!
//! Owns: writing a step's K and V into slots, gathering slots, and the copies to and from staging memory, whose layout is
//! for each layer all K and then all V, each `[blocks, block_tokens, kv_heads, head_dim]`, little endian. Everything here is
//! candle's own operations, which every device has.

use bytemuck::{NoUninit, cast_slice};
use candle_core::{DType, Device, Result, Tensor, WithDType, bail};
use half::{bf16, f16};

use super::metal::zeros;
use crate::config::KvDtype;
use crate::kv::BlockId;
use crate::model::backend::KvShape;

/// The pool's tensors.
pub struct TensorPool {
    layers: Vec<Tensor>,
    shape: KvShape,
}

/// Which rows of a half of a layer are meant, as candle's scatter wants to be told: once an element.
pub struct Targets(Tensor);

impl Targets {
    /// The rows `rows` of `width` elements each.
    fn new(rows: &[u32], width: usize, device: &Device) -> Result<Self> {
        let rows = Tensor::new(rows, device)?.unsqueeze(1)?;
        Ok(Self(rows.broadcast_as((rows.dim(0)?, width))?.contiguous()?))
    }
}

impl TensorPool {
    /// Allocates the whole pool, filled with zeros.
    pub fn new(shape: KvShape, device: &Device) -> Result<Self> {
        let dims = [2, shape.blocks, shape.block_tokens, shape.kv_heads, shape.head_dim];
        let layer = |_| zeros(&dims, tensor_type(shape.dtype), device);
        Ok(Self { layers: (0..shape.layers).map(layer).collect::<Result<_>>()?, shape })
    }

    /// Its extent.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// The whole tensor of a layer.
    #[cfg(all(target_os = "macos", feature = "metal"))]
    pub fn layer(&self, layer: usize) -> &Tensor {
        &self.layers[layer]
    }

    /// K (0) or V (1) of a layer as rows of `width` elements; a view.
    fn rows(&self, layer: usize, half: usize, width: usize) -> Result<Tensor> {
        self.layers[layer].narrow(0, half, 1)?.reshape((self.shape.half_elements() / width, width))
    }

    /// The slots that a step writes, for [`Self::write`].
    pub fn targets(&self, slots: &[u32]) -> Result<Targets> {
        Targets::new(slots, self.shape.token_elements(), self.layers[0].device())
    }

    /// Writes `keys` and `values`, `[T, kv_heads * head_dim]` f32, into the slots `targets`, rounded to the pool's type.
    pub fn write(&self, layer: usize, targets: &Targets, keys: &Tensor, values: &Tensor) -> Result<()> {
        for (half, new) in [keys, values].into_iter().enumerate() {
            let new = new.to_dtype(tensor_type(self.shape.dtype))?.contiguous()?;
            self.rows(layer, half, self.shape.token_elements())?.scatter_set(&targets.0, &new, 0)?;
        }
        Ok(())
    }

    /// K and V of `slots` in f32, each `[slots, kv_heads, head_dim]`.
    pub fn gather(&self, layer: usize, slots: &Tensor) -> Result<(Tensor, Tensor)> {
        let shape = (slots.dim(0)?, self.shape.kv_heads, self.shape.head_dim);
        let half = |half| {
            let rows = self.rows(layer, half, self.shape.token_elements())?.index_select(slots, 0)?;
            rows.to_dtype(DType::F32)?.reshape(shape)
        };
        Ok((half(0)?, half(1)?))
    }

    /// Writes zeros everywhere.
    pub fn touch(&self) -> Result<()> {
        self.layers.iter().try_for_each(Tensor::zero_set)
    }

    /// Elements of a block's K (or V) in one layer.
    fn half_block_elements(&self) -> usize {
        self.shape.block_tokens * self.shape.token_elements()
    }

    /// The contents of `blocks`, by way of one copy on the device: on Metal reading a view would copy all it is a view of.
    pub fn read_blocks(&self, blocks: &[BlockId]) -> Result<Vec<u8>> {
        if blocks.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<u32> = blocks.iter().map(|block| block.0).collect();
        let ids = Tensor::new(ids, self.layers[0].device())?;
        let mut halves = Vec::with_capacity(2 * self.layers.len());
        for layer in 0..self.layers.len() {
            for half in 0..2 {
                halves.push(self.rows(layer, half, self.half_block_elements())?.index_select(&ids, 0)?);
            }
        }
        let staging = Tensor::cat(&halves, 0)?.flatten_all()?;
        match self.shape.dtype {
            KvDtype::F16 => bytes::<f16>(&staging),
            KvDtype::Bf16 => bytes::<bf16>(&staging),
            KvDtype::F32 => bytes::<f32>(&staging),
        }
    }

    /// Replaces the contents of `blocks`, which nobody reads, by those in `staging` after its first `skip` blocks.
    pub fn write_blocks(&self, skip: usize, blocks: &[BlockId], staging: &[u8]) -> Result<()> {
        let block_bytes = self.shape.block_bytes();
        let count = staging.len() / block_bytes;
        if !staging.len().is_multiple_of(block_bytes) || skip + blocks.len() > count {
            let wanted = skip + blocks.len();
            bail!("{} bytes are not {wanted} blocks of {block_bytes} or more", staging.len());
        }
        if blocks.is_empty() {
            return Ok(());
        }
        let device = self.layers[0].device();
        let ids: Vec<u32> = blocks.iter().map(|block| block.0).collect();
        let targets = Targets::new(&ids, self.half_block_elements(), device)?;
        let half_bytes = self.shape.half_block_bytes();
        for (index, half) in staging.chunks_exact(count * half_bytes).enumerate() {
            let new = &half[skip * half_bytes..][..blocks.len() * half_bytes];
            let shape = [blocks.len(), self.half_block_elements()];
            let new = Tensor::from_raw_buffer(new, tensor_type(self.shape.dtype), &shape, device)?;
            self.rows(index / 2, index % 2, self.half_block_elements())?.scatter_set(&targets.0, &new, 0)?;
        }
        Ok(())
    }
}

/// Candle's name of the pool's type.
pub fn tensor_type(dtype: KvDtype) -> DType {
    match dtype {
        KvDtype::F16 => DType::F16,
        KvDtype::Bf16 => DType::BF16,
        KvDtype::F32 => DType::F32,
    }
}

fn bytes<E: WithDType + NoUninit>(tensor: &Tensor) -> Result<Vec<u8>> {
    Ok(cast_slice(&tensor.to_vec1::<E>()?).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u32]) -> Vec<BlockId> {
        ids.iter().copied().map(BlockId).collect()
    }

    /// Finite in every type: the high byte of an element stays small.
    fn fill(seed: usize, bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| ((i * 31 + seed) % 61) as u8).collect()
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else_changes() {
        for dtype in [KvDtype::F16, KvDtype::Bf16, KvDtype::F32] {
            let shape = KvShape { layers: 3, blocks: 5, block_tokens: 8, kv_heads: 2, head_dim: 16, dtype };
            let pool = TensorPool::new(shape, &Device::Cpu).expect("room");
            let bytes = shape.block_bytes();
            let read = |blocks: &[u32]| pool.read_blocks(&ids(blocks)).expect("read");
            pool.write_blocks(0, &ids(&[0, 1, 2, 3, 4]), &fill(1, 5 * bytes)).expect("written");
            assert_eq!(read(&[0, 1, 2, 3, 4]), fill(1, 5 * bytes));
            let before = read(&[0, 2, 4]);
            pool.write_blocks(0, &ids(&[3, 1]), &fill(7, 2 * bytes)).expect("written");
            assert_eq!(read(&[3, 1]), fill(7, 2 * bytes));
            assert_ne!(read(&[1, 3]), fill(7, 2 * bytes));
            assert_eq!(read(&[0, 2, 4]), before);
            assert!(read(&[]).is_empty());
            assert!(pool.write_blocks(0, &ids(&[1]), &[0; 3]).is_err());
            // One of the middle.
            let three = read(&[4, 3, 0]);
            pool.write_blocks(1, &ids(&[1]), &three).expect("written");
            assert!(pool.write_blocks(2, &ids(&[1, 2]), &three).is_err());
            assert_eq!(read(&[1, 4]), read(&[3, 4]));
            pool.touch().expect("zeros");
            assert_eq!(read(&[1]), vec![0; bytes]);
        }
    }

    #[test]
    fn slots_are_written_by_token_and_gathered_in_any_order() {
        let dtype = KvDtype::F16;
        let shape = KvShape { layers: 2, blocks: 3, block_tokens: 8, kv_heads: 2, head_dim: 16, dtype };
        let pool = TensorPool::new(shape, &Device::Cpu).expect("room");
        let row = |first: f32| Tensor::arange(first, first + 32.0, &Device::Cpu).expect("a row");
        let rows = |a: f32, b: f32| Tensor::stack(&[row(a), row(b)], 0).expect("two rows");
        let targets = pool.targets(&[17, 3]).expect("targets");
        pool.write(1, &targets, &rows(0.0, 100.0), &rows(200.0, 300.0)).expect("written");
        let slots = Tensor::new(&[3u32, 17, 3], &Device::Cpu).expect("slots");
        let (keys, values) = pool.gather(1, &slots).expect("gathered");
        let first = |tensor: &Tensor| -> Vec<f32> {
            let elements: Vec<f32> = tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("f32");
            elements.chunks_exact(32).map(|row| row[0]).collect()
        };
        assert_eq!(first(&keys), [100.0, 0.0, 100.0]);
        assert_eq!(first(&values), [300.0, 200.0, 300.0]);
        let (other, _) = pool.gather(0, &slots).expect("gathered");
        assert_eq!(first(&other), [0.0; 3]);
    }
}
