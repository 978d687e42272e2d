//! A decoder of the llama family over ragged batches: the same layers for one row and for five hundred.
//!
//! Ours, because candle-transformers' models keep one contiguous cache for one batch. Everything is f32 between
//! the products. Rope is the half-split kind for every file (ADR 0007).

use candle_core::quantized::QTensor;
use candle_core::{Device, Result, Tensor};
use candle_nn::ops::{rms_norm, silu};
use candle_nn::rotary_emb::rope_thd;

use super::ModelError;
use super::config::DecoderConfig;
use super::gguf::Gguf;
use super::linear::{Linear, unpermute_rope_rows};
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
        gguf: &mut Gguf,
        config: DecoderConfig,
        mode: WeightsMode,
        context_tokens: usize,
        progress: &dyn Fn(usize),
    ) -> std::result::Result<Self, ModelError> {
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            layers.push(Layer::load(gguf, &config, mode, index)?);
            progress(index + 1);
        }
        let table = [config.vocabulary, config.hidden];
        let embedding = gguf.tensor("token_embd.weight", &table)?;
        gguf.check_all_taken()?;
        // Small models tie the output head to the embedding.
        let tied = !gguf.has("output.weight");
        let head = gguf.tensor(if tied { "token_embd.weight" } else { "output.weight" }, &table)?;
        Ok(Self {
            embedding,
            layers,
            norm: norm(gguf, "output_norm.weight", config.hidden)?,
            head: Linear::new(head, mode)?,
            rope: Rope::new(gguf, &config, context_tokens)?,
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
        gguf: &mut Gguf,
        config: &DecoderConfig,
        mode: WeightsMode,
        index: usize,
    ) -> std::result::Result<Self, ModelError> {
        let (hidden, intermediate) = (config.hidden, config.intermediate);
        let query_width = config.heads * config.head_dim;
        let kv_width = config.kv_heads * config.head_dim;
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let mut linear = |part: &str, outputs: usize, inputs: usize, rope_heads: Option<usize>| {
            let mut tensor = gguf.tensor(&name(part), &[outputs, inputs])?;
            if let Some(heads) = rope_heads {
                tensor = unpermute_rope_rows(tensor, heads, config.head_dim)?;
            }
            Ok::<_, ModelError>(Linear::new(tensor, mode)?)
        };
        Ok(Self {
            query: linear("attn_q", query_width, hidden, Some(config.heads))?,
            key: linear("attn_k", kv_width, hidden, Some(config.kv_heads))?,
            value: linear("attn_v", kv_width, hidden, None)?,
            attention_output: linear("attn_output", hidden, query_width, None)?,
            gate: linear("ffn_gate", intermediate, hidden, None)?,
            up: linear("ffn_up", intermediate, hidden, None)?,
            down: linear("ffn_down", hidden, intermediate, None)?,
            attention_norm: norm(gguf, &name("attn_norm"), hidden)?,
            mlp_norm: norm(gguf, &name("ffn_norm"), hidden)?,
        })
    }
}

fn norm(gguf: &mut Gguf, name: &str, width: usize) -> std::result::Result<Tensor, ModelError> {
    Ok(gguf.tensor(name, &[width])?.dequantize(&Device::Cpu)?)
}

impl Rope {
    /// Angles are computed in f64 and rounded once. Llama 3's files carry a divisor for each frequency.
    fn new(
        gguf: &mut Gguf,
        config: &DecoderConfig,
        context_tokens: usize,
    ) -> std::result::Result<Self, ModelError> {
        let half = config.head_dim / 2;
        let divisors = if gguf.has("rope_freqs.weight") {
            norm(gguf, "rope_freqs.weight", half)?.to_vec1::<f32>()?
        } else {
            vec![1.0; half]
        };
        let frequency = |i: usize| {
            config.rope_base.powf(-2.0 * i as f64 / config.head_dim as f64) / f64::from(divisors[i])
        };
        let frequencies: Vec<f64> = (0..half).map(frequency).collect();
        let table = |function: fn(f64) -> f64| {
            let angles = (0..context_tokens).flat_map(|p| frequencies.iter().map(move |f| p as f64 * f));
            let values: Vec<f32> = angles.map(|angle| function(angle) as f32).collect();
            Tensor::from_vec(values, (context_tokens, half), &Device::Cpu)
        };
        Ok(Self { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }

    /// Rows of both tables, `[T, head_dim / 2]`.
    fn at(&self, positions: &[u32]) -> Result<(Tensor, Tensor)> {
        let positions = Tensor::new(positions, &Device::Cpu)?;
        Ok((self.cos.index_select(&positions, 0)?, self.sin.index_select(&positions, 0)?))
    }
}
