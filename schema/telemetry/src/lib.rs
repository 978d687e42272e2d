//! What Turnmill's services share around their work: how they are set, and how they tell how they are doing.
//!
//! | room | owns |
//! |---|---|
//! | [`mod@settings`] | flags over environment over file over defaults, with the source of every value; nothing unknown is accepted |
//! | [`logs`] | log lines: text for people, JSON for programs; their filter, and the last words of a process |
//! | [`traces`] | spans over OTLP, behind a bound |
//! | [`metrics`] | a program's catalogue of metrics, what records them, Prometheus's text format |
//! | [`probes`] | the HTTP server for orchestrators and Prometheus |
//! | [`signals`] | which signals mean: stop |
//! | [`descriptors`] | how many files and sockets the process may have |
//!
//! A program says once what it is called ([`Program`]); its metrics ([`metrics::Catalogue`]), its settings ([`settings!`]) and
//! what its probes answer ([`probes::Probed`]) are its own. This crate knows nothing of queues, models or Redis.

pub mod descriptors;
mod error;
pub mod logs;
pub mod metrics;
pub mod probes;
mod program;
pub mod settings;
pub mod signals;
pub mod traces;

pub use error::TelemetryError;
pub use program::Program;
