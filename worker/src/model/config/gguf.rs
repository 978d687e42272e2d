//! The configuration in a GGUF file's metadata.

use candle_core::quantized::gguf_file::Value;

use super::{Activation, DecoderConfig, Family, RopeConfig, RopeScaling};
use super::{default_scale, every_nth_is_global, missing, size};
use crate::model::ModelError;
use crate::model::checkpoint::gguf::Gguf;

/// Every sixth layer of Gemma 3 sees everything. llama.cpp has it in its code, its files do not say it.
const GEMMA3_PATTERN: usize = 6;
/// Base of rope in Gemma 3's windowed layers, where a file does not say it.
const GEMMA3_WINDOWED_BASE: f64 = 10_000.0;
/// Only Gemma 3 27B scales attention by its width over its heads; its files do not say that either.
const GEMMA3_27B_LAYERS: usize = 62;

/// Metadata of one architecture: keys start with its name.
struct Metadata<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl DecoderConfig {
    /// Reads the metadata of a GGUF file; refuses what the decoder does not cover. `divisors` are those of the rope that the
    /// file has as a tensor.
    pub fn from_gguf(gguf: &Gguf, divisors: Option<Vec<f32>>) -> Result<Self, ModelError> {
        let architecture = gguf.text("general.architecture").unwrap_or("unknown");
        let family = match architecture {
            "llama" => Family::Llama,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            "gemma3" => Family::Gemma3,
            other => return Err(ModelError::Architecture(other.to_owned())),
        };
        let metadata = Metadata { gguf, architecture };
        if metadata.number("expert_count").is_some_and(|experts| experts > 0) {
            return Err(ModelError::Architecture(format!("{architecture} with experts")));
        }
        let (hidden, heads) = (metadata.size("embedding_length")?, metadata.size("attention.head_count")?);
        let layers = metadata.size("block_count")?;
        let head_dim = metadata.size_or("attention.key_length", hidden / heads)?;
        let config = Self {
            family,
            hidden,
            intermediate: metadata.size("feed_forward_length")?,
            layers,
            heads,
            kv_heads: metadata.size_or("attention.head_count_kv", heads)?,
            head_dim,
            vocabulary: vocabulary(gguf)?,
            context_tokens: metadata.size("context_length")?,
            norm_epsilon: metadata
                .float("attention.layer_norm_rms_epsilon")
                .ok_or_else(|| missing(&metadata.key("attention.layer_norm_rms_epsilon")))?,
            activation: Activation::Silu,
            embedding_scale: 1.0,
            attention_scale: default_scale(head_dim),
            // Some llamas have them; Qwen 2 always does.
            qkv_biases: family == Family::Qwen2 || gguf.has("blk.0.attn_q.bias"),
            head_norms: family == Family::Qwen3,
            post_norms: false,
            tied: !gguf.has("output.weight"),
            attention_soft_cap: metadata.float("attn_logit_softcapping").map(|cap| cap as f32),
            logit_soft_cap: metadata.float("final_logit_softcapping").map(|cap| cap as f32),
            window: metadata.window()?,
            windowed: vec![true; layers],
            rope: metadata.rope(divisors)?,
            windowed_rope: None,
        };
        let config = if family == Family::Gemma3 { metadata.gemma3(config)? } else { config };
        if metadata.size_or("attention.value_length", head_dim)? != head_dim {
            return Err(ModelError::Unusable("its heads have values of another length than keys".to_owned()));
        }
        let rope_dims = metadata.size_or("rope.dimension_count", head_dim)?;
        config.check(rope_dims)?;
        Ok(config)
    }
}

impl Metadata<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.gguf.number(&self.key(key))
    }

    fn float(&self, key: &str) -> Option<f64> {
        self.gguf.float(&self.key(key))
    }

    fn size(&self, key: &str) -> Result<usize, ModelError> {
        let value = self.number(key).ok_or_else(|| missing(&self.key(key)))?;
        size(&self.key(key), value)
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        if self.gguf.get(&self.key(key)).is_some() { self.size(key) } else { Ok(default) }
    }

    /// 0 is how some files say that there is none.
    fn window(&self) -> Result<Option<usize>, ModelError> {
        match self.number("attention.sliding_window") {
            None | Some(0) => Ok(None),
            Some(_) => self.size("attention.sliding_window").map(Some),
        }
    }

    fn rope(&self, divisors: Option<Vec<f32>>) -> Result<RopeConfig, ModelError> {
        let base = self.float("rope.freq_base").unwrap_or(10_000.0);
        let text = self.gguf.text(&self.key("rope.scaling.type")).filter(|kind| *kind != "none");
        let scaling = match (text, divisors) {
            (_, Some(divisors)) => RopeScaling::Divisors(divisors),
            (None, None) => RopeScaling::None,
            (Some("linear"), None) => {
                let key = "rope.scaling.factor";
                RopeScaling::Linear { factor: self.float(key).ok_or_else(|| missing(&self.key(key)))? }
            }
            (Some(other), None) => {
                return Err(ModelError::Unusable(format!("rope scaling {other:?} is not supported")));
            }
        };
        Ok(RopeConfig { base, scaling })
    }

    fn gemma3(&self, config: DecoderConfig) -> Result<DecoderConfig, ModelError> {
        let base = self.float("rope.freq_base_swa").unwrap_or(GEMMA3_WINDOWED_BASE);
        let by_width = config.layers == GEMMA3_27B_LAYERS;
        Ok(DecoderConfig {
            activation: Activation::GeluTanh,
            embedding_scale: (config.hidden as f64).sqrt() as f32,
            attention_scale: if by_width {
                default_scale(config.hidden / config.heads)
            } else {
                config.attention_scale
            },
            head_norms: true,
            post_norms: true,
            windowed: self.windowed(config.layers)?,
            windowed_rope: Some(RopeConfig::plain(base)),
            ..config
        })
    }

    /// Newer files say which layers have the window: by a number, or one by one.
    fn windowed(&self, layers: usize) -> Result<Vec<bool>, ModelError> {
        let key = self.key("attention.sliding_window_pattern");
        match self.gguf.get(&key) {
            None => Ok(every_nth_is_global(layers, GEMMA3_PATTERN)),
            Some(Value::Array(flags)) => {
                let flags: Option<Vec<bool>> = flags.iter().map(|flag| flag.to_bool().ok()).collect();
                flags.filter(|flags| flags.len() == layers).ok_or_else(|| {
                    ModelError::Unusable(format!("metadata {key} does not name the window of each layer"))
                })
            }
            Some(_) => Ok(every_nth_is_global(layers, self.size("attention.sliding_window_pattern")?)),
        }
    }
}

fn vocabulary(gguf: &Gguf) -> Result<usize, ModelError> {
    gguf.get("tokenizer.ggml.tokens")
        .and_then(|tokens| tokens.to_vec().ok())
        .map(Vec::len)
        .ok_or_else(|| missing("tokenizer.ggml.tokens"))
}
