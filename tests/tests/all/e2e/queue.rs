//! What the queue does with turns of real workers: cancelling, continuing, dead letters. Deadlines and schedules are in `line.rs`.

use std::time::Instant;

use turnmill_client::NewTurn;
use turnmill_schema::{Event, Outcome, Sampling, TurnId, envelope};
use turnmill_tests::line::{Line, exactly, greedy, name};
use turnmill_tests::scrape::Scrape;
use turnmill_tests::until;

/// A turn that goes on for as long as the context allows.
fn endless(agent: &str) -> NewTurn {
    let sampling = Sampling { ignore_eos: true, temperature: 0.0, ..Sampling::default() };
    NewTurn::user("Go on.").agent(name(agent)).sampling(sampling)
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
    let says = |series: &str, value| Scrape::of(&worker).series(series) == Some(value);
    until("the engine drops the turn", async || says("turnmill_engine_running_sequences", 0.0)).await;
    assert!(says("turnmill_pool_blocks{state=\"held\"}", 0.0));
    assert_eq!(line.transcript("a").await.len(), 1, "a cancelled turn was never part of the conversation");
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
    let poison: TurnId = line.enqueue(vec![NewTurn::user("x").agent(name("a"))]).await[0];
    let mut future = envelope::encode(&1_u8).expect("encodes");
    future[0] = 9;
    line.overwrite(poison, &future).await;
    let next = line.enqueue(vec![NewTurn::user("Hi").agent(name("a")).sampling(greedy(2))]).await[0];
    // Only now, so that it finds the envelope spoilt.
    let _worker = line.worker(&["--max-attempts", "3", "--retry-base-ms", "50"]);
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
