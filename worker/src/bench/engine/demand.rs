//! What a step has to read of memory, from the model's configuration alone.

use super::{BenchError, Options};
use crate::config::WeightsMode;
use crate::model::{Checkpoint, DecoderConfig};

/// Bytes that a step of one row reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Demand {
    /// Weights, each once, as the mode holds them; as the file has them they are counted like Q8_0, which is too much for
    /// smaller formats.
    pub weight_bytes: u64,
    /// K and V of one token of the context.
    pub token_bytes: u64,
}

impl Demand {
    /// Reads the configuration of the options' model.
    pub fn of(options: &Options) -> Result<Self, BenchError> {
        let checkpoint = Checkpoint::open(&options.model.path)?;
        let load = options.model.load_options();
        let weights = weights(checkpoint.config());
        Ok(Self {
            weight_bytes: match options.model.weights {
                WeightsMode::F32 => 4 * weights,
                // 32 bytes and a scale of two for 32 weights.
                WeightsMode::Fast | WeightsMode::AsIs => weights * 34 / 32,
            },
            token_bytes: load.token_bytes(&options.model.path)? as u64,
        })
    }
}

/// Weights that a step multiplies by: all but the embedding, of which it reads rows, and norms, which are few.
fn weights(config: &DecoderConfig) -> u64 {
    let (hidden, heads) = (config.hidden, config.heads * config.head_dim);
    let attention = hidden * (2 * heads + 2 * config.kv_heads * config.head_dim);
    let layers = config.layers * (attention + 3 * hidden * config.intermediate);
    (layers + config.vocabulary * hidden) as u64
}
