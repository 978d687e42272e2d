//! `turnmill top` against a real Redis: a frame as text, and an operator at a pseudo-terminal. Workers are played through
//! the broker's port.

mod terminal;

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use turnmill_client::schema::{
    DeadReason, Delta, End, Outcome, Timing, TranscriptEntry, TurnId, Usage, WorkerStatus,
};
use turnmill_tests::broker_conformance::WorkerLimits;
use turnmill_tests::redis_queue::RedisQueue;
use turnmill_tests::{PATIENCE, program};
use turnmill_worker::broker::redis::{BrokerSettings, RedisBroker};
use turnmill_worker::broker::{Broker, Claim, Ending, Lease};

use terminal::Terminal;

/// Runs `turnmill` without a terminal.
fn turnmill(queue: &RedisQueue, arguments: &[&str]) -> Output {
    let mut command = Command::new(program("turnmill"));
    command.args(arguments).env("TURNMILL_REDIS_URL", queue.server.url()).env("TURNMILL_QUEUE", "q");
    command.env_remove("COLUMNS").stdin(Stdio::null()).output().expect("starts")
}

/// The same, and it must succeed; what it printed.
fn done(queue: &RedisQueue, arguments: &[&str]) -> String {
    let ran = turnmill(queue, arguments);
    assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).expect("it writes UTF-8")
}

/// Submits a turn of the agent.
fn submit(queue: &RedisQueue, agent: &str) -> TurnId {
    let id = done(queue, &["submit", "-m", "hi", "--agent", agent]);
    id.trim().parse().expect("a turn id")
}

/// Starts `turnmill top` on a terminal.
fn top(queue: &RedisQueue, flags: &[&str]) -> Terminal {
    let command = pty_process::blocking::Command::new(program("turnmill"))
        .args(["top", "--interval", "0.2"])
        .args(flags)
        .env("TURNMILL_REDIS_URL", queue.server.url())
        .env("TURNMILL_QUEUE", "q")
        .env("TERM", "xterm-256color");
    Terminal::start(command, 24, 80)
}

async fn claim(worker: &RedisBroker) -> Claim {
    let read = async {
        loop {
            if let Some(ticket) = worker.read(1).await.expect("reads").pop() {
                return ticket;
            }
        }
    };
    let ticket = tokio::time::timeout(PATIENCE, read).await.expect("a ticket comes");
    worker.lease(&ticket).await.expect("leases").expect("a turn")
}

async fn say(worker: &RedisBroker, lease: &Lease, index: u32, tokens: usize) {
    let mut delta = Delta { index, ..Delta::default() };
    (0..tokens).for_each(|_| delta.push(7, "x", None));
    worker.append(lease, &delta).await.expect("appends");
}

async fn finish(worker: &RedisBroker, lease: &Lease, published: u32, outcome: Outcome, usage: Usage) {
    let error = (outcome == Outcome::Failed).then(|| "the prompt is too long".to_owned());
    let end = End {
        outcome,
        finish: None,
        stop: None,
        error,
        usage,
        timing: Timing::default(),
        worker: Some("played".into()),
    };
    let entry =
        TranscriptEntry { turn: lease.turn, messages: Vec::new(), keep: 0, tokens: vec![1], rendering: None };
    let ending = Ending {
        published,
        end,
        entry: (outcome == Outcome::Completed).then_some(entry),
        reply: None,
        reason: (outcome == Outcome::Failed).then_some(DeadReason::Rejected),
        continues: false,
        manifest: None,
    };
    worker.finish(lease, &ending).await.expect("finishes");
}

fn status() -> WorkerStatus {
    WorkerStatus {
        name: "box".into(),
        state: "ready".into(),
        model: "tiny".into(),
        running: 2,
        capacity: 4,
        headroom_percent: 83,
        ..WorkerStatus::default()
    }
}

/// A queue with an end, a dead letter, and two turns that run: those of `planner` and `coder`.
async fn busy(options: &[&str]) -> (RedisQueue, RedisBroker, [Claim; 2]) {
    let queue = RedisQueue::start_with(options);
    // Nobody sends renewals here: its lease, and what it says of itself, are to outlast the test.
    let limits = WorkerLimits::default();
    let settings = BrokerSettings { lease_ms: 3_600_000, ..queue.settings("w", limits) };
    let worker = RedisBroker::connect(settings).await.expect("the server is suitable");
    let usage = Usage { prompt_tokens: 200, cached_tokens: 150, completion_tokens: 2, reasoning_tokens: 0 };
    for (agent, outcome) in [("ended", Outcome::Completed), ("failed", Outcome::Failed)] {
        submit(&queue, agent);
        let claim = claim(&worker).await;
        finish(
            &worker,
            &claim.lease,
            0,
            outcome,
            if outcome == Outcome::Completed { usage } else { Usage::default() },
        )
        .await;
    }
    submit(&queue, "planner");
    let planner = claim(&worker).await;
    submit(&queue, "coder");
    let coder = claim(&worker).await;
    say(&worker, &planner.lease, 0, 40).await;
    say(&worker, &coder.lease, 0, 7).await;
    submit(&queue, "waits");
    // By now it has heard of the server's clock.
    assert!(!worker.register(&status()).await.expect("registers").drain);
    (queue, worker, [planner, coder])
}

/// The line of a frame that holds the text, by its words.
fn words<'a>(frame: &'a str, holds: &str) -> Vec<&'a str> {
    let line = frame.lines().find(|line| line.contains(holds));
    line.unwrap_or_else(|| panic!("no line holds {holds:?}:\n{frame}")).split_whitespace().collect()
}

#[tokio::test]
async fn a_frame_is_printed_where_there_is_no_terminal() {
    let (queue, _worker, [planner, _]) = busy(&[]).await;
    let frame = done(&queue, &["top", "--once", "--interval", "0.2"]);
    assert!(
        frame.starts_with(&format!(" turnmill top: queue q at 127.0.0.1:{}", queue.server.address().port())),
        "{frame}"
    );
    assert_eq!(words(&frame, "interactive")[..4], ["interactive", "1", "2", "1"]);
    assert!(
        frame.contains("3 open turns") && frame.contains("0 delayed") && frame.contains("not paused"),
        "{frame}"
    );
    assert!(frame.contains("1 completed, 1 failed") && frame.contains("prompts cached: 75.0 %"), "{frame}");
    let worker = words(&frame, "tiny");
    assert_eq!(worker[..5], ["box", "ready", "2/4", "83", "%"]);
    let turn = words(&frame, "default/planner");
    // Nobody publishes between the two readings, and that is known.
    assert_eq!(turn[..4], ["default/planner", "box", "40", "0.0"]);
    assert_eq!(turn.last().map(|id| id.to_string()), Some(planner.lease.turn.to_string()));
    assert!(
        frame.contains("4 Dead letters: 1\u{20}") && words(&frame, "default/failed").contains(&"rejected"),
        "{frame}"
    );
    assert!(frame.contains("the prompt is too long"), "{frame}");
    assert!(!frame.contains('\u{1b}') && frame.lines().all(|line| line.chars().count() <= 120), "{frame:?}");
}

#[test]
fn without_a_terminal_it_says_so() {
    let queue = RedisQueue::start();
    let ran = turnmill(&queue, &["top"]);
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(2), "{said}");
    assert_eq!(said, "turnmill: top needs a terminal; --once prints one frame as plain text instead\n");
    assert_eq!(turnmill(&queue, &["top", "--once", "--interval", "0"]).status.code(), Some(2));
}

#[tokio::test]
async fn an_operator_cancels_drains_replays_and_pauses() {
    let (queue, worker, [planner, coder]) = busy(&[]).await;
    let mut top = top(&queue, &[]);
    top.until("default/coder");
    // The second row.
    top.press("3\u{1b}[B");
    top.until("> default/coder");
    top.press("c");
    let asked = top.until("Cancel this turn?");
    assert!(asked.contains(&coder.lease.turn.to_string()), "{asked}");
    top.press("n");
    top.until("nothing was done");
    assert!(done(&queue, &["turn", "show", &coder.lease.turn.to_string()]).contains("leased"));
    top.press("cy");
    top.until("is cancelled");
    top.until_gone("default/coder");
    let shown = done(&queue, &["turn", "show", &coder.lease.turn.to_string(), "--json"]);
    assert!(shown.contains(r#""outcome":"cancelled""#), "{shown}");
    assert!(
        done(&queue, &["turn", "show", &planner.lease.turn.to_string()]).contains("leased"),
        "the other runs on"
    );

    top.press("d");
    top.until("Drain this worker?");
    top.press("y");
    top.until("told to drain");
    assert!(worker.register(&status()).await.expect("registers").drain);

    top.press("r");
    let asked = top.until("Replay this dead letter?");
    assert!(asked.contains("the prompt is too long") && asked.contains("default/failed"), "{asked}");
    top.press("y");
    top.until("no dead letters");
    assert_eq!(done(&queue, &["dead", "ls", "--json"]), "{\"reasons\":{}}\n");
    assert!(
        done(&queue, &["agent", "show", "failed", "--json"]).contains(r#""backlog":1"#),
        "it waits again"
    );

    top.press("p");
    top.until("Pause the queue?");
    top.press("y");
    top.until("PAUSED: nothing is leased");
    assert!(done(&queue, &["lag", "--json"]).contains(r#""paused":true"#));
    top.press("p");
    top.until("Resume the queue?");
    top.press("y");
    top.until("not paused;");
    top.press("q");
    assert!(top.ended().success());
}

#[tokio::test]
async fn speeds_are_those_at_which_tokens_are_published() {
    let (queue, worker, [planner, coder]) = busy(&[]).await;
    let top = top(&queue, &[]);
    top.until("default/coder");
    let speed = |frame: &str, agent: &str| {
        let mut cells = words(frame, agent).into_iter().skip_while(|word| *word != "box");
        cells.nth(2).and_then(|speed| speed.parse::<f64>().ok())
    };
    let mut index = 40;
    while speed(&top.shown(), "default/planner").is_none_or(|speed| speed <= 0.0) {
        say(&worker, &planner.lease, index, 5).await;
        index += 5;
        assert!(index < 40_000, "it stays unknown:\n{}", top.shown());
        // At a speed that has room in its column.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    top.until_so("the other stands still", |frame| speed(frame, "default/coder") == Some(0.0));
    finish(&worker, &coder.lease, 7, Outcome::Completed, Usage::default()).await;
    top.until_gone("default/coder");
}

#[tokio::test]
async fn it_stays_while_redis_is_away_and_comes_back_by_itself() {
    let (mut queue, _worker, _) = busy(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let mut top = top(&queue, &[]);
    top.until("default/planner");
    queue.server.crash();
    let shown = top.until("REDIS DOES NOT ANSWER: this is ");
    assert!(shown.contains("default/planner") && shown.contains("s old"), "{shown}");
    top.until("cannot reach Redis at 127.0.0.1");
    // What is asked for now cannot be done, and that is told.
    top.press("c");
    top.until("Cancel this turn?");
    top.press("y");
    top.until("it failed: cannot reach Redis");
    queue.server.restart();
    let shown = top.until_gone("REDIS DOES NOT ANSWER");
    assert!(shown.contains("s ago") && shown.contains("default/planner"), "{shown}");
    top.press("q");
    assert!(top.ended().success());
}

/// Somebody confirmed it and quit before it was done, and closed what its errors go to.
#[tokio::test]
async fn what_was_confirmed_is_tried_to_its_end_though_nobody_reads_what_came_of_it() {
    let (mut queue, _worker, _) = busy(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let command = pty_process::blocking::Command::new(program("turnmill"))
        .args(["top", "--interval", "0.2"])
        .env("TURNMILL_REDIS_URL", queue.server.url())
        .env("TURNMILL_QUEUE", "q")
        .env("TERM", "xterm-256color")
        .stderr(writer);
    let mut top = Terminal::start(command, 24, 80);
    top.until("default/planner");
    queue.server.crash();
    top.until("REDIS DOES NOT ANSWER: this is ");
    top.press("c");
    top.until("Cancel this turn?");
    top.press("yq");
    assert_eq!(top.ended().code(), Some(0), "it does not panic");
    queue.server.restart();
}

#[tokio::test]
async fn sizes_change_and_every_way_out_gives_the_terminal_back() {
    let (queue, _worker, _) = busy(&[]).await;
    let mut sized = top(&queue, &[]);
    sized.until("3 Running turns: 2");
    sized.resize(40, 120);
    sized.until("in the last minute");
    sized.resize(10, 60);
    sized.until("top needs 80 x 20");
    sized.resize(24, 80);
    sized.until("3 Running turns: 2");
    sized.press("?");
    sized.until("replay the selected dead letter; asks");
    sized.press("\u{1b}");
    sized.until_gone("replay the selected dead letter; asks");
    sized.press("\u{1b}");
    assert!(sized.ended().success(), "Esc");

    let mut interrupted = top(&queue, &[]);
    interrupted.until("3 Running turns: 2");
    interrupted.press("c");
    interrupted.until("Cancel this turn?");
    interrupted.press("\u{3}");
    assert!(interrupted.ended().success(), "Ctrl-C, also while something is asked");

    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let signalled = top(&queue, &[]);
        signalled.until("3 Running turns: 2");
        kill(Pid::from_raw(signalled.id()), signal).expect("our own child can be signalled");
        assert!(signalled.ended().success(), "{signal}");
    }
    let still = done(&queue, &["lag", "--json"]);
    assert!(still.contains(r#""leased":2"#), "none of that changed anything: {still}");
}

#[tokio::test]
async fn a_redis_that_cannot_be_reached_is_told_before_the_terminal_is_taken() {
    // Of a server that is gone nobody can say what is left.
    let mut queue = RedisQueue::start().broken();
    queue.server.crash();
    let top = top(&queue, &[]);
    top.until("cannot reach Redis at 127.0.0.1");
    assert_eq!(top.ended().code(), Some(3));
}

#[tokio::test]
async fn what_a_user_may_not_read_is_unknown_and_the_rest_is_shown() {
    let (queue, _worker, _) = busy(&[]).await;
    let user = ["ACL", "SETUSER", "poor", "on", ">pw", "~*", "&*", "+@all", "-xrevrange"];
    let _: String = queue.command(&user).await;
    let url = queue.server.url().replace("redis://", "redis://poor:pw@");
    let frame = done(&queue, &["top", "--once", "--interval", "0.1", "--redis-url", &url]);
    assert!(
        frame.contains("Newest ends: unknown") && frame.contains("does not let this user do it"),
        "{frame}"
    );
    assert!(frame.contains("3 Running turns: 2, unknown tok/s"), "{frame}");
    assert_eq!(words(&frame, "default/planner")[..4], ["default/planner", "box", "unknown", "unknown"]);
    assert_eq!(words(&frame, "interactive")[..3], ["interactive", "1", "2"], "what may be read is shown");
}

#[tokio::test]
async fn colours_are_left_out_where_they_are_not_wanted() {
    let (queue, _worker, _) = busy(&[]).await;
    for (no_color, expected) in [("", true), ("1", false)] {
        let command = pty_process::blocking::Command::new(program("turnmill"))
            .arg("top")
            .env("TURNMILL_REDIS_URL", queue.server.url())
            .env("TURNMILL_QUEUE", "q")
            .env("NO_COLOR", no_color)
            .env("TERM", "xterm-256color");
        let mut top = Terminal::start(command, 24, 80);
        top.until("default/coder");
        assert_eq!(top.has_colours(), expected, "NO_COLOR={no_color:?}");
        top.press("q");
        assert!(top.ended().success());
    }
}
