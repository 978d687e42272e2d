//! The CPU backend: our own kernels over plain slices, on rayon's one pool of threads.
//!
//! Owns: packed weights ([`linear`]), the block pool's memory ([`pool`]), attention through block tables ([`attention`]), and the
//! buffers that activations live in ([`memory`]). Work is shared out by rows, or by columns of a product where there are
//! few rows.
//!
//! Invariant: a row's results have the same bits whatever the other rows are and however work is shared out (ADR 0003);
//! all float loops are in the SIMD room, which fixes their order.

mod addresses;
mod attention;
mod linear;
mod memory;
mod pool;
mod transfer;

use candle_core::quantized::QTensor;
use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{Activation, AttentionShape, Backend, KvShape};
use crate::config::WeightsMode;
use crate::kv::BlockId;
use crate::model::config::DecoderConfig;
use crate::model::simd::{Isa, rows};
use crate::schedule::StepPlan;

use addresses::StepAddresses;
use linear::Linear;
use memory::Memory;
use pool::Pool;

pub use memory::Rows;

/// Rows that one thread takes at a time; with fewer, sharing out costs more than it brings.
const ROWS_A_TASK: usize = 16;

/// Weights, pool and scratch on the CPU.
pub struct CpuBackend {
    isa: Isa,
    mode: WeightsMode,
    pool: Pool,
    memory: Memory,
}

impl CpuBackend {
    /// A backend with an empty pool of `shape` and weights held in `mode`.
    pub fn new(shape: KvShape, mode: WeightsMode) -> Result<Self> {
        Ok(Self { isa: Isa::detect(), mode, pool: Pool::new(shape)?, memory: Memory::default() })
    }

    /// Whether our own kernels take all matrices of such a model, in the mode `fast`.
    pub fn multiplies(config: &DecoderConfig) -> bool {
        [config.hidden, config.intermediate, config.heads * config.head_dim].into_iter().all(linear::packs)
    }

    /// `RMSNorm(x) · Wᵀ + bias`, into `out`.
    fn normed_product(
        &mut self,
        x: &Rows,
        (weight, epsilon): (&Vec<f32>, f32),
        linear: &Linear,
        out: &mut Rows,
    ) -> Result<()> {
        let mut normed = self.memory.take(x.rows(), x.width);
        let isa = self.isa;
        in_chunks_of_rows(&x.values, x.width, &mut normed.values, x.width, |x, normed| {
            rows::norm(isa, x, weight, epsilon, normed);
        });
        linear.forward(isa, &normed, out, &mut self.memory, false)?;
        self.memory.give(normed);
        Ok(())
    }
}

/// Calls `f` with some rows of `x` and the same rows of `out`, on several threads where there are many.
fn in_chunks_of_rows(
    x: &[f32],
    width: usize,
    out: &mut [f32],
    out_width: usize,
    f: impl Fn(&[f32], &mut [f32]) + Sync,
) {
    if x.len() / width <= ROWS_A_TASK {
        return f(x, out);
    }
    let chunks = x.par_chunks(ROWS_A_TASK * width);
    chunks.zip(out.par_chunks_mut(ROWS_A_TASK * out_width)).for_each(|(x, out)| f(x, out));
}

impl Backend for CpuBackend {
    type Rows = Rows;
    type Linear = Linear;
    type Norm = Vec<f32>;
    type Table = QTensor;
    type Rope = Rope;
    type Step = StepAddresses;

    fn linear(&self, parts: Vec<QTensor>, bias: Option<Vec<f32>>) -> Result<Linear> {
        Linear::new(self.isa, parts, bias, self.mode)
    }

    fn norm(&self, weight: Vec<f32>) -> Result<Vec<f32>> {
        Ok(weight)
    }

    fn table(&self, matrix: QTensor) -> Result<QTensor> {
        Ok(matrix)
    }

    fn rope(&self, cos: Vec<f32>, sin: Vec<f32>, half: usize) -> Result<Rope> {
        Ok(Rope { cos, sin, half })
    }

    fn begin(&mut self, plan: &StepPlan) -> Result<StepAddresses> {
        Ok(StepAddresses::new(plan, self.pool.shape().block_tokens))
    }

    fn embed(&mut self, table: &QTensor, tokens: &[u32], scale: f32) -> Result<Rows> {
        let (_, width) = table.shape().dims2()?;
        let mut x = self.memory.take(tokens.len(), width);
        // A few rows at a time, because candle allocates them.
        for (tokens, out) in tokens.chunks(ROWS_A_TASK).zip(x.values.chunks_mut(ROWS_A_TASK * width)) {
            let rows = table.embedding(&Tensor::new(tokens, &candle_core::Device::Cpu)?)?;
            for (out, value) in out.iter_mut().zip(rows.flatten_all()?.to_vec1::<f32>()?) {
                *out = value * scale;
            }
        }
        Ok(x)
    }

    fn norm_linear(&mut self, x: &Rows, norm: (&Vec<f32>, f32), linear: &Linear) -> Result<Rows> {
        let mut out = self.memory.take(x.rows(), linear.outputs());
        self.normed_product(x, norm, linear, &mut out)?;
        Ok(out)
    }

    fn attend(
        &mut self,
        mut qkv: Rows,
        shape: &AttentionShape,
        head_norms: Option<&(Vec<f32>, Vec<f32>)>,
        rope: &Rope,
        step: &StepAddresses,
    ) -> Result<Rows> {
        let isa = self.isa;
        let width = qkv.width;
        let turn = |(first, chunk): (usize, &mut [f32])| {
            for (row, position) in chunk.chunks_exact_mut(width).zip(&step.positions[first..]) {
                let (query, rest) = row.split_at_mut(shape.query_width());
                let key = &mut rest[..shape.kv_width()];
                if let Some((query_norm, key_norm)) = head_norms {
                    rows::norm_in_place(isa, query, query_norm, shape.norm_epsilon);
                    rows::norm_in_place(isa, key, key_norm, shape.norm_epsilon);
                }
                let (cos, sin) = rope.at(*position);
                rows::rope(isa, query, cos, sin);
                rows::rope(isa, key, cos, sin);
            }
        };
        if qkv.rows() <= ROWS_A_TASK {
            turn((0, &mut qkv.values));
        } else {
            let chunks = qkv.values.par_chunks_mut(ROWS_A_TASK * width).enumerate();
            chunks.for_each(|(index, chunk)| turn((index * ROWS_A_TASK, chunk)));
        }
        self.pool.write(shape, &step.slots, &qkv);
        let mut out = self.memory.take(qkv.rows(), shape.query_width());
        attention::run(isa, shape, step, &self.pool, &qkv, &mut out);
        self.memory.give(qkv);
        Ok(out)
    }

    fn gate(&mut self, gate_up: Rows, activation: Activation) -> Result<Rows> {
        let width = gate_up.width / 2;
        let mut out = self.memory.take(gate_up.rows(), width);
        let isa = self.isa;
        in_chunks_of_rows(&gate_up.values, 2 * width, &mut out.values, width, |gate_up, out| {
            rows::gate(isa, gate_up, width, activation, out);
        });
        self.memory.give(gate_up);
        Ok(out)
    }

    fn linear_add(
        &mut self,
        y: Rows,
        linear: &Linear,
        post_norm: Option<(&Vec<f32>, f32)>,
        x: &mut Rows,
    ) -> Result<()> {
        match post_norm {
            None => linear.forward(self.isa, &y, x, &mut self.memory, true)?,
            Some((weight, epsilon)) => {
                let mut out = self.memory.take(y.rows(), linear.outputs());
                linear.forward(self.isa, &y, &mut out, &mut self.memory, false)?;
                let isa = self.isa;
                in_chunks_of_rows(&out.values, out.width, &mut x.values, x.width, |out, x| {
                    rows::norm_add(isa, out, weight, epsilon, x);
                });
                self.memory.give(out);
            }
        }
        self.memory.give(y);
        Ok(())
    }

    fn logits(
        &mut self,
        (x, rows): (Rows, &[u32]),
        norm: (&Vec<f32>, f32),
        head: &Linear,
        soft_cap: Option<f32>,
        memory: Vec<f32>,
    ) -> Result<Vec<f32>> {
        let mut sampled = self.memory.take(rows.len(), x.width);
        for (out, row) in sampled.values.chunks_exact_mut(x.width).zip(rows) {
            out.copy_from_slice(x.row(*row as usize));
        }
        self.memory.give(x);
        let mut logits = Rows { values: memory, width: head.outputs() };
        logits.values.resize(rows.len() * head.outputs(), 0.0);
        self.normed_product(&sampled, norm, head, &mut logits)?;
        self.memory.give(sampled);
        if let Some(cap) = soft_cap {
            let isa = self.isa;
            logits.values.par_chunks_mut(1 << 14).for_each(|chunk| rows::soft_cap(isa, chunk, cap));
        }
        Ok(logits.values)
    }

    fn discard(&mut self, x: Rows) {
        self.memory.give(x);
    }

    fn touch(&mut self) -> Result<()> {
        self.pool.touch();
        Ok(())
    }

    fn read_blocks(&self, blocks: &[BlockId]) -> Result<Vec<u8>> {
        Ok(self.pool.read_blocks(blocks))
    }

    fn write_blocks(&mut self, skip: usize, blocks: &[BlockId], data: &[u8]) -> Result<()> {
        self.pool.write_blocks(skip, blocks, data)
    }
}

/// Cosines and sines of every position, `[positions, half]`.
pub struct Rope {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Rope {
    fn at(&self, position: u32) -> (&[f32], &[f32]) {
        let range = position as usize * self.half..(position as usize + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}
