//! A program run to its end, and what it printed.

use std::path::Path;
use std::process::Stdio;

use serde::de::DeserializeOwned;
use tokio::process::Command;

use super::BenchError;
use crate::program;

/// Runs it; its standard output. It dies with the future.
pub(super) async fn output(command: &mut Command) -> Result<String, BenchError> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(BenchError::Program { program, reason: format!("{last} ({})", output.status) })
}

/// Runs `turnmill-worker bench <what>` on `model`.
pub(super) async fn worker_bench<T: DeserializeOwned>(
    what: &str,
    model: &Path,
    flags: &[&str],
) -> Result<T, BenchError> {
    let mut command = worker(what);
    command.arg("--model").arg(model).args(flags);
    json(&format!("turnmill-worker bench {what}"), &output(&mut command).await?)
}

/// `turnmill-worker bench <what> --json`, as it is without settings of this machine.
pub(super) fn worker(what: &str) -> Command {
    let mut command = Command::new(program("turnmill-worker"));
    command.args(["bench", what, "--json"]);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TURNMILL_") {
            command.env_remove(name);
        }
    }
    command
}

/// Reads what `program` printed.
pub(super) fn json<T: DeserializeOwned>(program: &str, text: &str) -> Result<T, BenchError> {
    let unreadable = |error: serde_json::Error| BenchError::Unreadable {
        program: program.to_owned(),
        reason: error.to_string(),
    };
    serde_json::from_str(text.trim()).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failure_is_told_with_the_last_thing_that_was_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo first >&2; echo last >&2; echo >&2; exit 3"]);
        let error = output(&mut command).await.expect_err("it failed").to_string();
        assert_eq!(error, "sh failed: last (exit status: 3)");
    }
}
