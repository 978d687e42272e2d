//! The backend of every device that candle knows: Metal, CUDA, and its CPU in tests.
//!
//! Products, norms, rope and activations are candle's own operations. Attention is gathered by them on every device; on
//! Metal our own kernels do it, once they have compiled and have been found right on the machine itself.
//!
//! Invariants: no slot that was never written is read; one operation's temporary objects are gone before the next one's.
//! Candle picks kernels by the number of rows, so bits depend on the batch here, and so may greedy text.
//!
//! Candle 0.11.1 keeps freed Metal buffers for later use and exposes no cap on them; it lets them go whenever the host
//! waits for the device, which happens at the end of every step, so they are bounded by what a step needs.

mod drained;
mod gather;
mod metal;
mod pool;
mod step;
mod weights;

use candle_core::quantized::QTensor;
use candle_core::{D, Device, Result, Tensor, bail};
use candle_nn::ops::rms_norm;
use candle_nn::rotary_emb::rope_thd;

use super::{Activation, AttentionShape, Backend, KvShape};
use crate::config::WeightsMode;
use crate::kv::BlockId;
use crate::schedule::StepPlan;

use drained::drained;
use metal::PagedKernels;
pub use metal::compile_all;
use pool::TensorPool;
use step::Addresses;
pub use step::TensorStep;
pub use weights::{TensorLinear, TensorTable};

/// Computes with candle's tensors on one of its devices.
pub struct TensorBackend {
    device: Device,
    weights: WeightsMode,
    pool: TensorPool,
    kernels: Option<PagedKernels>,
}

/// Cosines and sines of every position, `[positions, head_dim / 2]`.
pub struct TensorRope {
    cos: Tensor,
    sin: Tensor,
}

impl TensorBackend {
    /// Allocates a pool of `shape` on `device`; weights will be held as `weights` says, and there are `heads` query heads.
    pub fn new(device: Device, weights: WeightsMode, shape: KvShape, heads: usize) -> Result<Self> {
        drained(|| {
            let pool = TensorPool::new(shape, &device)?;
            let kernels = PagedKernels::checked(&device, shape, heads);
            Ok(Self { device, weights, pool, kernels })
        })
    }

    /// Writes the step's K and V into its slots.
    fn write(&self, keys: &Tensor, values: &Tensor, shape: &AttentionShape, step: &TensorStep) -> Result<()> {
        match (&step.addresses, &self.kernels) {
            (Addresses::Paged(step), Some(kernels)) => kernels.write(keys, values, &self.pool, shape, step),
            (Addresses::Gathered(step), _) => self.pool.write(shape.layer, &step.targets, keys, values),
            (Addresses::Paged(_), None) => bail!("the step belongs to another backend"),
        }
    }

    /// Attention over the pool, which has this step's K and V already.
    fn read(&self, queries: &Tensor, shape: &AttentionShape, step: &TensorStep) -> Result<Tensor> {
        match (&step.addresses, &self.kernels) {
            (Addresses::Paged(step), Some(kernels)) => kernels.attend(queries, &self.pool, shape, step),
            (Addresses::Gathered(step), _) => {
                step.gathering(shape.window)?.attend(queries, &self.pool, shape)
            }
            (Addresses::Paged(_), None) => bail!("the step belongs to another backend"),
        }
    }
}

impl Backend for TensorBackend {
    type Rows = Tensor;
    type Linear = TensorLinear;
    type Norm = Tensor;
    type Table = TensorTable;
    type Rope = TensorRope;
    type Step = TensorStep;

    fn linear(&self, parts: Vec<QTensor>, bias: Option<Vec<f32>>) -> Result<TensorLinear> {
        drained(|| TensorLinear::new(&parts, bias, self.weights, &self.device))
    }

    fn norm(&self, weight: Vec<f32>) -> Result<Tensor> {
        drained(|| Tensor::new(weight, &self.device))
    }

    fn table(&self, matrix: QTensor) -> Result<TensorTable> {
        drained(|| TensorTable::new(&matrix, self.weights, &self.device))
    }

    fn rope(&self, cos: Vec<f32>, sin: Vec<f32>, half: usize) -> Result<TensorRope> {
        let table = |values: Vec<f32>| Tensor::from_vec(values, ((), half), &self.device);
        drained(|| Ok(TensorRope { cos: table(cos)?, sin: table(sin)? }))
    }

    fn begin(&mut self, plan: &StepPlan) -> Result<TensorStep> {
        drained(|| TensorStep::new(plan, &self.pool, self.kernels.as_ref(), &self.device))
    }

    fn embed(&mut self, table: &TensorTable, tokens: &[u32], scale: f32) -> Result<Tensor> {
        drained(|| {
            let rows = table.rows(&Tensor::new(tokens, &self.device)?)?;
            if scale == 1.0 { Ok(rows) } else { rows * f64::from(scale) }
        })
    }

    fn norm_linear(&mut self, x: &Tensor, norm: (&Tensor, f32), linear: &TensorLinear) -> Result<Tensor> {
        drained(|| linear.forward(&rms_norm(x, norm.0, norm.1)?))
    }

    fn attend(
        &mut self,
        qkv: Tensor,
        shape: &AttentionShape,
        head_norms: Option<&(Tensor, Tensor)>,
        rope: &TensorRope,
        step: &TensorStep,
    ) -> Result<Tensor> {
        drained(|| {
            let rows = qkv.dim(0)?;
            let (query_width, kv_width) = (shape.query_width(), shape.kv_width());
            let (cos, sin) = step.turns(rope)?;
            let turned = |start: usize, heads: usize, norm: Option<&Tensor>| {
                let width = heads * shape.head_dim;
                let x = qkv.narrow(1, start, width)?.contiguous()?;
                let x = x.reshape((1, rows, heads, shape.head_dim))?;
                let x = norm.map_or(Ok(x.clone()), |norm| rms_norm(&x, norm, shape.norm_epsilon))?;
                rope_thd(&x, &cos, &sin)?.reshape((rows, width))
            };
            let queries = turned(0, shape.heads, head_norms.map(|norms| &norms.0))?;
            let keys = turned(query_width, shape.kv_heads, head_norms.map(|norms| &norms.1))?;
            let values = qkv.narrow(1, query_width + kv_width, kv_width)?.contiguous()?;
            self.write(&keys, &values, shape, step)?;
            self.read(&queries, shape, step)
        })
    }

    fn gate(&mut self, gate_up: Tensor, activation: Activation) -> Result<Tensor> {
        drained(|| {
            let width = gate_up.dim(D::Minus1)? / 2;
            let gate = gate_up.narrow(1, 0, width)?;
            let gate = match activation {
                Activation::Silu => gate.silu()?,
                // Candle's gelu is the one by tanh.
                Activation::GeluTanh => gate.gelu()?,
            };
            gate * gate_up.narrow(1, width, width)?
        })
    }

    fn linear_add(
        &mut self,
        y: Tensor,
        linear: &TensorLinear,
        post_norm: Option<(&Tensor, f32)>,
        x: &mut Tensor,
    ) -> Result<()> {
        drained(|| {
            let y = linear.forward(&y)?;
            let y = post_norm.map_or(Ok(y.clone()), |(norm, epsilon)| rms_norm(&y, norm, epsilon))?;
            *x = (&*x + y)?;
            Ok(())
        })
    }

    fn logits(
        &mut self,
        (x, rows): (Tensor, &[u32]),
        norm: (&Tensor, f32),
        head: &TensorLinear,
        soft_cap: Option<f32>,
        _: Vec<f32>,
    ) -> Result<Vec<f32>> {
        drained(|| {
            let x = x.index_select(&Tensor::new(rows, &self.device)?, 0)?;
            let logits = head.forward(&rms_norm(&x, norm.0, norm.1)?)?;
            let logits = match soft_cap.map(f64::from) {
                Some(cap) => ((logits / cap)?.tanh()? * cap)?,
                None => logits,
            };
            logits.flatten_all()?.to_vec1()
        })
    }

    fn discard(&mut self, x: Tensor) {
        // A step that gives no logits is waited for as well, so that steps do not pile up on the device. What went wrong
        // there shows in the next step that gives some.
        drop(x);
        drained(|| {
            self.device.synchronize().unwrap_or_else(|error| tracing::warn!(%error, "the device failed"))
        });
    }

    fn touch(&mut self) -> Result<()> {
        drained(|| {
            self.pool.touch()?;
            self.device.synchronize()
        })
    }

    fn read_blocks(&self, blocks: &[BlockId]) -> Result<Vec<u8>> {
        drained(|| self.pool.read_blocks(blocks))
    }

    fn write_blocks(&mut self, skip: usize, blocks: &[BlockId], data: &[u8]) -> Result<()> {
        drained(|| self.pool.write_blocks(skip, blocks, data))
    }
}
