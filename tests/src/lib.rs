//! What Turnmill's end-to-end tests share: real servers and workers, the suites that every adapter of a port
//! passes, chaos, and benches.

pub mod bench;
pub mod block_store_conformance;
pub mod broker_conformance;
pub mod chaos;
pub mod golden;
pub mod leftovers;
pub mod line;
pub mod machine;
pub mod memory_broker;
pub mod memory_queue;
pub mod observability;
pub mod otlp_server;
pub mod prometheus_server;
pub mod proxy;
pub mod redis_link;
pub mod redis_queue;
pub mod redis_server;
pub mod s3_server;
pub mod scrape;
pub mod scripted_worker;
pub mod simulation;
pub mod stand_in;
pub mod told;
pub mod until_signal;
pub mod worker;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// Longest wait for a condition before a test fails: a busy machine is slow, a broken worker never gets there.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// A program of this workspace: from the folder that `TURNMILL_TEST_BIN` names, else the one built in the same profile as
/// the running test. So a test of what can be seen from outside can be run against other versions of the programs.
pub fn program(name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("TURNMILL_TEST_BIN") {
        let program = PathBuf::from(folder).join(name);
        assert!(program.is_file(), "TURNMILL_TEST_BIN names a folder without {name}");
        return program;
    }
    let running = std::env::current_exe().expect("a running program has a path");
    // Programs lie in the profile's folder, tests in `deps` below it.
    let mut found = running.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    let missing = || panic!("{name} is not beside {}; cargo build --release --bins", running.display());
    found.find(|program| program.is_file()).unwrap_or_else(missing)
}

/// A program of this workspace, to be run without any setting of this machine.
pub fn command(name: &str) -> Command {
    without_settings(Command::new(program(name)))
}

/// `command` without this process's `TURNMILL_*` variables: programs take them for settings, and refuse those that they do not know.
pub fn without_settings(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TURNMILL_") {
            command.env_remove(name);
        }
    }
    command
}

/// Waits until `holds`. Panics if it does not in [`PATIENCE`].
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
