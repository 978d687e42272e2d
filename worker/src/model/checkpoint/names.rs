//! What each tensor of a decoder is for, its shape, and what the two formats call it.

use crate::model::config::{DecoderConfig, Family};

/// A tensor by what the decoder does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The embedding, which is the output head too where the model is tied.
    Embedding,
    /// The norm before the output head.
    OutputNorm,
    /// The output head.
    Head,
    /// A part of a layer.
    Layer(usize, Part),
}

/// A tensor of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Norm before attention.
    AttentionNorm,
    /// Product that makes queries.
    Query,
    /// Its bias.
    QueryBias,
    /// Product that makes keys.
    Key,
    /// Its bias.
    KeyBias,
    /// Product that makes values.
    Value,
    /// Its bias.
    ValueBias,
    /// Norm of each query head.
    QueryNorm,
    /// Norm of each key head.
    KeyNorm,
    /// Product after attention.
    AttentionOutput,
    /// Norm after it.
    AttentionPostNorm,
    /// Norm before the MLP.
    MlpNorm,
    /// Product that makes the gate.
    Gate,
    /// Product that the gate is multiplied with.
    Up,
    /// Product back to the residual stream.
    Down,
    /// Norm after it.
    MlpPostNorm,
}

impl Role {
    /// The shape that `config` gives it.
    pub fn shape(self, config: &DecoderConfig) -> Vec<usize> {
        let (hidden, head_dim) = (config.hidden, config.head_dim);
        let (query, kv) = (config.heads * head_dim, config.kv_heads * head_dim);
        match self {
            Self::Embedding | Self::Head => vec![config.vocabulary, hidden],
            Self::OutputNorm => vec![hidden],
            Self::Layer(_, part) => match part {
                Part::AttentionNorm | Part::AttentionPostNorm | Part::MlpNorm | Part::MlpPostNorm => {
                    vec![hidden]
                }
                Part::QueryNorm | Part::KeyNorm => vec![head_dim],
                Part::QueryBias => vec![query],
                Part::KeyBias | Part::ValueBias => vec![kv],
                Part::Query => vec![query, hidden],
                Part::Key | Part::Value => vec![kv, hidden],
                Part::AttentionOutput => vec![hidden, query],
                Part::Gate | Part::Up => vec![config.intermediate, hidden],
                Part::Down => vec![hidden, config.intermediate],
            },
        }
    }

    /// Whether it is the weight of an RMSNorm.
    pub fn is_norm(self) -> bool {
        match self {
            Self::Embedding | Self::Head => false,
            Self::OutputNorm => true,
            Self::Layer(_, part) => matches!(
                part,
                Part::AttentionNorm
                    | Part::AttentionPostNorm
                    | Part::MlpNorm
                    | Part::MlpPostNorm
                    | Part::QueryNorm
                    | Part::KeyNorm
            ),
        }
    }

    /// Heads whose rows lie interleaved for rope in llama.cpp's files of the llama family (ADR 0007); none for other tensors.
    pub fn rope_heads(self, config: &DecoderConfig) -> Option<usize> {
        match self {
            Self::Layer(_, Part::Query | Part::QueryBias) => Some(config.heads),
            Self::Layer(_, Part::Key | Part::KeyBias) => Some(config.kv_heads),
            _ => None,
        }
    }

    /// Its name in GGUF files.
    pub fn gguf_name(self) -> String {
        let (layer, part) = match self {
            Self::Embedding => return "token_embd.weight".to_owned(),
            Self::OutputNorm => return "output_norm.weight".to_owned(),
            Self::Head => return "output.weight".to_owned(),
            Self::Layer(layer, part) => (layer, part),
        };
        let part = match part {
            Part::AttentionNorm => "attn_norm.weight",
            Part::Query => "attn_q.weight",
            Part::QueryBias => "attn_q.bias",
            Part::Key => "attn_k.weight",
            Part::KeyBias => "attn_k.bias",
            Part::Value => "attn_v.weight",
            Part::ValueBias => "attn_v.bias",
            Part::QueryNorm => "attn_q_norm.weight",
            Part::KeyNorm => "attn_k_norm.weight",
            Part::AttentionOutput => "attn_output.weight",
            Part::AttentionPostNorm => "post_attention_norm.weight",
            Part::MlpNorm => "ffn_norm.weight",
            Part::Gate => "ffn_gate.weight",
            Part::Up => "ffn_up.weight",
            Part::Down => "ffn_down.weight",
            Part::MlpPostNorm => "post_ffw_norm.weight",
        };
        format!("blk.{layer}.{part}")
    }

    /// Its name in safetensors files of `family`.
    pub fn safetensors_name(self, family: Family) -> String {
        let (layer, part) = match self {
            Self::Embedding => return "model.embed_tokens.weight".to_owned(),
            Self::OutputNorm => return "model.norm.weight".to_owned(),
            Self::Head => return "lm_head.weight".to_owned(),
            Self::Layer(layer, part) => (layer, part),
        };
        let part = match part {
            Part::AttentionNorm => "input_layernorm.weight",
            Part::Query => "self_attn.q_proj.weight",
            Part::QueryBias => "self_attn.q_proj.bias",
            Part::Key => "self_attn.k_proj.weight",
            Part::KeyBias => "self_attn.k_proj.bias",
            Part::Value => "self_attn.v_proj.weight",
            Part::ValueBias => "self_attn.v_proj.bias",
            Part::QueryNorm => "self_attn.q_norm.weight",
            Part::KeyNorm => "self_attn.k_norm.weight",
            Part::AttentionOutput => "self_attn.o_proj.weight",
            Part::AttentionPostNorm => "post_attention_layernorm.weight",
            // The other families have one norm between attention and MLP, and named it after what it follows.
            Part::MlpNorm if family == Family::Gemma3 => "pre_feedforward_layernorm.weight",
            Part::MlpNorm => "post_attention_layernorm.weight",
            Part::Gate => "mlp.gate_proj.weight",
            Part::Up => "mlp.up_proj.weight",
            Part::Down => "mlp.down_proj.weight",
            Part::MlpPostNorm => "post_feedforward_layernorm.weight",
        };
        format!("model.layers.{layer}.{part}")
    }
}
