//! Models from Hugging Face's hub, kept where its own tools keep them.
//!
//! Owns: names of models on the hub, which files of one are needed, downloads that go on where they broke off, and the
//! cache. Our own client, because every release of the hub's crate brings a second TLS stack or a copyleft licence (ADR 0016).
//!
//! Invariants: a file has its final name only when it is whole, and has the SHA-256 that the hub gives for it; a download
//! that broke off is gone on with; a token is sent to the hub and to no other host.

#![allow(clippy::disallowed_methods, reason = "downloads before a worker runs; not simulated")]

mod cache;
mod client;
mod error;
mod files;
mod reference;
mod settings;

use std::path::{Path, PathBuf};

use tracing::{info, warn};

use cache::Cache;
use client::Client;

pub use error::HubError;
pub use reference::HubModel;
pub use settings::HubSettings;

/// How far the download of a file is.
#[derive(Clone, Copy, Debug)]
pub struct Fetching<'a> {
    /// Its name in the repository.
    pub file: &'a str,
    /// Bytes that are there.
    pub done: u64,
    /// Bytes in all, where the hub says.
    pub size: Option<u64>,
}

/// Told of downloads while they run.
pub type Progress<'a> = &'a dyn Fn(Fetching<'_>);

/// The path of a model named by a setting: as it is, or where the files from the hub lie, fetched where they are missing.
/// Blocks; not to be called on an async task.
pub fn resolve(model: &Path, progress: Progress<'_>) -> Result<PathBuf, HubError> {
    let Some(name) = model.to_str().filter(|_| HubModel::is_named_by(model)) else {
        return Ok(model.to_owned());
    };
    fetch(&name.parse()?, &HubSettings::from_env()?, progress)
}

/// The path of `model`: a GGUF file, or the folder with its safetensors. Blocks; not to be called on an async task.
pub fn fetch(model: &HubModel, settings: &HubSettings, progress: Progress<'_>) -> Result<PathBuf, HubError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(HubError::System)?;
    runtime.block_on(fetch_from_hub(model, settings, progress))
}

async fn fetch_from_hub(
    model: &HubModel,
    settings: &HubSettings,
    progress: Progress<'_>,
) -> Result<PathBuf, HubError> {
    let cache = Cache::new(&settings.cache, model);
    if settings.offline {
        return cache.kept(model)?.ok_or_else(|| HubError::NotKept(model.to_string()));
    }
    let client = Client::new(settings, model)?;
    let listing = match client.list().await {
        Ok(listing) => listing,
        Err(error @ HubError::Unreachable { .. }) => match cache.kept(model)? {
            Some(path) => {
                warn!(%error, path = %path.display(), "the model is the one that was fetched before");
                return Ok(path);
            }
            None => return Err(error),
        },
        Err(error) => return Err(error),
    };
    let needed = files::needed(model, &listing.files)?;
    for file in needed.names() {
        if !cache.has(&listing.commit, file) {
            info!(model = %model, file, "fetching");
            client.fetch(&cache, &listing.commit, file, progress).await?;
        }
    }
    cache.remember(&model.revision, &listing.commit)?;
    Ok(cache.path(&listing.commit, &needed))
}
