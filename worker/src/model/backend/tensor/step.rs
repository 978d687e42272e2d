//! Addresses of a step on the device, shared by all its layers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device, Result, Tensor, TensorId};

use super::TensorRope;
use super::gather::Gathering;
use super::metal::{PagedKernels, PagedStep};
use super::pool::{Targets, TensorPool};
use crate::schedule::StepPlan;

/// Where rows are in their sequences, what they write and what they read.
pub struct TensorStep {
    /// Positions, `[T]`.
    positions: Tensor,
    /// Rows of the ropes' tables; models have one rope or two.
    turns: Mutex<HashMap<TensorId, (Tensor, Tensor)>>,
    /// For what writes K and V, and attends.
    pub(super) addresses: Addresses,
}

/// What those need who write into the pool and attend over it.
pub(super) enum Addresses {
    /// Our kernels on Metal.
    Paged(PagedStep),
    /// Candle's own operations.
    Gathered(GatheredStep),
}

/// Addresses for gathering.
pub(super) struct GatheredStep {
    plan: StepPlan,
    block_tokens: usize,
    device: Device,
    /// Slots that the step writes.
    pub targets: Targets,
    /// By window, made when the first layer asks; models have one or two.
    gatherings: Mutex<HashMap<Option<usize>, Arc<Gathering>>>,
}

impl TensorStep {
    /// Takes the addresses of `plan` to the device.
    pub(super) fn new(
        plan: &StepPlan,
        pool: &TensorPool,
        kernels: Option<&PagedKernels>,
        device: &Device,
    ) -> Result<Self> {
        let addresses = match kernels {
            Some(kernels) => Addresses::Paged(kernels.begin(plan)?),
            None => Addresses::Gathered(GatheredStep {
                block_tokens: pool.shape().block_tokens,
                device: device.clone(),
                targets: pool.targets(&plan.slots)?,
                gatherings: Mutex::default(),
                plan: plan.clone(),
            }),
        };
        let positions = Tensor::new(plan.positions.as_slice(), device)?;
        Ok(Self { positions, turns: Mutex::default(), addresses })
    }

    /// Cosines and sines of the step's rows, `[T, head_dim / 2]`.
    pub(super) fn turns(&self, rope: &TensorRope) -> Result<(Tensor, Tensor)> {
        made_once(&self.turns, rope.cos.id(), || {
            Ok((rope.cos.index_select(&self.positions, 0)?, rope.sin.index_select(&self.positions, 0)?))
        })
    }
}

impl GatheredStep {
    /// What layers with `window` gather.
    pub fn gathering(&self, window: Option<usize>) -> Result<Arc<Gathering>> {
        made_once(&self.gatherings, window, || {
            Gathering::new(&self.plan, self.block_tokens, window, &self.device).map(Arc::new)
        })
    }
}

/// The value under `key`, made by the first who asks.
fn made_once<K: Eq + std::hash::Hash, V: Clone>(
    made: &Mutex<HashMap<K, V>>,
    key: K,
    make: impl FnOnce() -> Result<V>,
) -> Result<V> {
    // A map that a panic left is still a map.
    let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(value) = made.get(&key) {
        return Ok(value.clone());
    }
    let value = make()?;
    made.insert(key, value.clone());
    Ok(value)
}
