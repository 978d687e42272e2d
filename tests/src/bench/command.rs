//! A program run to its end, and what it printed.

use std::process::Stdio;

use serde::de::DeserializeOwned;
use tokio::process::Command;

use super::BenchError;

/// Runs it; its standard output. It dies with the future.
pub(super) async fn output(command: &mut Command) -> Result<String, BenchError> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(BenchError::Program { program, reason: format!("{} ({})", last_line(&said), output.status) })
}

/// The last thing that a program said.
pub(super) fn last_line(said: &str) -> &str {
    said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing")
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
