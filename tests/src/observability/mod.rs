//! What Prometheus, Grafana and operators are given (`deploy/prometheus`, `deploy/grafana`, `docs/RUNBOOK.md`), read as they
//! read it, and checked against the metrics that a worker has.
//!
//! Invariants: nothing is extracted by looking for likely words where there is a grammar; every check says all that it
//! finds, not the first.

pub mod catalogue;
pub mod dashboard;
pub mod promql;
pub mod rules;
pub mod runbook;

use std::path::PathBuf;

/// The repository's own page; links to documents begin with it.
pub const REPOSITORY: &str = env!("CARGO_PKG_REPOSITORY");

/// A file or folder of the repository.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(name)
}

/// The text of a file of the repository.
pub fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name} cannot be read: {error}"))
}
