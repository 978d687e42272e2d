//! Writes a step's K and V into their slots.

use std::sync::Arc;

use candle_core::{CpuStorage, InplaceOp3, Layout, Result, bail};
use half::slice::HalfFloatSliceExt;

use super::StepAddresses;

/// In place on a layer's pool tensor; the other two tensors are K and V of the step, `[T, kv_heads, head_dim]`
/// f32 and contiguous.
pub struct WriteKv(pub Arc<StepAddresses>);

impl InplaceOp3 for WriteKv {
    fn name(&self) -> &'static str {
        "write-kv"
    }

    fn cpu_fwd(
        &self,
        pool: &mut CpuStorage,
        _: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<()> {
        let (k, v) = (rows(k, k_layout)?, rows(v, v_layout)?);
        match pool {
            CpuStorage::F16(pool) => self.scatter(pool, k, v, |to, from| to.convert_from_f32_slice(from)),
            CpuStorage::BF16(pool) => self.scatter(pool, k, v, |to, from| to.convert_from_f32_slice(from)),
            CpuStorage::F32(pool) => self.scatter(pool, k, v, |to, from| to.copy_from_slice(from)),
            _ => bail!("the block pool is f16, bf16 or f32"),
        }
        Ok(())
    }
}

impl WriteKv {
    fn scatter<E>(&self, pool: &mut [E], k: &[f32], v: &[f32], store: impl Fn(&mut [E], &[f32])) {
        let width = self.0.shape.token_elements();
        let (keys, values) = pool.split_at_mut(self.0.shape.half_elements());
        for (row, slot) in self.0.slots.iter().enumerate() {
            let (to, from) = (*slot as usize * width, row * width);
            store(&mut keys[to..to + width], &k[from..from + width]);
            store(&mut values[to..to + width], &v[from..from + width]);
        }
    }
}

/// The elements of a contiguous f32 tensor.
pub(super) fn rows<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("queries, keys and values must be contiguous, not {layout:?}"),
    }
}
