//! What a decoder is: sizes, norms, activation, rope and windows. One decoder runs every family; a family is
//! a way of filling in this configuration (ADR 0016).
//!
//! Invariant: a configuration that was read is one the decoder can run; whatever it cannot is refused by name.

mod gguf;
mod json;
mod rope;

use super::ModelError;

pub use super::backend::Activation;
pub use rope::{RopeConfig, RopeScaling};

/// Elements of all heads of a layer together, and layers, beyond which a file is taken for damaged.
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 12;
/// Sizes from which on a number of a file is no model's.
const MAX_SIZE: u64 = 1 << 24;

/// A family of models: the name is the one that files use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 2 and 3, and what is built like them: SmolLM2, TinyLlama, Mistral in GGUF files.
    Llama,
    /// Mistral: a llama whose layers may have a window.
    Mistral,
    /// Qwen 2 and 2.5: biases of Q, K and V.
    Qwen2,
    /// Qwen 3: Q and K normed by head.
    Qwen3,
    /// Gemma 3, text only: norms on both sides, local and global layers, a scaled embedding.
    Gemma3,
}

/// Shape of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Which family's names its tensors have.
    pub family: Family,
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
    /// Epsilon of RMSNorm.
    pub norm_epsilon: f64,
    /// What the MLP's gate goes through.
    pub activation: Activation,
    /// Rows of the embedding are multiplied by it.
    pub embedding_scale: f32,
    /// Attention scores are multiplied by it.
    pub attention_scale: f32,
    /// Q, K and V have biases.
    pub qkv_biases: bool,
    /// Q and K are normed head by head before rope.
    pub head_norms: bool,
    /// What attention and MLP give is normed before it is added to the residual stream.
    pub post_norms: bool,
    /// The output head is the embedding.
    pub tied: bool,
    /// Scores become `cap · tanh(score / cap)`.
    pub attention_soft_cap: Option<f32>,
    /// Logits become `cap · tanh(logit / cap)`.
    pub logit_soft_cap: Option<f32>,
    /// Tokens that a row of a windowed layer sees, itself included.
    pub window: Option<usize>,
    /// Which layers have the window; one entry a layer.
    pub windowed: Vec<bool>,
    /// Rope of layers that see everything, and of all layers where there is no other.
    pub rope: RopeConfig,
    /// Rope of windowed layers, where it is another.
    pub windowed_rope: Option<RopeConfig>,
}

impl DecoderConfig {
    /// How many tokens a row of `layer` sees, itself included; none where it sees all.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.window.filter(|_| self.windowed[layer])
    }

    /// Every rope that layers turn by, that of windowed layers second.
    pub fn ropes(&self) -> impl Iterator<Item = &RopeConfig> {
        std::iter::once(&self.rope).chain(&self.windowed_rope)
    }

    /// Whether `layer` turns by [`Self::windowed_rope`].
    pub fn has_windowed_rope(&self, layer: usize) -> bool {
        self.windowed_rope.is_some() && self.window(layer).is_some()
    }

    /// Everything that decides what K and V are besides weights and sizes, as text for the identity of blocks.
    pub fn identity(&self) -> String {
        let rope = (self.rope.base, self.head_dim, self.norm_epsilon);
        let plain = RopeConfig::plain(self.rope.base);
        let shape = (self.activation, self.embedding_scale, self.attention_scale);
        let plainly = (Activation::Silu, 1.0, default_scale(self.head_dim));
        let windows = self.window.is_some() && self.windowed.contains(&true);
        if self.rope == plain && shape == plainly && !windows && self.attention_soft_cap.is_none() {
            return format!("rope {rope:?}, no window");
        }
        let caps = self.attention_soft_cap;
        let windows = (self.window, &self.windowed, &self.windowed_rope);
        format!("rope {:?} {rope:?}, {shape:?}, cap {caps:?}, window {windows:?}", self.rope)
    }

    fn check(&self, rope_dims: usize) -> Result<(), ModelError> {
        let unusable = |text: String| Err(ModelError::Unusable(text));
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
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
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let scales = [self.norm_epsilon, f64::from(self.embedding_scale), f64::from(self.attention_scale)];
        let caps = [self.attention_soft_cap, self.logit_soft_cap].into_iter().flatten().map(f64::from);
        if !scales.into_iter().chain(caps).all(positive) {
            return unusable("an epsilon, scale or cap of its metadata is not a positive number".to_owned());
        }
        assert_eq!(self.windowed.len(), self.layers, "one entry a layer");
        self.rope.check(self.head_dim)?;
        self.windowed_rope.as_ref().map_or(Ok(()), |rope| rope.check(self.head_dim))
    }
}

/// `1 / sqrt(head_dim)`, the scale of attention where a model says nothing else.
fn default_scale(head_dim: usize) -> f32 {
    (1.0 / (head_dim as f64).sqrt()) as f32
}

/// Every `pattern`-th layer sees everything, the others have the window.
fn every_nth_is_global(layers: usize, pattern: usize) -> Vec<bool> {
    (1..=layers).map(|layer| pattern == 0 || !layer.is_multiple_of(pattern)).collect()
}

fn size(name: &str, value: u64) -> Result<usize, ModelError> {
    usize::try_from(value)
        .ok()
        .filter(|_| (1..MAX_SIZE).contains(&value))
        .ok_or_else(|| ModelError::Unusable(format!("metadata {name} is {value}, which no model has")))
}

fn missing(name: &str) -> ModelError {
    ModelError::Unusable(format!("metadata {name} is missing"))
}
