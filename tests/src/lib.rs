//! What Turnmill's end-to-end tests share: real servers and workers, and the suites that every adapter of a port
//! passes.

pub mod broker_conformance;
pub mod line;
pub mod redis_server;
pub mod told;
pub mod worker;

use std::path::PathBuf;
use std::time::Duration;

/// Longest wait for a condition before a test fails: a busy machine is slow, a broken worker never gets there.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// A program of this workspace, built in the same profile as the running test.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let program = test.ancestors().nth(2).expect("tests lie in deps, in the profile's folder").join(name);
    assert!(program.exists(), "{} is missing; build it: cargo build --release --bins", program.display());
    program
}
