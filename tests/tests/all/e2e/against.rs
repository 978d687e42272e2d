//! `against`, which `deploy/bench --against COMMIT` runs, with this build in the commit's place.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;
use turnmill_tests::line::Line;
use turnmill_tests::worker::model;
use turnmill_tests::{PATIENCE, program};

/// Compares the programs in `old` with this build.
async fn against(old: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program("against"));
    command.args(["--old-name", "old", "--rounds", "1", "--json", "--model", &model()]).args(arguments);
    command.arg("--old").arg(old).stdin(Stdio::null()).kill_on_drop(true);
    timeout(2 * PATIENCE, command.output()).await.expect("it ends").expect("it can be run")
}

#[tokio::test]
async fn parts_have_figures_of_both_builds() {
    // For the machine.
    let _line = Line::start().await;
    let here = program("turnmill-worker");
    // Decoding is measured as prompts are, and takes longest.
    let parts = ["--only", "prefill,agents,cycles,restore"];
    let output = against(here.parent().expect("a folder"), &parts).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one object");
    let figures = report["figures"].as_array().expect("a list");
    let names: Vec<&str> = figures.iter().filter_map(|figure| figure["name"].as_str()).collect();
    let expected = ["prefill 512", "prefill 2048", "8 agents", "cycles", "restore 2048"];
    assert_eq!(names, expected);
    for figure in figures {
        let [old, new] = ["old", "new"].map(|side| figure[side].as_f64().expect("a number"));
        let speed = if figure["unit"] == "ms" { old / new } else { new / old };
        let ratio = figure["ratio"].as_f64().expect("a number");
        // JSON's decimals need not come back to the last bit.
        assert!((ratio - speed).abs() < 1e-9, "{figure}");
        // One round tells nothing of how much the ratio is worth.
        assert_ne!(figure["verdict"], "fine", "{figure}");
    }
}

#[tokio::test]
async fn a_build_that_is_not_there_or_does_not_run_is_told() {
    let _line = Line::start().await;
    let folder = TempDir::new().expect("the temporary directory is writable");
    let refused = async |named: &str| {
        let output = against(folder.path(), &["--only", "agents"]).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.lines().last().is_some_and(|line| line.contains(named)), "{said}");
    };
    refused("turnmill-worker is missing").await;
    // A program that refuses the worker's command line.
    for name in ["turnmill", "turnmill-worker"] {
        symlink(program("turnmill"), folder.path().join(name)).expect("a new name");
    }
    refused("turnmill-worker serve failed").await;
}
