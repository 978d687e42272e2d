//! The worker's settings. How flags, environment, file and defaults become validated values is [`mod@turnmill_telemetry::settings`]'s.
//!
//! Invariants: a [`Settings`] that [`Settings::load`] returned is valid as a whole; passwords are never printed.
//! `settings.rs` holds the one table: adding a setting is adding an entry there, and a rule in `validate.rs`.

mod error;
mod settings;
mod store_url;
mod validate;
mod values;

pub use error::ConfigError;
pub use settings::Settings;
pub use store_url::{StoreSetting, StoreUrl};
pub use turnmill_redis::{Endpoint as RedisEndpoint, RedisUrl};
pub use turnmill_telemetry::logs::{LogFilter, LogFormat};
pub use turnmill_telemetry::settings::{
    AutoByteSize, ByteSize, Effective, log_format, report, without_empty_variables,
};
pub use turnmill_telemetry::traces::OtlpUrl;
pub use values::{DeviceKind, KvCodec, KvDtype, ModelDigest, SpeculationMode, WeightsMode, WorkerName};

/// The arguments of every command that needs settings; flatten it into the command's own.
pub type SettingsArgs = turnmill_telemetry::settings::SettingsArgs<Settings>;
