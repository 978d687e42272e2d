//! The metric of spans that were not exported.

use metrics::counter;

use crate::metrics::{Described, Kind};

/// Why: there was no room in the queue of spans.
pub(super) const QUEUE_FULL: &str = "queue_full";
/// Why: the receiver did not take them.
pub(super) const EXPORT_FAILED: &str = "export_failed";

const DROPPED: Described = Described {
    name: "turnmill_spans_dropped_total",
    kind: Kind::Counter,
    labels: &["reason"],
    values: &[QUEUE_FULL, EXPORT_FAILED],
    help: "Spans that were not exported, by reason.",
};

/// What traces record: for a program's catalogue.
pub const METRICS: &[Described] = &[DROPPED];

/// `count` spans were not exported.
pub(super) fn spans_dropped(reason: &'static str, count: usize) {
    counter!(DROPPED.name, "reason" => reason).increment(count as u64);
}
