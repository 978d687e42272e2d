//! A decoder of the llama family over ragged batches: the same layers for one row and for five hundred.
//!
//! Ours, because candle-transformers' models keep one contiguous cache for one batch. Everything is f32 between
//! the products. Rope is the half-split kind for every file (ADR 0007).

use candle_core::quantized::QTensor;
use candle_core::{Device, Result, Tensor};
use candle_nn::ops::{rms_norm, silu};
use candle_nn::rotary_emb::rope_thd;

use super::ModelError;
use super::checkpoint::{Checkpoint, Part, Role};
use super::config::DecoderConfig;
use super::linear::Linear;
use super::paged::{KvTensors, PagedAttention, StepAddresses, WriteKv};
use crate::config::WeightsMode;
use crate::schedule::StepPlan;

/// All weights of a model.
pub struct Decoder {
    config: DecoderConfig,
    embedding: QTensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Linear,
    rope: Rope,
}

struct Layer {
    attention_norm: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    mlp_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// Cosines and sines of every position, `[context_tokens, head_dim / 2]`.
struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl Decoder {
    /// Loads every tensor of `gguf` in `mode`, for contexts up to `context_tokens`; calls `progress` with the
    /// layers done so far.
    pub fn load(
        checkpoint: &mut Checkpoint,
        mode: WeightsMode,
        context_tokens: usize,
        progress: &dyn Fn(usize),
    ) -> std::result::Result<Self, ModelError> {
        let config = checkpoint.config().clone();
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            layers.push(Layer::load(checkpoint, mode, index)?);
            progress(index + 1);
        }
        let embedding = checkpoint.matrix(Role::Embedding)?;
        checkpoint.check_all_taken()?;
        let head = checkpoint.head()?;
        Ok(Self {
            embedding,
            layers,
            norm: norm(checkpoint, Role::OutputNorm)?,
            head: Linear::new(head, mode)?,
            rope: Rope::new(&config, context_tokens)?,
            config,
        })
    }

    /// The model's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Writes the K and V of every row and returns the logits of the rows that sample, `[rows, vocabulary]`;
    /// none where no row samples.
    pub fn forward(&self, plan: &StepPlan, kv: &KvTensors) -> Result<Option<Tensor>> {
        let rows = plan.rows();
        let epsilon = self.config.norm_epsilon as f32;
        let addresses = StepAddresses::new(plan, kv.shape());
        let attention = PagedAttention { addresses: addresses.clone(), heads: self.config.heads };
        let write = WriteKv(addresses);
        let (cos, sin) = self.rope.at(&plan.positions)?;
        let split = |x: Tensor, heads: usize| x.reshape((1, rows, heads, self.config.head_dim));

        let mut x = self.embedding.embedding(&Tensor::new(plan.tokens.as_slice(), &Device::Cpu)?)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = rms_norm(&x, &layer.attention_norm, epsilon)?;
            let query = split(layer.query.forward(&normed)?, self.config.heads)?;
            let key = split(layer.key.forward(&normed)?, self.config.kv_heads)?;
            let value = layer.value.forward(&normed)?;
            let pool = kv.layer(index);
            pool.inplace_op3(&rope_thd(&key, &cos, &sin)?, &value, &write)?;
            let attended = rope_thd(&query, &cos, &sin)?.apply_op2_no_bwd(pool, &attention)?;
            let attended = attended.reshape((rows, self.config.heads * self.config.head_dim))?;
            x = (x + layer.attention_output.forward(&attended)?)?;

            let normed = rms_norm(&x, &layer.mlp_norm, epsilon)?;
            let gated = (silu(&layer.gate.forward(&normed)?)? * layer.up.forward(&normed)?)?;
            x = (x + layer.down.forward(&gated)?)?;
        }
        let sampled = plan.sampled_rows();
        if sampled.is_empty() {
            return Ok(None);
        }
        let count = sampled.len();
        let x = x.index_select(&Tensor::from_vec(sampled, count, &Device::Cpu)?, 0)?;
        self.head.forward(&rms_norm(&x, &self.norm, epsilon)?).map(Some)
    }
}

impl Layer {
    fn load(
        checkpoint: &mut Checkpoint,
        mode: WeightsMode,
        index: usize,
    ) -> std::result::Result<Self, ModelError> {
        let mut linear = |part: Part| {
            Ok::<_, ModelError>(Linear::new(checkpoint.matrix(Role::Layer(index, part))?, mode)?)
        };
        Ok(Self {
            query: linear(Part::Query)?,
            key: linear(Part::Key)?,
            value: linear(Part::Value)?,
            attention_output: linear(Part::AttentionOutput)?,
            gate: linear(Part::Gate)?,
            up: linear(Part::Up)?,
            down: linear(Part::Down)?,
            attention_norm: norm(checkpoint, Role::Layer(index, Part::AttentionNorm))?,
            mlp_norm: norm(checkpoint, Role::Layer(index, Part::MlpNorm))?,
        })
    }
}

fn norm(checkpoint: &mut Checkpoint, role: Role) -> std::result::Result<Tensor, ModelError> {
    Ok(Tensor::new(checkpoint.vector(role)?, &Device::Cpu)?)
}

impl Rope {
    fn new(config: &DecoderConfig, context_tokens: usize) -> Result<Self> {
        let (cos, sin) = config.rope.tables(config.head_dim, context_tokens);
        let table = |values| Tensor::from_vec(values, (context_tokens, config.head_dim / 2), &Device::Cpu);
        Ok(Self { cos: table(cos)?, sin: table(sin)? })
    }

    /// Rows of both tables, `[T, head_dim / 2]`.
    fn at(&self, positions: &[u32]) -> Result<(Tensor, Tensor)> {
        let positions = Tensor::new(positions, &Device::Cpu)?;
        Ok((self.cos.index_select(&positions, 0)?, self.sin.index_select(&positions, 0)?))
    }
}
