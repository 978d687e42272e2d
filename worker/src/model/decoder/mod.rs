//! A decoder over ragged batches: the same layers for one row and for five hundred, for every family and every device.
//!
//! Ours, because candle-transformers' models keep one contiguous cache for one batch. A family is a configuration: what it
//! does not have is `None` here. Everything is f32 between the products. Rope is the half-split kind for every
//! file (ADR 0007).

mod engine;
mod load;

use candle_core::Result;

use super::backend::{Activation, AttentionShape, Backend};
use super::config::DecoderConfig;
use crate::schedule::StepPlan;

pub use engine::DecoderEngine;

/// A model's weights, where `B` keeps them, and how they are applied.
pub struct Decoder<B: Backend> {
    config: DecoderConfig,
    table: B::Table,
    embedding_scale: f32,
    layers: Vec<Layer<B>>,
    /// One for each base and scaling that layers use.
    ropes: Vec<B::Rope>,
    norm: B::Norm,
    head: B::Linear,
    logit_soft_cap: Option<f32>,
}

struct Layer<B: Backend> {
    attention_norm: B::Norm,
    /// Q, K and V side by side.
    qkv: B::Linear,
    attention: AttentionShape,
    /// Norms of Q and of K, head by head.
    head_norms: Option<(B::Norm, B::Norm)>,
    /// Index of its rope.
    rope: usize,
    output: B::Linear,
    attention_post_norm: Option<B::Norm>,
    mlp_norm: B::Norm,
    /// Gate and up side by side.
    gate_up: B::Linear,
    activation: Activation,
    down: B::Linear,
    mlp_post_norm: Option<B::Norm>,
}

impl<B: Backend> Decoder<B> {
    /// The model's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Writes the K and V of every row and returns the logits of the rows that sample, `[rows, vocabulary]`, in `memory`.
    pub fn forward(&self, backend: &mut B, plan: &StepPlan, memory: Vec<f32>) -> Result<Vec<f32>> {
        let step = backend.begin(plan)?;
        let epsilon = self.config.norm_epsilon as f32;
        let mut x = backend.embed(&self.table, &plan.tokens, self.embedding_scale)?;
        for layer in &self.layers {
            let qkv = backend.norm_linear(&x, (&layer.attention_norm, epsilon), &layer.qkv)?;
            let rope = &self.ropes[layer.rope];
            let attended = backend.attend(qkv, &layer.attention, layer.head_norms.as_ref(), rope, &step)?;
            let post_norm = layer.attention_post_norm.as_ref().map(|norm| (norm, epsilon));
            backend.linear_add(attended, &layer.output, post_norm, &mut x)?;

            let gate_up = backend.norm_linear(&x, (&layer.mlp_norm, epsilon), &layer.gate_up)?;
            let gated = backend.gate(gate_up, layer.activation)?;
            let post_norm = layer.mlp_post_norm.as_ref().map(|norm| (norm, epsilon));
            backend.linear_add(gated, &layer.down, post_norm, &mut x)?;
        }
        let sampled = plan.sampled_rows();
        if sampled.is_empty() {
            backend.discard(x);
            return Ok(Vec::new());
        }
        backend.logits((x, &sampled), (&self.norm, epsilon), &self.head, self.logit_soft_cap, memory)
    }
}
