//! Readings for tests: what a small fleet looks like on a busy afternoon.

use turnmill_client::events::EndedTurn;
use turnmill_client::operate::dead::DeadLetter;
use turnmill_client::operate::ends::EndsRead;
use turnmill_client::operate::running::{Running, RunningTurn};
use turnmill_client::operate::worker::WorkerView;
use turnmill_client::schema::{AgentName, End, Outcome, Priority, Timing, TurnId, Usage};
use turnmill_client::{Lag, PriorityLag, StreamId};

use super::Snapshot;

/// The server's clock at the first reading.
pub const NOW_MS: u64 = 1_770_000_000_400;

fn name(text: &str) -> AgentName {
    AgentName::new(text).expect("a name")
}

/// A turn's id that ends so.
pub fn turn(number: u32) -> TurnId {
    format!("019c1f2a-7b30-7c41-9d52-{number:012x}.0").parse().expect("a turn id")
}

/// A turn of an agent; its id follows from the name.
pub fn running_turn(agent: &str, published: u64) -> RunningTurn {
    let number = agent.bytes().fold(0, |number: u32, byte| number.wrapping_mul(31) + u32::from(byte));
    RunningTurn {
        turn: turn(number),
        tenant: "acme".to_owned(),
        agent: Some(name(agent)),
        priority: Priority::Interactive,
        worker: Some("mill-1-7f3a".to_owned()),
        age_ms: 12_340,
        attempts: Some(1),
        published: Some(published),
    }
}

/// An end at that moment.
pub fn ended(at_ms: u64, outcome: Outcome, prompt_tokens: u32, cached_tokens: u32) -> EndedTurn {
    let usage = Usage { prompt_tokens, cached_tokens, completion_tokens: 1, reasoning_tokens: 0 };
    let timing = Timing::default();
    EndedTurn {
        id: StreamId { epoch: at_ms, sequence: 0 },
        turn: turn(1),
        tenant: "acme".to_owned(),
        agent: None,
        end: End { outcome, finish: None, stop: None, error: None, usage, timing, worker: None },
    }
}

pub fn worker(name: &str, state: &str) -> WorkerView {
    WorkerView {
        id: format!("{name}-7f3a"),
        name: name.to_owned(),
        state: state.to_owned(),
        model: "SmolLM2-135M-Instruct".to_owned(),
        version: "0.1.0".to_owned(),
        running: 3,
        capacity: 32,
        headroom_percent: 83,
        started_ms: 1,
        heard_ms: 800,
        told_to_drain: false,
    }
}

pub fn letter(number: u32, agent: &str, reason: &str, failed_ago_ms: u64, error: &str) -> DeadLetter {
    DeadLetter {
        turn: turn(number),
        tenant: "acme".to_owned(),
        agent: Some(name(agent)),
        reason: reason.to_owned(),
        attempts: 5,
        failed_ms: NOW_MS - failed_ago_ms,
        error: Some(error.to_owned()),
        entry: format!("{}-0", NOW_MS - failed_ago_ms),
    }
}

pub fn lag() -> Lag {
    let row = |priority, runnable, leased, queued, oldest_ms, lag| PriorityLag {
        priority,
        runnable,
        leased,
        queued,
        oldest_ms,
        lag,
    };
    Lag {
        priorities: vec![
            row(Priority::Interactive, 3, 4, 12, Some(2_340), Some(3)),
            row(Priority::Batch, 120, 1, 4_031, Some(754_000), None),
        ],
        open_turns: 4_048,
        oldest_ms: Some(754_000),
        delayed: 1,
        dead: 2,
        retained_bytes: 12_900_000,
        paused: false,
    }
}

fn running(read_ms: u64, tokens: u64) -> Running {
    let lone = RunningTurn {
        agent: None,
        priority: Priority::Batch,
        worker: Some("mill-2-7f3a".to_owned()),
        published: None,
        attempts: Some(4),
        ..running_turn("lone", 0)
    };
    let turns = vec![
        running_turn("planner", 100 + tokens),
        running_turn("coder", 40 + tokens / 2),
        running_turn("reviewer-of-pull-requests-and-issues", 0),
        RunningTurn {
            age_ms: 754_000,
            worker: Some("mill-9-gone".to_owned()),
            ..running_turn("writer", 2_048)
        },
        lone,
    ];
    Running { read_ms, turns }
}

/// Half a minute in which something ended in most seconds.
fn ends(read_ms: u64) -> EndsRead {
    let at = |ago_s: u64| read_ms - ago_s * 1000;
    let mut ended_turns: Vec<EndedTurn> = (1..40)
        .flat_map(|ago| (0..ago % 4).map(move |_| ended(at(ago), Outcome::Completed, 1_000, 631)))
        .collect();
    ended_turns.push(ended(at(12), Outcome::Failed, 0, 0));
    ended_turns.push(ended(at(7), Outcome::Cancelled, 200, 0));
    ended_turns.sort_by_key(|ended| ended.id);
    EndsRead { read_ms, ended: ended_turns, whole: false, first: true }
}

/// A reading.
pub fn snapshot() -> Snapshot {
    let silent = WorkerView {
        running: 0,
        capacity: 0,
        headroom_percent: 0,
        heard_ms: 95_000,
        ..worker("mill-3", "silent")
    };
    let drains =
        WorkerView { told_to_drain: true, running: 2, headroom_percent: 41, ..worker("mill-2", "ready") };
    Snapshot {
        lag: Ok(lag()),
        workers: Ok(vec![worker("mill-1", "ready"), drains, silent]),
        running: Ok(running(NOW_MS, 0)),
        ends: Ok(ends(NOW_MS)),
        dead: Ok(vec![
            letter(7, "planner", "attempts", 62_000, "the worker ended without a token, five times in a row"),
            letter(
                8,
                "coder",
                "rejected",
                7_260_000,
                "the prompt has 9000 tokens; at most 8192 fit the context",
            ),
        ]),
    }
}

/// The reading two seconds later.
pub fn later() -> Snapshot {
    let read_ms = NOW_MS + 2_000;
    let none = EndsRead { read_ms, ended: Vec::new(), whole: true, first: false };
    Snapshot { running: Ok(running(read_ms, 57)), ends: Ok(none), ..snapshot() }
}
