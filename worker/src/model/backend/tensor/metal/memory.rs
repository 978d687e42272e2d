//! Memory of the block pool on Metal.

use candle_core::op::BackpropOp;
use candle_core::{DType, Device, MetalStorage, Result, Storage, Tensor};

/// A tensor of zeros in a buffer of just its size. Candle's own zeros lie in a buffer rounded up to a power of two, which
/// would cost a pool up to twice its budget.
pub fn zeros(dims: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    let Device::Metal(metal) = device else { return Tensor::zeros(dims, dtype, device) };
    let count = dims.iter().product();
    let buffer = metal.new_private_buffer(count, dtype, "block pool")?;
    {
        // The guard locks candle's encoder.
        let mut blit = metal.blit_command_encoder()?;
        blit.fill_buffer(&buffer, (0, buffer.length()), 0);
    }
    let storage = Storage::Metal(MetalStorage::new(buffer, metal.clone(), count, dtype));
    Ok(Tensor::from_storage(storage, dims, BackpropOp::none(), false))
}
