//! From a checkpoint's tensors to a decoder's weights.

use candle_core::Device;
use candle_core::quantized::QTensor;

use super::{Decoder, Layer};
use crate::model::ModelError;
use crate::model::backend::{Activation, AttentionShape, Backend};
use crate::model::config::DecoderConfig;
use crate::model::gguf::Gguf;
use crate::model::matrix::unpermute_rope_rows;

impl<B: Backend> Decoder<B> {
    /// Hands every tensor of `gguf` to `backend`, for contexts up to `context_tokens`; calls `progress` with the layers
    /// done so far.
    pub fn load(
        gguf: &mut Gguf,
        config: DecoderConfig,
        backend: &B,
        context_tokens: usize,
        progress: &dyn Fn(usize),
    ) -> Result<Self, ModelError> {
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            layers.push(Layer::load(gguf, &config, backend, index)?);
            progress(index + 1);
        }
        let table = [config.vocabulary, config.hidden];
        let embedding = gguf.tensor("token_embd.weight", &table)?;
        gguf.check_all_taken()?;
        // Small models tie the output head to the embedding.
        let tied = !gguf.has("output.weight");
        let head = gguf.tensor(if tied { "token_embd.weight" } else { "output.weight" }, &table)?;
        Ok(Self {
            table: backend.table(embedding)?,
            embedding_scale: 1.0,
            layers,
            ropes: vec![rope(gguf, &config, backend, context_tokens)?],
            norm: norm(gguf, backend, "output_norm.weight", config.hidden)?,
            head: backend.linear(vec![head], None)?,
            logit_soft_cap: None,
            config,
        })
    }
}

impl<B: Backend> Layer<B> {
    fn load(gguf: &mut Gguf, config: &DecoderConfig, backend: &B, index: usize) -> Result<Self, ModelError> {
        let (hidden, intermediate) = (config.hidden, config.intermediate);
        let attention = AttentionShape {
            layer: index,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            scale: 1.0 / (config.head_dim as f32).sqrt(),
            window: None,
            soft_cap: None,
            norm_epsilon: config.norm_epsilon as f32,
        };
        let (query_width, kv_width) = (attention.query_width(), attention.kv_width());
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let mut take = |part: &str, outputs: usize, inputs: usize, rope_heads: Option<usize>| {
            let tensor: QTensor = gguf.tensor(&name(part), &[outputs, inputs])?;
            Ok::<_, ModelError>(match rope_heads {
                Some(heads) => unpermute_rope_rows(tensor, heads, config.head_dim)?,
                None => tensor,
            })
        };
        let query = take("attn_q", query_width, hidden, Some(config.heads))?;
        let key = take("attn_k", kv_width, hidden, Some(config.kv_heads))?;
        let value = take("attn_v", kv_width, hidden, None)?;
        let output = take("attn_output", hidden, query_width, None)?;
        let gate = take("ffn_gate", intermediate, hidden, None)?;
        let up = take("ffn_up", intermediate, hidden, None)?;
        let down = take("ffn_down", hidden, intermediate, None)?;
        Ok(Self {
            attention_norm: norm(gguf, backend, &name("attn_norm"), hidden)?,
            qkv: backend.linear(vec![query, key, value], None)?,
            attention,
            head_norms: None,
            rope: 0,
            output: backend.linear(vec![output], None)?,
            attention_post_norm: None,
            mlp_norm: norm(gguf, backend, &name("ffn_norm"), hidden)?,
            gate_up: backend.linear(vec![gate, up], None)?,
            activation: Activation::Silu,
            down: backend.linear(vec![down], None)?,
            mlp_post_norm: None,
        })
    }
}

fn vector(gguf: &mut Gguf, name: &str, width: usize) -> Result<Vec<f32>, ModelError> {
    Ok(gguf.tensor(name, &[width])?.dequantize(&Device::Cpu)?.to_vec1()?)
}

fn norm<B: Backend>(gguf: &mut Gguf, backend: &B, name: &str, width: usize) -> Result<B::Norm, ModelError> {
    Ok(backend.norm(vector(gguf, name, width)?)?)
}

/// Angles are computed in f64 and rounded once. Llama 3's files carry a divisor for each frequency.
fn rope<B: Backend>(
    gguf: &mut Gguf,
    config: &DecoderConfig,
    backend: &B,
    context_tokens: usize,
) -> Result<B::Rope, ModelError> {
    let half = config.head_dim / 2;
    let divisors = match gguf.has("rope_freqs.weight") {
        true => vector(gguf, "rope_freqs.weight", half)?,
        false => vec![1.0; half],
    };
    let frequency =
        |i: usize| config.rope_base.powf(-2.0 * i as f64 / config.head_dim as f64) / f64::from(divisors[i]);
    let frequencies: Vec<f64> = (0..half).map(frequency).collect();
    let table = |function: fn(f64) -> f64| -> Vec<f32> {
        let angles = (0..context_tokens).flat_map(|p| frequencies.iter().map(move |f| p as f64 * f));
        angles.map(|angle| function(angle) as f32).collect()
    };
    Ok(backend.rope(table(f64::cos), table(f64::sin), half)?)
}
