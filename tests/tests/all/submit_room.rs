//! `turnmill submit` while the queue is full, and commands that write while nobody reads what they print.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::time::{sleep, timeout};
use turnmill_client::NewTurn;
use turnmill_client::operate::Scope;
use turnmill_client::operate::agent::AgentQuery;
use turnmill_client::schema::TurnId;
use turnmill_tests::line::{Line, exactly, name};
use turnmill_tests::{PATIENCE, program};

fn lines(count: usize, max_tokens: u32) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("the temporary directory is writable");
    for i in 0..count {
        let line = json!({
            "agent": format!("agent-{}", i % 60), "message": format!("Line {i}"), "max_tokens": max_tokens,
            "temperature": 0, "ignore_eos": true,
        });
        writeln!(file, "{line}").expect("written");
    }
    file
}

/// A running command; killed on drop, because a test that fails must not wait for it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing to be done about a failure here: it has already exited.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The command, with both of its outputs where the caller wants them.
fn turnmill(line: &Line, arguments: &[&str], stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) -> Running {
    let mut command = Command::new(program("turnmill"));
    command.args(arguments).env("TURNMILL_REDIS_URL", line.redis.url());
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    Running(command.spawn().expect("the command can be run"))
}

/// Waits for its end without holding up the test's runtime.
async fn exit_code(mut child: Running) -> Option<i32> {
    let ended = async {
        loop {
            if let Some(status) = child.0.try_wait().expect("our own child can be waited for") {
                return status.code();
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, ended).await.expect("the command ends")
}

async fn open_turns(line: &Line) -> u64 {
    line.producer.lag().await.expect("counts").open_turns
}

#[tokio::test]
async fn a_file_larger_than_the_queue_goes_through_it() {
    let line = Line::without_workers().await;
    let _worker = line.stand_in().await;
    // Calls hold 200 turns: queues with room for one turn, for less than a call, and for one call.
    for (depth, count) in [("1", 40), ("50", 120), ("200", 250)] {
        let file = lines(count, 1);
        let path = file.path().to_string_lossy();
        let flags = ["--max-depth", depth, "--wait-for-room", "--wait", "--json"];
        let output = line.turnmill(&[&["submit", &path], &flags[..]].concat()).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), said), (Some(0), String::new()), "{depth} of {count}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), count, "{depth}");
    }
}

/// Large turns share a call with few others, so that a queue may have room for some calls of a batch and not for all.
#[tokio::test]
async fn large_turns_wait_for_room_too() {
    const DEPTH: u64 = 7;
    let line = Line::without_workers().await;
    let (mut file, printed) = (lines(0, 1), lines(0, 1));
    for i in 0..12 {
        let message = "x".repeat(200 << 10);
        writeln!(file, "{}", json!({"agent": format!("agent-{i}"), "message": message})).expect("written");
    }
    let path = file.path().to_string_lossy();
    let flags = ["submit", &path, "--wait-for-room", "--max-depth", &DEPTH.to_string()];
    let child = turnmill(&line, &flags, printed.reopen().expect("still there"), Stdio::inherit());
    let operator = line.producer.operate();
    let mut ended = std::pin::pin!(exit_code(child));
    let code = loop {
        tokio::select! {
            code = &mut ended => break code,
            () = sleep(Duration::from_millis(5)) => {}
        }
        if open_turns(&line).await == DEPTH {
            // There is no worker: room comes from here.
            let all = AgentQuery { scope: Scope::Tenant, idle: false, limit: 100 };
            for agent in operator.agents(all).await.expect("lists") {
                operator.client().cancel(agent.head.expect("it has work")).await.expect("cancels");
            }
        }
    };
    assert_eq!(code, Some(0));
    let printed = std::fs::read_to_string(printed.path()).expect("written");
    assert_eq!(printed.lines().count(), 12);
}

#[tokio::test]
async fn what_is_in_the_queue_is_shown_while_the_rest_waits_for_room() {
    let line = Line::start().await;
    let worker = line.worker(&[]);
    let file = lines(2, 500);
    let path = file.path().to_string_lossy();
    let flags = ["--max-depth", "1", "--wait-for-room", "--stream", "--json"];
    let mut child =
        turnmill(&line, &[&["submit", &path], &flags[..]].concat(), Stdio::piped(), Stdio::null());
    let operator = line.producer.operate();
    let enqueued = async {
        loop {
            match operator.agent(&name("agent-0")).await {
                Ok(agent) if agent.head.is_some() => return agent.head.expect("just seen"),
                _ => sleep(Duration::from_millis(2)).await,
            }
        }
    };
    let first = timeout(PATIENCE, enqueued).await.expect("the first turn is enqueued");
    line.until_all_have_tokens(&[first]).await;
    // It neither ends nor makes room from here on.
    worker.sigstop();
    let end = operator.turn(first).await.expect("it is there").end;
    assert!(end.is_none(), "the first turn has ended already");
    let printed = BufReader::new(child.0.stdout.take().expect("piped"));
    let shown = tokio::task::spawn_blocking(move || {
        let mut lines = printed.lines().map(|line| line.expect("text"));
        let is_text = |line: &String| serde_json::from_str::<Value>(line).expect("JSON")["text"].is_string();
        lines.find(is_text).is_some()
    });
    let shown = timeout(PATIENCE / 4, shown).await;
    worker.sigcont();
    drop(child);
    assert!(shown.expect("it is shown while the second waits").expect("no panic"));
}

/// Submits so many lines and one more with `flags`, reads one line of what it prints, and looks for the last one in the queue.
async fn read_one_of(line: &Line, count: usize, flags: &[&str]) {
    let mut file = lines(count, 1);
    let last = name(&format!("last{}", flags.concat()));
    writeln!(file, "{}", json!({"agent": last, "message": "hi", "max_tokens": 1})).expect("written");
    let path = file.path().to_string_lossy();
    let mut child = turnmill(line, &[&["submit", &path], flags].concat(), Stdio::piped(), Stdio::piped());
    let mut stdout = BufReader::new(child.0.stdout.take().expect("piped"));
    let first = tokio::task::spawn_blocking(move || stdout.read_line(&mut String::new()));
    let first = timeout(PATIENCE, first).await.expect("a line is printed");
    assert!(first.expect("no panic").expect("text") > 0, "{flags:?}");
    assert_eq!(exit_code(child).await, Some(0), "{flags:?}");
    let found = line.producer.operate().agent(&last).await;
    assert!(found.is_ok(), "{flags:?}: the last line is not in the queue");
}

#[tokio::test]
async fn a_reader_that_goes_away_costs_no_line() {
    let line = Line::without_workers().await;
    // More ids than a pipe holds.
    for flags in [&[][..], &["--json"]] {
        read_one_of(&line, 3000, flags).await;
    }
}

#[tokio::test]
async fn a_reader_of_results_that_goes_away_costs_no_line() {
    let line = Line::without_workers().await;
    let _worker = line.stand_in().await;
    // More results than a pipe holds.
    for flags in [&["--wait", "--json"], &["--stream", "--json"]] {
        read_one_of(&line, 1000, flags).await;
    }
}

#[tokio::test]
async fn nobody_who_reads_errors_costs_no_line_either() {
    let line = Line::without_workers().await;
    let mut file = lines(300, 1);
    writeln!(file, "nonsense").expect("written");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let stdout = writer.try_clone().expect("a pipe has more ends");
    let child = turnmill(&line, &["submit", &file.path().to_string_lossy()], stdout, writer);
    assert_eq!(exit_code(child).await, Some(2), "the last line is wrong");
    assert_eq!(open_turns(&line).await, 300);
}

#[tokio::test]
async fn cancelling_and_replaying_do_not_stop_half_way_because_nobody_reads() {
    let line = Line::without_workers().await;
    let turn = |i| NewTurn::user("hi").agent(name(&format!("agent-{i}"))).sampling(exactly(1));
    let turns: Vec<TurnId> = line.enqueue((0..5).map(turn).collect()).await;
    let named: Vec<String> = turns.iter().map(TurnId::to_string).collect();
    let arguments = ["turn", "cancel"].into_iter().chain(named.iter().map(String::as_str));
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let child = turnmill(&line, &arguments.collect::<Vec<_>>(), writer, Stdio::null());
    assert_eq!(exit_code(child).await, Some(0));
    assert_eq!(open_turns(&line).await, 0, "all are cancelled");
}
