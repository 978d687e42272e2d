//! Settings: flags, environment, file and defaults become validated values before anything binds.
//!
//! Invariants: a [`Settings`] that [`Settings::load`] returned is valid as a whole; every value knows where
//! it came from; what nobody knows (a key, a variable, a flag) is refused; passwords are never printed.
//! `settings.rs` holds the one table: adding a setting is adding an entry there, and a rule in `validate.rs`.

mod byte_size;
mod error;
mod load;
mod otlp_url;

pub mod report;
mod settings;
mod store_url;
mod validate;
mod values;

pub use byte_size::{AutoByteSize, ByteSize};
pub use error::ConfigError;
pub use load::{Effective, SettingsArgs, Source, log_format, without_empty_variables};
pub use otlp_url::OtlpUrl;
pub use settings::Settings;
pub use store_url::{StoreSetting, StoreUrl};
pub use turnmill_redis::{Endpoint as RedisEndpoint, RedisUrl};
pub use values::{
    DeviceKind, InvalidFilter, KvCodec, KvDtype, LogFilter, LogFormat, ModelDigest, SpeculationMode,
    WeightsMode, WorkerName,
};
