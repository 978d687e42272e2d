//! How the worker is doing: metrics, logs, traces, and the small HTTP server that tells the first two.
//!
//! Invariants: label values come from closed lists, so the number of series is fixed; a number that cannot be
//! read is absent, never 0; probes answer while the engine keeps every core busy.

#![allow(clippy::disallowed_methods, reason = "probes, scrapes and spans tell the time of the machine")]

mod catalogue;
mod error;
mod exposition;
pub mod http;
pub mod logs;
pub mod metrics;
mod process;
mod queue;
mod state;
pub mod traces;
mod turn_span;

pub use catalogue::{Described, Kind, catalogue, document};
pub use error::ObserveError;
pub use queue::QueueGauges;
pub use traces::Traces;
pub use turn_span::{Claimed, TurnSpan};
