//! What an operator does, on the command line, against a real Redis. Workers are played through the broker's port.

mod groups;
mod histories;
mod several;

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use turnmill_client::schema::{
    AgentId, DeadReason, Delta, End, Outcome, Priority, StoredTurn, Timing, TranscriptEntry, TurnId, Usage,
    WorkerStatus,
};
use turnmill_tests::broker_conformance::{TestQueue, WorkerLimits};
use turnmill_tests::line::name;
use turnmill_tests::program;
use turnmill_tests::redis_queue::RedisQueue;
use turnmill_worker::broker::redis::{BrokerSettings, RedisBroker};
use turnmill_worker::broker::{Broker, BrokerError, Claim, Ending, Lease, Ticket};

/// Longest wait for a command; a busy machine is slow, a broken command never ends.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a command did.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    /// Its JSON lines.
    fn lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect()
    }

    /// Its only JSON line.
    fn line(&self) -> Value {
        let mut lines = self.lines();
        assert_eq!(lines.len(), 1, "{}{}", self.out, self.err);
        lines.remove(0)
    }
}

/// Runs `turnmill` on the queue, without a terminal.
async fn turnmill(queue: &RedisQueue, arguments: &[&str]) -> Ran {
    run(&queue.server.url(), arguments, "").await
}

/// The same, and it must succeed.
async fn done(queue: &RedisQueue, arguments: &[&str]) -> Ran {
    let ran = turnmill(queue, arguments).await;
    assert_eq!(ran.code, Some(0), "{arguments:?}: {}", ran.err);
    ran
}

async fn run(url: &str, arguments: &[&str], input: &str) -> Ran {
    let mut command = Command::new(program("turnmill"));
    command.args(arguments).env("TURNMILL_REDIS_URL", url).env("TURNMILL_QUEUE", "q");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("starts");
    let mut stdin = child.stdin.take().expect("piped");
    // A command that refuses its flags does not read.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let output = output.unwrap_or_else(|_| panic!("{arguments:?} does not end")).expect("ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

/// Submits one turn of `agent`; its id as text.
async fn submit(queue: &RedisQueue, agent: &str, flags: &[&str]) -> String {
    let arguments = [&["submit", "-m", "hi", "--agent", agent, "--json"], flags].concat();
    text(&done(queue, &arguments).await.line()["turn"])
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

/// The next ticket; there is one or will be.
async fn ticket(worker: &RedisBroker) -> Ticket {
    let read = async {
        loop {
            if let Some(ticket) = worker.read(1).await.expect("reads").pop() {
                return ticket;
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("a ticket comes")
}

async fn claim(worker: &RedisBroker) -> Claim {
    let ticket = ticket(worker).await;
    worker.lease(&ticket).await.expect("leases").expect("a turn")
}

fn end(outcome: Outcome) -> End {
    let error = (outcome != Outcome::Completed).then(|| "the prompt is too long".to_owned());
    let (usage, timing) = (Usage::default(), Timing::default());
    End { outcome, finish: None, stop: None, error, usage, timing, worker: Some("played".into()) }
}

async fn finish(worker: &RedisBroker, lease: &Lease, published: u32, outcome: Outcome) {
    let messages = Vec::new();
    let entry = TranscriptEntry { turn: lease.turn, messages, keep: 0, tokens: vec![1], rendering: None };
    let ending = Ending {
        published,
        end: end(outcome),
        entry: (outcome == Outcome::Completed).then_some(entry),
        reply: None,
        reason: (outcome == Outcome::Failed).then_some(DeadReason::Rejected),
        continues: false,
        manifest: None,
    };
    worker.finish(lease, &ending).await.expect("finishes");
}

/// Runs the next turn to its end.
async fn play(worker: &RedisBroker, outcome: Outcome) -> TurnId {
    let claim = claim(worker).await;
    finish(worker, &claim.lease, 0, outcome).await;
    claim.lease.turn
}

#[tokio::test]
async fn a_waiting_turn_is_shown_and_cancelled() {
    let queue = RedisQueue::start();
    let first = submit(&queue, "a", &[]).await;
    let second = submit(&queue, "a", &["--idempotency-key", "k", "--priority", "batch"]).await;
    let shown = done(&queue, &["turn", "show", &second, "--json"]).await.line();
    let expected = json!({"turn": second, "tenant": "default", "agent": "a", "state": "queued",
        "agent_state": "ready", "behind": 1, "priority": "batch", "idempotency": "default/k", "attempts": 0,
        "published": 0, "outcome": null, "end": null});
    for (key, value) in expected.as_object().expect("an object") {
        assert_eq!(&shown[key], value, "{key}: {shown}");
    }
    let people = done(&queue, &["turn", "show", &second]).await.out;
    assert!(
        people.contains("queued (its agent is ready)") && people.contains("1 turns of its agent"),
        "{people}"
    );

    let cancelled = done(&queue, &["turn", "cancel", &first, &second, "--json"]).await.lines();
    assert_eq!(cancelled, [&first, &second].map(|turn| json!({"turn": turn, "status": "cancelled"})));
    // Again: as it was, and no error.
    let again = done(&queue, &["turn", "cancel", &first]).await;
    assert_eq!(again.out, format!("{first} ended before: cancelled\n"));
    let result = turnmill(&queue, &["tail", &second]).await;
    assert_eq!(result.code, Some(1));
    let lag = done(&queue, &["lag", "--json"]).await.line();
    assert_eq!((&lag["open_turns"], &lag["priorities"][0]["runnable"]), (&json!(0), &json!(0)));
}

#[tokio::test]
async fn a_running_turn_is_cancelled_and_its_worker_fenced() {
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    let turn = submit(&queue, "a", &[]).await;
    let claim = claim(&worker).await;
    let delta =
        |index| Delta { index, tokens: vec![7], text: "x".into(), lengths: vec![1], ..Delta::default() };
    worker.append(&claim.lease, &delta(0)).await.expect("appends");
    let shown = done(&queue, &["turn", "show", &turn, "--json"]).await.line();
    assert_eq!((&shown["state"], &shown["published"]), (&json!("leased"), &json!(1)));
    assert!(text(&shown["worker"]).starts_with('w'), "{shown}");

    done(&queue, &["turn", "cancel", &turn]).await;
    let error = worker.append(&claim.lease, &delta(1)).await.expect_err("must be refused");
    assert!(matches!(error, BrokerError::Fenced { .. }), "{error}");
    let shown = done(&queue, &["turn", "show", &turn, "--json"]).await.line();
    let got = (&shown["state"], &shown["outcome"], &shown["published"]);
    assert_eq!(got, (&json!("ended"), &json!("cancelled"), &json!(1)));

    // One that ended otherwise cannot be cancelled any more, and keeps nothing to run again.
    let turn = submit(&queue, "b", &[]).await;
    play(&worker, Outcome::Completed).await;
    let late = turnmill(&queue, &["turn", "cancel", &turn]).await;
    assert_eq!((late.code, late.out), (Some(6), format!("{turn} ended before: completed\n")));
    assert_eq!(turnmill(&queue, &["turn", "retry", &turn]).await.code, Some(6));
    let unknown = TurnId::new(0).to_string();
    for verb in ["show", "cancel", "retry"] {
        assert_eq!(turnmill(&queue, &["turn", verb, &unknown]).await.code, Some(4), "{verb}");
    }
}

#[tokio::test]
async fn a_scheduled_turn_waits_until_it_is_told_to_run() {
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    let turn = submit(&queue, "a", &["--delay", "3600"]).await;
    let later = submit(&queue, "a", &[]).await;
    let agent = done(&queue, &["agent", "show", "a", "--json"]).await.line();
    assert_eq!(
        (&agent["state"], &agent["backlog"], &agent["head"]),
        (&json!("delayed"), &json!(2), &json!(turn))
    );
    assert!(agent["due_ms"].is_u64(), "{agent}");
    assert_eq!(turnmill(&queue, &["turn", "retry", &later]).await.code, Some(6), "it is not next");

    assert_eq!(done(&queue, &["turn", "retry", &turn]).await.out, format!("{turn} runs now\n"));
    assert_eq!(turnmill(&queue, &["turn", "retry", &turn]).await.code, Some(6), "it does not wait any more");
    assert_eq!(play(&worker, Outcome::Completed).await.to_string(), turn);
    assert_eq!(play(&worker, Outcome::Completed).await.to_string(), later);

    let past = submit(&queue, "b", &["--at", "2020-01-01T00:00:00Z"]).await;
    assert_eq!(play(&worker, Outcome::Completed).await.to_string(), past);
    assert_eq!(turnmill(&queue, &["submit", "-m", "hi", "--at", "noon"]).await.code, Some(2));
}

#[tokio::test]
async fn agents_are_listed_held_and_reset() {
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    submit(&queue, "a", &[]).await;
    play(&worker, Outcome::Completed).await;
    let first = submit(&queue, "a", &[]).await;
    submit(&queue, "other", &["--tenant", "acme"]).await;
    let ls = |flags: &'static [&'static str]| {
        let arguments = [&["agent", "ls", "--json"], flags].concat();
        let queue = &queue;
        async move {
            let agents = done(queue, &arguments).await.lines();
            agents
                .iter()
                .map(|agent| format!("{} {}", text(&agent["agent"]), text(&agent["state"])))
                .collect::<Vec<_>>()
        }
    };
    assert_eq!(ls(&[]).await, ["a ready"]);
    assert_eq!(ls(&["-A"]).await, ["a ready", "other ready"]);

    assert_eq!(done(&queue, &["agent", "pause", "a"]).await.out, "a is paused\n");
    assert_eq!(
        ticket(&worker).await.agent,
        AgentId::named(&name("acme"), &name("other")),
        "a is passed over"
    );
    assert_eq!(done(&queue, &["agent", "resume", "a"]).await.out, "a is ready\n");
    let running = claim(&worker).await;
    assert_eq!(running.lease.turn.to_string(), first);
    let busy = turnmill(&queue, &["agent", "reset", "a", "--yes"]).await;
    assert_eq!(busy.code, Some(6), "{}", busy.err);
    done(&queue, &["agent", "pause", "a"]).await;
    let people = done(&queue, &["agent", "ls"]).await.out;
    assert!(people.contains("leased, then paused"), "{people}");
    finish(&worker, &running.lease, 0, Outcome::Completed).await;
    let shown = done(&queue, &["agent", "show", "a", "--json"]).await.line();
    assert_eq!((&shown["state"], &shown["transcript"]), (&json!("paused"), &json!(2)));

    let asked = turnmill(&queue, &["agent", "reset", "a"]).await;
    assert_eq!(asked.code, Some(2));
    assert!(asked.err.contains("add --yes"), "{}", asked.err);
    done(&queue, &["agent", "reset", "a", "-y"]).await;
    let shown = done(&queue, &["agent", "show", "a", "--json"]).await.line();
    assert_eq!(shown["transcript"], json!(0));
    assert_eq!(ls(&["--idle"]).await, ["a paused"]);
    assert_eq!(turnmill(&queue, &["agent", "show", "nobody"]).await.code, Some(4));
}

#[tokio::test]
async fn a_dead_letter_halts_its_agent_where_the_policy_says_so() {
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    let turn = submit(&queue, "a", &[]).await;
    submit(&queue, "a", &[]).await;
    done(&queue, &["agent", "policy", "a", "halt"]).await;
    play(&worker, Outcome::Failed).await;
    let shown = done(&queue, &["agent", "show", "a", "--json"]).await.line();
    assert_eq!(
        (&shown["state"], &shown["on_dead"], &shown["backlog"]),
        (&json!("halted"), &json!("halt"), &json!(1))
    );
    let retried = done(&queue, &["turn", "retry", &turn, "--json"]).await.line();
    assert_eq!(retried["status"], "replayed");
    done(&queue, &["agent", "resume", "a"]).await;
    play(&worker, Outcome::Completed).await;
    assert_eq!(json!(play(&worker, Outcome::Completed).await), retried["replayed_as"], "last of its agent");
}

#[tokio::test]
async fn dead_letters_are_counted_replayed_and_purged() {
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    for agent in ["a", "b", "c"] {
        submit(&queue, agent, &["--deadline", "3600", "--seed", "7"]).await;
        play(&worker, Outcome::Failed).await;
    }
    let listed = done(&queue, &["dead", "ls", "--json"]).await.lines();
    assert_eq!(listed.len(), 4);
    assert_eq!(listed[3], json!({"reasons": {"rejected": 3}}));
    assert_eq!((&listed[0]["agent"], &listed[0]["error"]), (&json!("a"), &json!("the prompt is too long")));
    let people = done(&queue, &["dead", "ls", "--limit", "1"]).await.out;
    assert!(people.contains("rejected") && people.trim_end().ends_with('3'), "{people}");
    let none = done(&queue, &["dead", "ls", "--json", "--reason", "attempts"]).await.line();
    assert_eq!(none, json!({"reasons": {}}));
    let none = done(&queue, &["dead", "ls", "--json", "--older-than", "3600"]).await.line();
    assert_eq!(none, json!({"reasons": {}}));

    let a = text(&listed[0]["turn"]);
    let shown = done(&queue, &["dead", "show", &a, "--json"]).await.line();
    assert_eq!(shown["asked"]["messages"][0]["content"], "hi");

    let would = done(&queue, &["dead", "replay", "--all", "--dry-run", "--json"]).await.lines();
    assert!(would.len() == 3 && would.iter().all(|line| line["status"] == "would_be_replayed"), "{would:?}");
    assert_eq!(
        turnmill(&queue, &["dead", "replay", "--all"]).await.code,
        Some(2),
        "many at once are asked about"
    );
    let replayed = done(&queue, &["dead", "replay", &a, "--json"]).await.line();
    let claim = claim(&worker).await;
    assert_eq!(json!(claim.lease.turn), replayed["replayed_as"]);
    let StoredTurn::Inline(turn) = claim.turn.expect("readable") else { panic!("it is short") };
    assert_eq!(turn.replay_of.map(|turn| turn.to_string()), Some(a.clone()));
    assert_eq!((turn.sampling.seed, turn.deadline_ms), (Some(7), None));
    assert_eq!(turn.idempotency_key, Some(name(&format!("replay-{a}"))));
    assert_eq!(turnmill(&queue, &["dead", "replay", &a]).await.code, Some(4), "it is gone");

    assert_eq!(turnmill(&queue, &["dead", "purge"]).await.code, Some(2), "which?");
    let purged = done(&queue, &["dead", "purge", "--agent", "b", "--yes"]).await.out;
    assert!(purged.ends_with(" purged\n") && purged.lines().count() == 1, "{purged}");
    done(&queue, &["dead", "purge", "--all", "--yes"]).await;
    assert_eq!(done(&queue, &["dead", "ls", "--json"]).await.line(), json!({"reasons": {}}));
    let left: Vec<String> = queue.command(&["KEYS", "*:turn:*"]).await;
    assert_eq!(left.len(), 1, "only the replayed turn is left: {left:?}");
}

#[tokio::test]
async fn a_paused_queue_leases_nothing() {
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    let paused = done(&queue, &["queue", "pause", "--json"]).await.line();
    assert_eq!(paused, json!({"queue": "q", "paused": true, "changed": true}));
    assert_eq!(done(&queue, &["queue", "pause"]).await.out, "queue q is paused, as before\n");
    let turn = submit(&queue, "a", &[]).await;
    let ticket = worker.read(1).await.expect("reads").pop();
    if let Some(ticket) = ticket {
        assert!(worker.lease(&ticket).await.expect("answers").is_none(), "nothing is leased");
    }
    let lag = done(&queue, &["lag"]).await.out;
    assert!(lag.contains("the queue is paused"), "{lag}");
    done(&queue, &["queue", "resume"]).await;
    assert_eq!(play(&worker, Outcome::Completed).await.to_string(), turn);
    let stats = done(&queue, &["queue", "stats", "--json"]).await.line();
    assert_eq!((&stats["ends"]["completed"], &stats["open_turns"]), (&json!(1), &json!(0)));
    assert!(done(&queue, &["queue", "stats"]).await.out.contains("1 completed"));
}

#[tokio::test]
async fn a_worker_is_told_to_drain_and_forgotten() {
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    let status =
        WorkerStatus { name: "box".into(), state: "ready".into(), capacity: 4, ..WorkerStatus::default() };
    assert!(!worker.register(&status).await.expect("registers").drain);
    let listed = done(&queue, &["worker", "ls", "--json"]).await.line();
    assert_eq!(
        (&listed["name"], &listed["capacity"], &listed["told_to_drain"]),
        (&json!("box"), &json!(4), &json!(false))
    );
    assert!(done(&queue, &["worker", "ls"]).await.out.contains("0/4"));
    assert_eq!(turnmill(&queue, &["worker", "drain", "nobody"]).await.code, Some(4));
    let told = done(&queue, &["worker", "drain", "box"]).await.out;
    assert!(told.ends_with(" is told to drain\n"), "{told}");
    assert!(worker.register(&status).await.expect("registers").drain);

    assert_eq!(turnmill(&queue, &["worker", "forget", "nobody"]).await.code, Some(4));
    assert_eq!(done(&queue, &["worker", "forget", "box", "--json"]).await.line()["forgotten"], true);
    assert!(done(&queue, &["worker", "ls", "--json"]).await.out.is_empty());
    assert!(!worker.register(&status).await.expect("registers").drain, "its order went with it");
    assert_eq!(done(&queue, &["worker", "ls", "--json"]).await.line()["name"], "box", "it lives");
}

/// Until it is heard of again; one that leaves is not listed at all.
#[tokio::test]
async fn a_worker_that_misses_its_beats_is_silent() {
    let queue = RedisQueue::start();
    // Its entry is to outlast the test.
    let settings = BrokerSettings { lease_ms: 3_600_000, ..queue.settings("w", WorkerLimits::default()) };
    let worker = RedisBroker::connect(settings).await.expect("the server is suitable");
    let beating = |beat_ms| WorkerStatus { state: "ready".into(), beat_ms, ..WorkerStatus::default() };
    let states = async || {
        let listed = done(&queue, &["worker", "ls", "--json"]).await.lines();
        listed.iter().map(|worker| text(&worker["state"])).collect::<Vec<_>>()
    };
    worker.register(&beating(3_600_000)).await.expect("registers");
    assert_eq!(states().await, ["ready"]);
    worker.register(&beating(1)).await.expect("registers");
    let patience = std::time::Instant::now() + PATIENCE;
    while states().await != ["silent"] {
        assert!(std::time::Instant::now() < patience, "nobody minds that it is not heard of");
    }
    worker.leave().await.expect("leaves");
    assert!(states().await.is_empty());
}

#[tokio::test]
async fn events_are_followed_plainly_and_as_a_group() {
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    let mut turns = Vec::new();
    for agent in ["a", "b", "c"] {
        submit(&queue, agent, &[]).await;
        turns.push(json!(play(&worker, Outcome::Completed).await));
    }
    let of = |ran: Ran| ran.lines().iter().map(|line| line["turn"].clone()).collect::<Vec<_>>();
    let plain = done(&queue, &["events", "--from", "0", "--count", "3", "--json"]).await;
    assert_eq!(plain.lines()[0]["outcome"], "completed");
    assert_eq!(of(plain), turns);

    let group = ["events", "--group", "g", "--from", "0", "--json", "--count", "1", "--consumer"];
    let read = |consumer: &'static str| {
        let arguments = [&group[..], &[consumer]].concat();
        let queue = &queue;
        async move { of(done(queue, &arguments).await) }
    };
    assert_eq!(read("one").await, turns[..1]);
    // Nothing else was read, so that anybody gets it.
    assert_eq!(pending_events(&queue).await, 0);
    assert_eq!(read("two").await, turns[1..2]);
    submit(&queue, "d", &[]).await;
    let last = json!(play(&worker, Outcome::Failed).await);
    assert_eq!(read("two").await, turns[2..3]);
    assert_eq!(read("one").await, [last]);
    assert_eq!(pending_events(&queue).await, 0);
}

/// Ends that were delivered to consumers of group `g` and not acknowledged.
async fn pending_events(queue: &RedisQueue) -> usize {
    groups::pending(queue, "default/g").await
}

/// A text or nothing.
type Text = Option<String>;

#[tokio::test]
async fn events_go_on_after_redis_was_away() {
    let mut queue = RedisQueue::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let url = queue.server.url();
    let follow = tokio::spawn(async move {
        run(
            &url,
            &["events", "--group", "g", "--consumer", "one", "--from", "0", "--json", "--count", "2"],
            "",
        )
        .await
    });
    let first = {
        let worker = queue.worker("w").await;
        submit(&queue, "a", &[]).await;
        json!(play(&worker, Outcome::Completed).await)
    };
    queue.server.crash();
    queue.server.restart();
    let worker = queue.worker("v").await;
    submit(&queue, "b", &[]).await;
    let second = json!(play(&worker, Outcome::Completed).await);
    let ran = follow.await.expect("no panic");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let turns: Vec<Value> = ran.lines().iter().map(|line| line["turn"].clone()).collect();
    assert_eq!(turns, [first, second]);
    assert!(ran.err.matches("cannot reach Redis").count() <= 1, "said once: {}", ran.err);
}

/// Somebody else's entries, and those of a newer version, cost nobody anything.
#[tokio::test]
async fn foreign_entries_are_passed_by() {
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    let mut failed = Vec::new();
    for agent in ["a", "b"] {
        for key in [queue.keys().dead(), queue.keys().events()] {
            let _: Text = queue.command(&["XADD", &key, "*", "whose", "not ours"]).await;
            let _: Text =
                queue.command(&["XADD", &key, "*", "turn", "x", "agent", "t/a", "event", "\u{2}"]).await;
        }
        submit(&queue, agent, &[]).await;
        failed.push(json!(play(&worker, Outcome::Failed).await));
    }
    let letters = done(&queue, &["dead", "ls", "--json"]).await.lines();
    let turns: Vec<Value> = letters.iter().filter_map(|line| line.get("turn").cloned()).collect();
    assert_eq!(turns, failed);
    let follow = ["events", "--from", "0", "--count", "2", "--json"];
    let as_group = [&follow[..], &["--group", "g", "--consumer", "c"]].concat();
    for arguments in [&follow[..], &as_group] {
        let ends: Vec<Value> =
            done(&queue, arguments).await.lines().iter().map(|line| line["turn"].clone()).collect();
        assert_eq!(ends, failed, "{arguments:?}");
    }
    // Who only counts them says so too: two of each agent.
    for arguments in [&["queue", "stats", "--json"][..], &["top", "--once"]] {
        let ran = done(&queue, arguments).await;
        assert_eq!(ran.err.matches("an end is not of this version").count(), 4, "{}", ran.err);
    }
    assert_eq!(done(&queue, &["queue", "stats", "--json"]).await.line()["ends"]["failed"], json!(2));
}

#[tokio::test]
async fn what_expired_is_unknown_and_not_nothing() {
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    let turn = submit(&queue, "a", &["--idempotency-key", "k"]).await;
    let claim = claim(&worker).await;
    let delta = Delta { index: 0, tokens: vec![7], text: "x".into(), lengths: vec![1], ..Delta::default() };
    worker.append(&claim.lease, &delta).await.expect("appends");
    finish(&worker, &claim.lease, 1, Outcome::Completed).await;
    let shown = async || done(&queue, &["turn", "show", &turn, "--json"]).await.line()["published"].clone();
    assert_eq!(shown().await, json!(1));
    let result = queue.keys().result(claim.lease.turn);
    let _: Text = queue.command(&["XADD", &result, "*", "whose", "not ours"]).await;
    assert_eq!(shown().await, json!(1), "somebody else's entry says nothing");
    let _: u64 = queue.command(&["DEL", &result]).await;
    assert_eq!(shown().await, Value::Null);
    assert!(done(&queue, &["turn", "show", &turn]).await.out.contains("unknown"));
    let again = ["submit", "--agent", "a", "-m", "hi", "--idempotency-key", "k", "--wait"];
    for read in [&["tail", &*turn][..], &again] {
        for json in [&[][..], &["--json"]] {
            let ran = turnmill(&queue, &[read, json].concat()).await;
            assert_eq!(ran.code, Some(4), "{read:?} {json:?}: {}", ran.err);
            assert!(ran.err.contains("has expired"), "{}", ran.err);
            let told = ran.lines().last().map(|line| line.get("text").cloned());
            assert!(json.is_empty() || told.is_some_and(|text| text.is_none_or(|text| text.is_null())));
        }
    }
}

/// More than go on one page, all of the same time.
#[tokio::test]
async fn every_agent_with_work_is_listed_once() {
    const AGENTS: usize = 1_100;
    let queue = RedisQueue::start().broken();
    let lines: String =
        (0..AGENTS).map(|i| format!("{{\"agent\": \"a{i}\", \"message\": \"hi\"}}\n")).collect();
    let submitted = run(&queue.server.url(), &["submit", "-"], &lines).await;
    assert_eq!(submitted.code, Some(0), "{}", submitted.err);
    let alike = (0..AGENTS).flat_map(|i| ["1700000000000".to_owned(), format!("default/a{i}")]);
    let words: Vec<String> =
        ["ZADD", &queue.keys().open(), "XX"].map(str::to_owned).into_iter().chain(alike).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let _: u64 = queue.command(&words).await;
    for limit in [AGENTS, AGENTS + 1, 1_000, 1] {
        let listed = done(&queue, &["agent", "ls", "--json", "--limit", &limit.to_string()]).await.lines();
        let names: std::collections::HashSet<String> =
            listed.iter().map(|agent| text(&agent["agent"])).collect();
        assert_eq!((listed.len(), names.len()), (limit.min(AGENTS), limit.min(AGENTS)));
    }
}

/// The verdicts of `doctor`, by check.
fn verdicts(ran: &Ran) -> Vec<String> {
    ran.lines().iter().map(|line| format!("{} {}", text(&line["check"]), text(&line["verdict"]))).collect()
}

#[tokio::test]
async fn doctor_passes_a_good_server_and_finds_what_is_wrong() {
    let good = RedisQueue::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).broken();
    let worker = good.worker("w").await;
    worker.register(&WorkerStatus::default()).await.expect("registers");
    let ran = done(&good, &["doctor", "--json"]).await;
    assert!(verdicts(&ran).iter().all(|check| check.ends_with(" ok")), "{}", ran.out);

    submit(&good, "a", &[]).await;
    play(&worker, Outcome::Failed).await;
    submit(&good, "a", &[]).await;
    let stuck = ticket(&worker).await;
    good.until_idle(Priority::Interactive).await;
    let _: Text = good.command(&["SET", &good.keys().transcript(&stuck.agent), "x"]).await;
    let _: Text = good.command(&["SET", "tm:{q.0}:depth", "1"]).await;
    good.pause(true).await;
    let patience = std::time::Instant::now() + turnmill_tests::PATIENCE;
    let ran = loop {
        let ran = turnmill(&good, &["doctor", "--json", "--lease-ms", "300"]).await;
        assert_eq!(ran.code, Some(1));
        // A ticket is stuck after some leases.
        if verdicts(&ran).iter().any(|check| check == "stuck fail") {
            break ran;
        }
        assert!(std::time::Instant::now() < patience, "nothing is stuck: {}", ran.out);
    };
    let found = verdicts(&ran);
    for expected in ["types fail", "stuck fail", "dead warn", "paused warn"] {
        assert!(found.iter().any(|check| check == expected), "{expected}: {}", ran.out);
    }
    assert!(ran.out.contains("transcript:default/a is a string, not a list"), "{}", ran.out);
    assert!(ran.out.contains("depth is no key of this version"), "{}", ran.out);

    let bad = RedisQueue::start_with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let ran = turnmill(&bad, &["doctor"]).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.out.contains("CONFIG SET maxmemory-policy noeviction"), "{}", ran.out);
    assert!(ran.out.contains("a restart loses the queue"), "{}", ran.out);
}

#[tokio::test]
async fn lag_says_unknown_where_redis_does_not_know() {
    let queue = RedisQueue::start();
    let _worker = queue.worker("w").await;
    for agent in ["a", "b"] {
        submit(&queue, agent, &[]).await;
    }
    let lag = done(&queue, &["lag", "--json"]).await.line();
    let row = &lag["priorities"][0];
    assert_eq!((&row["runnable"], &row["leased"], &row["queued"]), (&json!(2), &json!(0), &json!(2)));
    // Deleting what was not delivered makes Redis lose count.
    done(&queue, &["agent", "pause", "b"]).await;
    let lag = done(&queue, &["lag", "--json"]).await.line();
    assert_eq!(
        (&lag["priorities"][0]["runnable"], &lag["priorities"][0]["lag"]),
        (&json!(1), &Value::Null),
        "{lag}"
    );
    assert!(done(&queue, &["lag"]).await.out.contains("unknown"));
}

#[tokio::test]
async fn a_full_queue_is_told_and_waited_for() {
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    submit(&queue, "a", &[]).await;
    let full = turnmill(&queue, &["submit", "-m", "hi", "--max-depth", "1"]).await;
    assert_eq!(full.code, Some(5));
    assert!(full.err.starts_with("turnmill: queue full; retry after "), "{}", full.err);
    let full = turnmill(&queue, &["submit", "-m", "hi", "--tenant-max-depth", "1"]).await;
    assert!(full.code == Some(5) && full.err.contains("tenant default of queue q"), "{}", full.err);
    done(&queue, &["submit", "-m", "hi", "--tenant-max-depth", "1", "--tenant", "acme"]).await;

    play(&worker, Outcome::Completed).await;
    let url = queue.server.url();
    let waiting = tokio::spawn(async move {
        run(&url, &["submit", "-m", "hi", "--agent", "late", "--max-depth", "1", "--wait-for-room"], "").await
    });
    play(&worker, Outcome::Completed).await;
    let waited = waiting.await.expect("no panic");
    assert_eq!(waited.code, Some(0), "{}", waited.err);
    assert_eq!(play(&worker, Outcome::Completed).await.to_string(), waited.out.trim());
}

#[tokio::test]
async fn refusals_of_redis_are_told_with_what_to_do() {
    // In the end a key is of another type, and nobody is let in without a password.
    let queue = RedisQueue::start_with(&[
        "--user", "good", "on", ">pw", "~tm:*", "&*", "+@all", "--user", "poor", "on", ">pw", "~tm:*", "&*",
        "+info", "+hello", "+client",
    ])
    .broken();
    let as_user = |user: &str| queue.server.url().replace("redis://", &format!("redis://{user}@"));
    let submit = ["submit", "-m", "hi"];
    assert_eq!(run(&as_user("good:pw"), &submit, "").await.code, Some(0));
    let refused = |ran: Ran, says: &str| {
        assert!(ran.code == Some(3) && ran.err.contains(says), "{says}: {:?} {}", ran.code, ran.err);
    };
    refused(run(&as_user("good:no"), &submit, "").await, "wants another user or password");
    refused(run(&as_user("poor:pw"), &submit, "").await, "does not let this user do it");
    let _: Text = queue.command(&["CONFIG", "SET", "maxmemory", "1mb"]).await;
    refused(run(&as_user("good:pw"), &submit, "").await, "raise maxmemory");
    let _: Text = queue.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let _: Text = queue.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let doctor = turnmill(&queue, &["doctor"]).await;
    assert!(doctor.code == Some(1) && doctor.out.contains("read-only replica"), "{}", doctor.out);
    let _: Text = queue.command(&["REPLICAOF", "NO", "ONE"]).await;
    let _: Text = queue.command(&["SET", &queue.keys().open(), "x"]).await;
    refused(run(&as_user("good:pw"), &submit, "").await, "turnmill doctor");
    let _: Text = queue.command(&["CONFIG", "SET", "requirepass", "secret"]).await;
    refused(turnmill(&queue, &submit).await, "wants another user or password");
}
