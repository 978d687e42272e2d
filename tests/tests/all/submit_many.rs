//! `turnmill submit FILE --wait` of more lines than go into one call, one page or one set of followers.

use std::collections::BTreeSet;
use std::io::Write;

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use turnmill_tests::line::Line;

/// A file of so many lines over 60 agents.
fn lines(count: usize) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("the temporary directory is writable");
    for i in 0..count {
        let line =
            json!({"agent": format!("agent-{}", i % 60), "message": format!("Line {i}"), "max_tokens": 1});
        writeln!(file, "{line}").expect("written");
    }
    file
}

/// Submits so many lines and waits for them: each has a result of its own.
async fn submit(line: &Line, count: usize) {
    let file = lines(count);
    let path = file.path().to_string_lossy();
    let output = line.turnmill(&["submit", &path, "--wait", "--json"]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), said), (Some(0), String::new()), "{count} lines");
    let printed = String::from_utf8(output.stdout).expect("text");
    let results: Vec<Value> =
        printed.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    let turns: BTreeSet<String> = results.iter().map(|result| result["turn"].to_string()).collect();
    assert_eq!((results.len(), turns.len()), (count, count));
    assert!(results.iter().all(|result| result["outcome"] == "completed"));
}

#[tokio::test]
async fn every_line_gets_one_result_however_many_there_are() {
    let line = Line::without_workers().await;
    let _worker = line.scripted_worker().await;
    // Calls hold 200 turns, and 256 are waited for at once: one above the first, and several of both.
    for count in [201, 600] {
        submit(&line, count).await;
    }
}

#[tokio::test]
async fn a_worker_with_a_model_gives_every_line_one_result_too() {
    let line = Line::start().await;
    let _worker = line.worker(&[]);
    submit(&line, 201).await;
}
