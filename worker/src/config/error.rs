//! What can be wrong with a configuration.

use turnmill_telemetry::settings::SettingsError;

/// Why the settings were refused. Nothing has been bound, opened or claimed when this is returned.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A flag, a variable or the configuration file.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The command needs a model and none is named.
    #[error(
        "no model is named; give --model FILE, set TURNMILL_MODEL or put model into the configuration file"
    )]
    NoModel,
}
