//! The flags of commands that load a model and need nothing else of the settings.

use std::path::PathBuf;

use clap::Args;
use turnmill_worker::config::{KvDtype, WeightsMode};

/// Which model, and how it is held.
#[derive(Args)]
pub struct ModelArgs {
    /// The model, a GGUF file.
    #[arg(long, value_name = "FILE", env = "TURNMILL_MODEL")]
    pub model: PathBuf,
    /// How weights are held.
    #[arg(long, value_name = "MODE", default_value = "fast")]
    pub weights: WeightsMode,
    /// Element type of the block pool.
    #[arg(long, value_name = "DTYPE", default_value = "f16")]
    pub kv_dtype: KvDtype,
}
