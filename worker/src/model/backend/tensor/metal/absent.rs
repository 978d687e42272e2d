//! Where there is no Metal there are no kernels.

use candle_core::{DType, Device, Result, Tensor};

use super::super::pool::TensorPool;
use crate::config::KvDtype;
use crate::model::backend::{AttentionShape, KvShape};
use crate::schedule::StepPlan;

/// There are none.
pub enum PagedKernels {}

/// There are none.
pub enum PagedStep {}

impl PagedKernels {
    /// None.
    pub fn checked(_: &Device, _: KvShape, _: usize) -> Option<Self> {
        None
    }

    /// Cannot be called.
    pub fn begin(&self, _: &StepPlan) -> Result<PagedStep> {
        match *self {}
    }

    /// Cannot be called.
    pub fn write(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &TensorPool,
        _: &AttentionShape,
        _: &PagedStep,
    ) -> Result<()> {
        match *self {}
    }

    /// Cannot be called.
    pub fn attend(&self, _: &Tensor, _: &TensorPool, _: &AttentionShape, _: &PagedStep) -> Result<Tensor> {
        match *self {}
    }
}

/// Nothing to compile.
pub fn compile_all(_: &Device, _: usize, _: KvDtype) -> Vec<(&'static str, std::result::Result<(), String>)> {
    Vec::new()
}

/// Candle's zeros.
pub fn zeros(dims: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::zeros(dims, dtype, device)
}
