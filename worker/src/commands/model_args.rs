//! The flags of commands that load a model and need nothing else of the settings.

use std::path::PathBuf;

use clap::Args;
use turnmill_worker::app::Loading;
use turnmill_worker::config::{DeviceKind, KvDtype, WeightsMode};
use turnmill_worker::hub::{self, HubError};
use turnmill_worker::model::ModelChoice;

use super::loading::LoadingBar;

/// Which model, and how it is held.
#[derive(Args)]
pub struct ModelArgs {
    /// The model: a GGUF file, a folder with safetensors, or hf:OWNER/NAME
    #[arg(long, value_name = "MODEL", env = "TURNMILL_MODEL")]
    pub model: PathBuf,
    /// What computes.
    #[arg(long, value_name = "DEVICE", env = "TURNMILL_DEVICE", default_value = "auto")]
    pub device: DeviceKind,
    /// How weights are held.
    #[arg(long, value_name = "MODE", default_value = "fast")]
    pub weights: WeightsMode,
    /// Element type of the block pool.
    #[arg(long, value_name = "DTYPE", default_value = "f16")]
    pub kv_dtype: KvDtype,
}

impl ModelArgs {
    /// The same, with where the model lies; fetched first if it is on the hub.
    pub fn choice(&self) -> Result<ModelChoice, HubError> {
        let bar = LoadingBar::new();
        let path = hub::resolve(&self.model, &|fetching| bar.show(Loading::Fetching(fetching)))?;
        Ok(ModelChoice { path, device: self.device, weights: self.weights, kv_dtype: self.kv_dtype })
    }
}
