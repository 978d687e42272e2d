//! Where the hub is and where its files are kept: the variables that the hub's own tools read.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::HubError;

/// The hub itself.
const ENDPOINT: &str = "https://huggingface.co";

/// How to speak to the hub.
#[derive(Clone)]
pub struct HubSettings {
    /// Its address (`HF_ENDPOINT`).
    pub endpoint: Url,
    /// Who asks (`HF_TOKEN`, or the file that `hf auth login` writes).
    pub token: Option<String>,
    /// Where files are kept (`HF_HUB_CACHE`, or `hub` in `HF_HOME`).
    pub cache: PathBuf,
    /// Nothing is asked of the hub (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// Pause after the first failure of a download; it doubles.
    pub pause: Duration,
}

impl HubSettings {
    /// From the environment.
    pub fn from_env() -> Result<Self, HubError> {
        let text = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let path = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let caches = || {
            let home = || etcetera::home_dir().map_err(|_| HubError::NoHome);
            path("XDG_CACHE_HOME").map_or_else(|| Ok(home()?.join(".cache")), Ok)
        };
        let home = path("HF_HOME").map_or_else(|| Ok(caches()?.join("huggingface")), Ok)?;
        let named = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = named.parse::<Url>().ok().filter(|url| !url.cannot_be_a_base());
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = text("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file).ok());
        let offline = text("HF_HUB_OFFLINE")
            .is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str()));
        Ok(Self {
            endpoint: endpoint.ok_or(HubError::BadEndpoint(named))?,
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            cache: path("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub")),
            offline,
            pause: Duration::from_secs(1),
        })
    }
}
