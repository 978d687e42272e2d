//! What the queue does with turns of real workers: cancelling, deadlines, schedules, continuing, dead letters.

use std::time::{Duration, Instant};

use turnmill::NewTurn;
use turnmill_schema::{Event, Outcome, Sampling, TurnId, envelope};
use turnmill_tests::PATIENCE;
use turnmill_tests::line::{Line, exactly, greedy, name};
use turnmill_tests::worker::Worker;

/// A turn that goes on for as long as the context allows.
fn endless(agent: &str) -> NewTurn {
    let sampling = Sampling { ignore_eos: true, temperature: 0.0, ..Sampling::default() };
    NewTurn::user("Go on.").agent(name(agent)).sampling(sampling)
}

/// A metric's value.
fn metric(worker: &Worker, wanted: &str) -> f64 {
    let (_, text) = worker.get("/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(wanted)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{wanted} is missing: {text}")).parse().expect("a number")
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} never happens");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn begins(events: &[Event]) -> Vec<String> {
    let begin = |event: &Event| match event {
        Event::Begin(begin) => Some(begin.worker.clone()),
        _ => None,
    };
    events.iter().filter_map(begin).collect()
}

#[tokio::test]
async fn a_running_turn_is_cancelled_its_blocks_are_freed_and_the_next_one_runs() {
    let line = Line::start().await;
    // Renewals come so seldom that it is the notice which stops the turn.
    let worker = line.worker(&["--lease-ms", "600000"]);
    let running = line.enqueue(vec![endless("a")]).await[0];
    line.until_all_have_tokens(&[running]).await;
    let next = line.enqueue(vec![NewTurn::user("Hi").agent(name("a")).sampling(greedy(4))]).await[0];
    let asked = Instant::now();
    let output = line.turnmill(&["turn", "cancel", &running.to_string()]).await;
    assert!(output.status.success(), "{output:?}");
    let result = line.wait(running).await;
    println!("cancelled after {:?}", asked.elapsed());
    assert_eq!(result.outcome, Outcome::Cancelled);
    assert_eq!(line.wait(next).await.outcome, Outcome::Completed);
    until("the engine drops the turn", || metric(&worker, "turnmill_engine_running_sequences") == 0.0).await;
    assert_eq!(metric(&worker, "turnmill_pool_blocks{state=\"held\"}"), 0.0);
    assert_eq!(line.transcript("a").await.len(), 1, "a cancelled turn was never part of the conversation");
}

#[tokio::test]
async fn a_deadline_passes_between_steps() {
    let line = Line::start().await;
    let _worker = line.worker(&[]);
    let late = endless("a").deadline_in(Duration::from_secs(2));
    let late = line.enqueue(vec![late]).await[0];
    let result = line.wait(late).await;
    assert_eq!(result.outcome, Outcome::Expired, "{result:?}");
    assert!(!result.tokens.is_empty(), "it ran, and what it made is there");
    assert!(result.error.is_some_and(|error| error.contains("deadline passed while it ran")));
}

#[tokio::test]
async fn a_scheduled_turn_waits_for_its_time_in_its_place() {
    let line = Line::start().await;
    let _worker = line.worker(&[]);
    let say = |text: &str| NewTurn::user(text).agent(name("a")).sampling(greedy(2));
    let ids = line.enqueue(vec![say("one").delay(Duration::from_millis(700)), say("two")]).await;
    let told = line.told(&ids).await;
    assert!(told[0].end.timing.queued_ms >= 700, "{:?}", told[0].end.timing);
    assert!(told[1].begins[0].epoch > told[0].begins[0].epoch, "the one behind waits for it");
}

#[tokio::test]
async fn an_agents_turns_stay_with_the_worker_that_has_its_blocks() {
    let line = Line::start().await;
    let workers = ["one", "two"].map(|name| line.worker(&["--worker-name", name, "--threads", "1"]));
    let say =
        |agent: &str, i: u32| NewTurn::user(format!("Say {i}.")).agent(name(agent)).sampling(exactly(3));
    let turns = (0..4).flat_map(|i| ["a", "b"].map(|agent| say(agent, i))).collect();
    let ids = line.enqueue(turns).await;
    for id in &ids {
        assert_eq!(line.wait(*id).await.outcome, Outcome::Completed);
    }
    for agent in 0..2 {
        let mut ran_on = Vec::new();
        for id in ids.iter().skip(agent).step_by(2) {
            ran_on.extend(begins(&line.events(*id).await));
        }
        assert!(ran_on.iter().all(|worker| *worker == ran_on[0]), "{ran_on:?}");
    }
    drop(workers);
}

#[tokio::test]
async fn a_poisonous_turn_is_tried_again_and_ends_as_a_dead_letter() {
    let line = Line::start().await;
    let _worker = line.worker(&["--max-attempts", "3", "--retry-base-ms", "50"]);
    // It waits until its envelope is spoilt.
    let poison = NewTurn::user("x").agent(name("a")).delay(Duration::from_secs(2));
    let poison: TurnId = line.enqueue(vec![poison]).await[0];
    let mut future = envelope::encode(&1_u8).expect("encodes");
    future[0] = 9;
    line.overwrite(poison, &future).await;
    let next = line.enqueue(vec![NewTurn::user("Hi").agent(name("a")).sampling(greedy(2))]).await[0];
    let result = line.wait(poison).await;
    assert_eq!(result.outcome, Outcome::Failed);
    let error = result.error.unwrap_or_default();
    assert!(error.contains("gave up after 3 attempts") && error.contains("version 9"), "{error}");
    assert_eq!(begins(&line.events(poison).await).len(), 3);
    assert_eq!(line.wait(next).await.outcome, Outcome::Completed);
    let output = line.turnmill(&["dead", "ls", "--json"]).await;
    let letters = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(letters.contains(&poison.to_string()) && letters.contains("unreadable"), "{letters}");
}
