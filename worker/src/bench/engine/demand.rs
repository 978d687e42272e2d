//! What a step has to read of memory, from the model's header alone.

use super::{BenchError, Options};
use crate::model::gguf::Gguf;
use crate::model::{DecoderConfig, LoadOptions, ModelError};

/// Bytes that a step of one row reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Demand {
    /// Weights, each once, as the file holds them; a worker may hold them wider.
    pub weight_bytes: u64,
    /// K and V of one token of the context.
    pub token_bytes: u64,
}

impl Demand {
    /// Reads the header of the options' model.
    pub fn of(options: &Options) -> Result<Self, BenchError> {
        let gguf = Gguf::open(&options.model)?;
        let config = DecoderConfig::from_gguf(&gguf)?;
        let unreadable = |error: std::io::Error| ModelError::Unreadable {
            path: options.model.clone(),
            reason: error.to_string(),
        };
        let file = std::fs::metadata(&options.model).map_err(unreadable)?.len();
        let weights = file.saturating_sub(gguf.content().tensor_data_offset);
        let load = LoadOptions::new(options.weights, options.kv_dtype);
        Ok(Self {
            weight_bytes: read_of(weights, &config, gguf.has("output.weight")),
            token_bytes: load.token_bytes(&options.model)? as u64,
        })
    }
}

/// How many of a file's `bytes` of weights a step reads: of an embedding table that is not the output head too, it reads a row.
fn read_of(bytes: u64, config: &DecoderConfig, untied: bool) -> u64 {
    let (hidden, heads) = (config.hidden, config.heads * config.head_dim);
    let attention = hidden * (2 * heads + 2 * config.kv_heads * config.head_dim);
    let layers = config.layers * (attention + 3 * hidden * config.intermediate);
    let head = config.vocabulary * hidden;
    let read = layers + head;
    let held = if untied { read + head } else { read };
    (bytes as f64 * read as f64 / held as f64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_embedding_table_of_its_own_is_not_read() {
        let config = DecoderConfig {
            hidden: 64,
            intermediate: 128,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            vocabulary: 1000,
            context_tokens: 64,
            rope_base: 1e4,
            norm_epsilon: 1e-5,
        };
        // Two layers of 64 * (128 + 64) + 3 * 64 * 128 weights, a head of 64,000.
        let read = 2 * (12_288 + 24_576) + 64_000;
        assert_eq!(read_of(read, &config, false), read);
        assert_eq!(read_of(read + 64_000, &config, true), read);
    }
}
