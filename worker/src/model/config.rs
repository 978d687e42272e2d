//! What a model file says about itself, checked: sizes, rope, norms.

use super::ModelError;
use super::gguf::Gguf;

/// Elements of all heads of a layer together, and layers, beyond which a file is taken for damaged.
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 12;

/// Shape of a decoder of the llama family.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the gated MLP.
    pub intermediate: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads` is a multiple of it.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Entries of the vocabulary.
    pub vocabulary: usize,
    /// Tokens the model was trained to attend to.
    pub context_tokens: usize,
    /// Base of rope's frequencies.
    pub rope_base: f64,
    /// Epsilon of RMSNorm.
    pub norm_epsilon: f64,
}

impl DecoderConfig {
    /// Reads the metadata of a GGUF file; refuses what the decoder does not cover.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        let architecture = gguf.text("general.architecture").unwrap_or("unknown");
        if architecture != "llama" {
            return Err(ModelError::Architecture(architecture.to_owned()));
        }
        let missing = |key: &str| ModelError::Unusable(format!("metadata llama.{key} is missing"));
        let size = |key: &str| {
            let value = gguf.number(&format!("llama.{key}")).ok_or_else(|| missing(key))?;
            usize::try_from(value).ok().filter(|v| (1..1 << 24).contains(v)).ok_or_else(|| {
                ModelError::Unusable(format!("metadata llama.{key} is {value}, which no model has"))
            })
        };
        let size_or = |key: &str, default: usize| {
            if gguf.get(&format!("llama.{key}")).is_some() { size(key) } else { Ok(default) }
        };
        if gguf.number("llama.expert_count").is_some_and(|experts| experts > 0) {
            return Err(ModelError::Architecture("llama with experts (Mixtral)".to_owned()));
        }
        if let Some(scaling) = gguf.text("llama.rope.scaling.type").filter(|kind| *kind != "none") {
            return Err(ModelError::Unusable(format!("rope scaling {scaling:?} is not supported")));
        }
        let (hidden, heads) = (size("embedding_length")?, size("attention.head_count")?);
        let config = Self {
            hidden,
            intermediate: size("feed_forward_length")?,
            layers: size("block_count")?,
            heads,
            kv_heads: size_or("attention.head_count_kv", heads)?,
            head_dim: size_or("attention.key_length", hidden / heads)?,
            vocabulary: vocabulary(gguf)?,
            context_tokens: size("context_length")?,
            rope_base: gguf.float("llama.rope.freq_base").unwrap_or(10_000.0),
            norm_epsilon: gguf
                .float("llama.attention.layer_norm_rms_epsilon")
                .ok_or_else(|| missing("attention.layer_norm_rms_epsilon"))?,
        };
        let rope_dims = gguf.number("llama.rope.dimension_count").unwrap_or(config.head_dim as u64);
        config.check(rope_dims as usize)?;
        Ok(config)
    }

    fn check(&self, rope_dims: usize) -> Result<(), ModelError> {
        let unusable = |text: String| Err(ModelError::Unusable(text));
        if !self.heads.is_multiple_of(self.kv_heads) {
            return unusable(format!("{} heads cannot share {} KV heads", self.heads, self.kv_heads));
        }
        if self.heads * self.head_dim > MAX_WIDTH || self.layers > MAX_LAYERS {
            return unusable(format!(
                "{} layers of {} heads of {} elements are more than any model has",
                self.layers, self.heads, self.head_dim
            ));
        }
        if rope_dims != self.head_dim || self.head_dim == 0 || !self.head_dim.is_multiple_of(16) {
            return unusable(format!(
                "rope covers {rope_dims} of {} head dimensions; the decoder needs all, in multiples of 16",
                self.head_dim
            ));
        }
        Ok(())
    }
}

fn vocabulary(gguf: &Gguf) -> Result<usize, ModelError> {
    gguf.get("tokenizer.ggml.tokens")
        .and_then(|tokens| tokens.to_vec().ok())
        .map(Vec::len)
        .ok_or_else(|| ModelError::Unusable("metadata tokenizer.ggml.tokens is missing".to_owned()))
}
