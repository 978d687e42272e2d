//! How the worker is doing: its metrics, the spans of its turns, and what it answers to probes. How that is told is
//! [`turnmill_telemetry`]'s.
//!
//! Invariants: label values come from closed lists, so the number of series is fixed; a number that cannot be
//! read is absent, never 0; probes answer while the engine keeps every core busy.

#![allow(clippy::disallowed_methods, reason = "probes, scrapes and spans tell the time of the machine")]

mod catalogue;
pub mod logs;
pub mod metrics;
mod probes;
mod queue;
mod state;
mod traces;
mod turn_span;

pub use catalogue::{CATALOGUE, catalogue};
pub use probes::Probes;
pub use queue::QueueGauges;
pub use traces::Traces;
pub use turn_span::{Claimed, TurnSpan};
pub use turnmill_telemetry::metrics::{Described, Kind};
