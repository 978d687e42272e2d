//! `turnmill submit FILE` of many lines, of lines that are one turn, and of lines too large for Redis.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};
use turnmill_client::NewTurn;
use turnmill_tests::PATIENCE;
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
    let _worker = line.stand_in().await;
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

/// Lines under one idempotency key are one turn, and each line has its result.
#[tokio::test]
async fn a_line_that_comes_twice_is_one_turn_with_two_results() {
    let line = Line::without_workers().await;
    let _worker = line.stand_in().await;
    let mut file = NamedTempFile::new().expect("the temporary directory is writable");
    for key in ["once", "twice", "twice"] {
        let asked = json!({"message": "hi", "max_tokens": 1, "idempotency_key": key});
        writeln!(file, "{asked}").expect("written");
    }
    let path = file.path().to_string_lossy();
    // The second time all of them ended before.
    for _ in 0..2 {
        let flags = ["submit", &path, "--wait", "--json"];
        let output = tokio::time::timeout(PATIENCE / 4, line.turnmill(&flags)).await.expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), said), (Some(0), String::new()));
        let printed = String::from_utf8(output.stdout).expect("text");
        let results = printed.lines().map(|line| serde_json::from_str::<Value>(line).expect("an object"));
        let mut turns: Vec<String> = results.map(|result| result["turn"].to_string()).collect();
        assert_eq!(turns.len(), 3, "{printed}");
        turns.sort();
        turns.dedup();
        assert_eq!(turns.len(), 2, "{printed}");
    }
}

/// A file of one line that goes through the store.
fn large_line() -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("the temporary directory is writable");
    writeln!(file, "{}", json!({"message": "x".repeat(300 << 10)})).expect("written");
    file
}

/// The files of a store, each with its number: one that is written again has another.
fn stored(folder: &Path) -> Vec<(PathBuf, u64)> {
    let Ok(entries) = folder.read_dir() else { return Vec::new() };
    let entries = entries.map(|entry| entry.expect("a folder can be read"));
    let found = entries.flat_map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => stored(&entry.path()),
        // The store writes under another name first, which may be gone by now.
        Ok(found) if !entry.path().to_string_lossy().contains('#') => vec![(entry.path(), found.ino())],
        _ => Vec::new(),
    });
    found.collect()
}

/// How often the server was asked to enqueue, or to take another step.
async fn steps(line: &Line) -> u64 {
    let client = redis::Client::open(line.redis.url()).expect("a URL");
    let mut redis = client.get_multiplexed_async_connection().await.expect("Redis answers");
    let info: String = redis::cmd("INFO").arg("commandstats").query_async(&mut redis).await.expect("INFO");
    let calls = info.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
    calls.and_then(|calls| calls.split(',').next()?.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn a_large_line_is_written_to_the_store_once_however_long_it_waits_for_room() {
    let line = Line::without_workers().await;
    let folder = TempDir::new().expect("the temporary directory is writable");
    let store = format!("file://{}", folder.path().display());
    let first = line.enqueue(vec![NewTurn::user("hi")]).await[0];
    let file = large_line();
    let path = file.path().to_string_lossy();
    let limits = ["submit", &path, "--store", &store, "--max-depth", "1"];
    let waiting = [&limits[..], &["--wait-for-room"]].concat();
    let watch = async {
        let deadline = Instant::now() + PATIENCE;
        let (mut seen, mut before) = (Vec::new(), None);
        loop {
            let (now, asked) = (stored(folder.path()), steps(&line).await);
            if !now.is_empty() {
                seen.push(now);
                // It tries again several times after the object is there.
                if asked >= *before.get_or_insert(asked) + 4 {
                    break seen;
                }
            }
            assert!(Instant::now() < deadline, "it does not try again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let submitted = async {
        let output = line.turnmill(&waiting).await;
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let make_room = async {
        let seen = watch.await;
        assert!(seen.iter().all(|now| *now == seen[0]), "it is written again: {seen:?}");
        line.producer.cancel(first).await.expect("cancels");
    };
    tokio::join!(submitted, make_room);
    assert_eq!(stored(folder.path()).len(), 1, "the turn is in the queue and needs its object");
}

#[tokio::test]
async fn a_large_line_that_is_refused_leaves_nothing_in_the_store() {
    let line = Line::without_workers().await;
    let folder = TempDir::new().expect("the temporary directory is writable");
    let store = format!("file://{}", folder.path().display());
    let file = large_line();
    let path = file.path().to_string_lossy();
    line.enqueue(vec![NewTurn::user("hi")]).await;
    let output = line.turnmill(&["submit", &path, "--store", &store, "--max-depth", "1"]).await;
    assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(stored(folder.path()).is_empty(), "{:?}", stored(folder.path()));
}
