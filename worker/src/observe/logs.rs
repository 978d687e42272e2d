//! The worker's log lines, written by [`turnmill_telemetry::logs`] under the worker's name.
//!
//! Invariants: a line about a turn is written in the turn's span, and so carries its fields (see `turn_span`); no line quotes
//! what a turn says unless the setting `log_content` asks for it (every log line keeps to that: see `runner`).

use std::fmt::Display;

pub use turnmill_telemetry::logs::writes_json;

use crate::PROGRAM;

/// Says on standard error why the worker ends, as the last of its log lines in JSON.
pub fn fatal(error: &dyn Display) {
    turnmill_telemetry::logs::fatal(&PROGRAM, error);
}
