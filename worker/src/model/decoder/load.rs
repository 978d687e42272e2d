//! From a checkpoint's tensors to a decoder's weights.

use super::{Decoder, Layer};
use crate::model::ModelError;
use crate::model::backend::{AttentionShape, Backend};
use crate::model::checkpoint::{Checkpoint, Part, Role};
use crate::model::config::{DecoderConfig, RopeConfig};

impl<B: Backend> Decoder<B> {
    /// Hands every tensor of `checkpoint` to `backend`, for contexts up to `context_tokens`; calls `progress` with the layers
    /// done so far.
    pub fn load(
        checkpoint: &mut Checkpoint,
        backend: &B,
        context_tokens: usize,
        progress: &dyn Fn(usize),
    ) -> Result<Self, ModelError> {
        let config = checkpoint.config().clone();
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            layers.push(Layer::load(checkpoint, backend, index)?);
            progress(index + 1);
        }
        let embedding = checkpoint.matrix(Role::Embedding)?;
        checkpoint.check_all_taken()?;
        let rope = |rope: &RopeConfig| {
            let (cos, sin) = rope.tables(config.head_dim, context_tokens);
            backend.rope(cos, sin, config.head_dim / 2)
        };
        Ok(Self {
            table: backend.table(embedding)?,
            embedding_scale: config.embedding_scale,
            layers,
            ropes: config.ropes().map(rope).collect::<Result<_, _>>()?,
            norm: backend.norm(checkpoint.vector(Role::OutputNorm)?)?,
            head: backend.linear(vec![checkpoint.head()?], None)?,
            logit_soft_cap: config.logit_soft_cap,
            config,
        })
    }
}

impl<B: Backend> Layer<B> {
    fn load(checkpoint: &mut Checkpoint, backend: &B, index: usize) -> Result<Self, ModelError> {
        let config = checkpoint.config().clone();
        let bias = qkv_bias(checkpoint, &config, index)?;
        let mut linear = |parts: &[Part], bias: Option<Vec<f32>>| {
            let matrices = parts.iter().map(|part| checkpoint.matrix(Role::Layer(index, *part)));
            Ok::<_, ModelError>(backend.linear(matrices.collect::<Result<_, _>>()?, bias)?)
        };
        let qkv = linear(&[Part::Query, Part::Key, Part::Value], bias)?;
        let output = linear(&[Part::AttentionOutput], None)?;
        let gate_up = linear(&[Part::Gate, Part::Up], None)?;
        let down = linear(&[Part::Down], None)?;
        let mut norm =
            |part: Part| Ok::<_, ModelError>(backend.norm(checkpoint.vector(Role::Layer(index, part))?)?);
        let head_norms = match config.head_norms {
            true => Some((norm(Part::QueryNorm)?, norm(Part::KeyNorm)?)),
            false => None,
        };
        let (attention_post_norm, mlp_post_norm) = match config.post_norms {
            true => (Some(norm(Part::AttentionPostNorm)?), Some(norm(Part::MlpPostNorm)?)),
            false => (None, None),
        };
        Ok(Self {
            attention_norm: norm(Part::AttentionNorm)?,
            qkv,
            attention: attention(&config, index),
            head_norms,
            rope: usize::from(config.has_windowed_rope(index)),
            output,
            attention_post_norm,
            mlp_norm: norm(Part::MlpNorm)?,
            gate_up,
            activation: config.activation,
            down,
            mlp_post_norm,
        })
    }
}

fn attention(config: &DecoderConfig, layer: usize) -> AttentionShape {
    AttentionShape {
        layer,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        scale: config.attention_scale,
        window: config.window(layer),
        soft_cap: config.attention_soft_cap,
        norm_epsilon: config.norm_epsilon as f32,
    }
}

/// Biases of Q, K and V side by side.
fn qkv_bias(
    checkpoint: &mut Checkpoint,
    config: &DecoderConfig,
    index: usize,
) -> Result<Option<Vec<f32>>, ModelError> {
    if !config.qkv_biases {
        return Ok(None);
    }
    let mut bias = Vec::new();
    for part in [Part::QueryBias, Part::KeyBias, Part::ValueBias] {
        bias.extend(checkpoint.vector(Role::Layer(index, part))?);
    }
    Ok(Some(bias))
}
