//! Golden words: the programs say to 300 turns what a commit of record said. See `tests/golden/README.md`.

use std::process::Output;

use futures::{StreamExt, stream};
use serde_json::Value;
use tempfile::TempDir;
use turnmill_tests::golden::{self, Asked, Words};
use turnmill_tests::line::Line;
use turnmill_tests::worker::Worker;

/// A worker is killed each time so many turns have ended.
const KILLS: [usize; 3] = [40, 120, 200];

/// What workers may differ in. Each worker that starts takes the next shape.
const SHAPES: [[&str; 6]; 3] = [
    ["--max-sequences", "5", "--batch-tokens", "64", "--speculation", "off"],
    ["--max-sequences", "12", "--batch-tokens", "512", "--speculation", "lookup"],
    ["--max-sequences", "8", "--batch-tokens", "200", "--speculation", "auto"],
];

/// Two workers must share a small machine, and turns of a killed one must soon be free.
const FLAGS: [&str; 6] = ["--threads", "1", "--lease-ms", "2000", "--max-attempts", "50"];

/// What was read of a turn.
struct Read {
    words: Words,
    /// Attempts that went on after published tokens.
    resumed: usize,
}

#[tokio::test]
async fn three_hundred_turns_say_what_was_recorded() {
    let asked = golden::turns();
    let line = Line::start().await;
    let read = run(&line, &asked).await;
    let resumed: usize = read.iter().map(|read| read.resumed).sum();
    assert!(resumed > 0, "no turn was resumed after a kill, so resuming was not tested");
    let said: Vec<Words> = read.into_iter().map(|read| read.words).collect();
    if std::env::var_os("TURNMILL_TEST_RECORD_GOLDEN").is_some() {
        return golden::record(&said);
    }
    if let Err(report) = golden::compare(&golden::recorded(), &said) {
        panic!("{report}");
    }
}

/// Runs the turns on two workers that are killed in the middle and replaced.
async fn run(line: &Line, asked: &[Asked]) -> Vec<Read> {
    let folder = TempDir::new().expect("the temporary directory is writable");
    let store = format!("file://{}", folder.path().display());
    let launch = |shape: usize| {
        let flags = [&SHAPES[shape % SHAPES.len()][..], &FLAGS, &["--store", &store]].concat();
        Worker::launch(&line.redis.url(), &flags)
    };
    let mut workers = [launch(0), launch(1)];
    workers.iter_mut().for_each(Worker::until_ready);

    let turns = submit(line, asked).await;
    for (kill, ended) in KILLS.into_iter().enumerate() {
        until_ended(line, ended).await;
        workers[kill % 2].kill9();
        workers[kill % 2] = launch(kill + 2);
    }
    for end in until_ended(line, turns.len()).await {
        assert_eq!(end["outcome"], "completed", "{end}");
    }
    let read = asked.iter().zip(&turns).map(|(asked, turn)| read(line, asked, turn));
    stream::iter(read).buffered(4).collect().await
}

/// Enqueues the turns; their ids.
async fn submit(line: &Line, asked: &[Asked]) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().expect("the temporary directory is writable");
    let lines: Vec<String> = asked.iter().map(Asked::text).collect();
    std::fs::write(file.path(), lines.join("\n")).expect("a file just made can be written");
    let file = file.path().to_str().expect("a temporary path is UTF-8");
    let submitted = objects(&line.turnmill(&["submit", file, "--json"]).await);
    submitted.iter().map(|submitted| text(submitted, "turn")).collect()
}

/// Waits until `count` turns have ended; their ends.
async fn until_ended(line: &Line, count: usize) -> Vec<Value> {
    let count = count.to_string();
    objects(&line.turnmill(&["events", "--from", "0", "--count", &count, "--json"]).await)
}

/// What a turn said.
async fn read(line: &Line, asked: &Asked, turn: &str) -> Read {
    let events = objects(&line.turnmill(&["tail", turn, "--json"]).await);
    let of = |kind| events.iter().filter(move |event| event["kind"] == kind);
    let tokens = of("delta").flat_map(|delta| delta["tokens"].as_array().expect("a delta has tokens"));
    let id = |token: &Value| token.as_u64().and_then(|id| u32::try_from(id).ok()).expect("a token id");
    let finish = of("end").map(|end| text(end, "finish")).next().expect("tail ends with the end");
    Read {
        words: Words::new(asked, tokens.map(id).collect(), &finish),
        resumed: of("begin").filter(|begin| begin["resume_from"].as_u64() > Some(0)).count(),
    }
}

/// The JSON objects that a command wrote.
fn objects(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).expect("each line is JSON")).collect()
}

fn text(object: &Value, key: &str) -> String {
    object[key].as_str().unwrap_or_else(|| panic!("no {key} in {object}")).to_owned()
}
