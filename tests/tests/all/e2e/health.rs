//! What probes and Prometheus see while Redis goes away, and while the pool fills.

use turnmill_client::NewTurn;
use turnmill_schema::{Outcome, Sampling};
use turnmill_tests::line::{Line, exactly, name};
use turnmill_tests::scrape::Scrape;
use turnmill_tests::until;

/// Redis as it should be run: what it acknowledged survives its crash.
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// What a worker tells that has run one turn of four tokens, and nothing else.
const AFTER_ONE_TURN: [(&str, f64); 11] = [
    ("turnmill_turns_claimed_total", 1.0),
    ("turnmill_turns_ended_total{outcome=\"completed\"}", 1.0),
    ("turnmill_turns_ended_total{outcome=\"failed\"}", 0.0),
    ("turnmill_engine_running_sequences", 0.0),
    ("turnmill_engine_waiting_sequences", 0.0),
    ("turnmill_generated_tokens_total", 4.0),
    ("turnmill_pool_blocks{state=\"held\"}", 0.0),
    ("turnmill_pool_headroom_ratio", 1.0),
    ("turnmill_first_token_seconds_count", 1.0),
    ("turnmill_inter_token_seconds_count", 3.0),
    ("turnmill_queue_source_up", 1.0),
];

#[tokio::test]
async fn metrics_tell_what_was_done_exactly() {
    let line = Line::start().await;
    let worker = line.worker(&[]);
    assert_eq!(worker.get("/health/startup").0, 200);
    let result = line.run(NewTurn::user("Count.").sampling(exactly(4))).await;
    assert_eq!(result.outcome, Outcome::Completed);
    for (series, value) in AFTER_ONE_TURN {
        until(&format!("{series} is {value}"), async || Scrape::of(&worker).series(series) == Some(value))
            .await;
    }
}

#[tokio::test]
async fn a_worker_outlives_a_redis_crash_and_loses_no_token_and_serves_one_that_forgot_everything() {
    let mut line = Line::start_with(&DURABLE).await;
    let worker = line.worker(&["--lease-ms", "1000"]);
    let says = |agent| {
        let sampling = Sampling { temperature: 0.7, seed: Some(7), ..exactly(60) };
        NewTurn::user("Tell me about rivers.").agent(name(agent)).sampling(sampling)
    };
    let running = line.enqueue(vec![says("cut-off")]).await;
    line.until_all_have_tokens(&running).await;
    line.redis.crash();
    worker.until_ready_says(Some("redis_disconnected")).await;
    assert_eq!(worker.get("/health/live").0, 200, "no reason to restart it");
    let is_counted = || Scrape::of(&worker).series("turnmill_queue_source_up") == Some(1.0);
    until("the queue cannot be counted", async || !is_counted()).await;
    assert!(!worker.get("/metrics").1.contains("turnmill_queue_runnable_agents"), "unknown is not 0");

    line.redis.restart();
    worker.until_ready_says(None).await;
    let cut_off = line.told(&running).await;
    let undisturbed = line.enqueue(vec![says("undisturbed")]).await;
    assert_eq!(cut_off[0].words(), line.told(&undisturbed).await[0].words());

    line.redis.crash();
    std::fs::remove_dir_all(line.redis.directory().join("appendonlydir")).expect("what it kept is there");
    worker.until_ready_says(Some("redis_disconnected")).await;
    line.redis.restart();
    worker.until_ready_says(None).await;
    let result = line.run(NewTurn::user("Still there?").sampling(exactly(2))).await;
    assert_eq!(result.outcome, Outcome::Completed);
    assert_eq!(line.transcript("undisturbed").await.len(), 0, "Redis has forgotten what was said");
}

#[tokio::test]
async fn a_pool_that_fills_makes_the_worker_unready_until_it_empties() {
    let line = Line::start().await;
    // Eleven blocks of 16 tokens.
    let worker = line.worker(&["--pool-bytes", "4MiB", "--headroom-low", "0.9", "--headroom-high", "0.95"]);
    let long = line.enqueue(vec![NewTurn::user("Go on.").sampling(exactly(48))]).await;
    worker.until_ready_says(Some("pool_headroom_low")).await;
    assert_eq!(worker.get("/health/live").0, 200);
    line.told(&long).await;
    worker.until_ready_says(None).await;
}

#[tokio::test]
async fn a_new_worker_is_listed_as_ready_from_the_first() {
    let line = Line::start().await;
    // The next time it says something of itself is twenty seconds later.
    let _worker = line.worker(&["--lease-ms", "60000"]);
    let deadline = std::time::Instant::now() + turnmill_tests::PATIENCE;
    let listed = loop {
        let output = line.turnmill(&["worker", "ls", "--json"]).await;
        let listed = String::from_utf8(output.stdout).expect("text");
        if !listed.is_empty() {
            break listed;
        }
        assert!(std::time::Instant::now() < deadline, "the worker is not listed");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    let worker: serde_json::Value = serde_json::from_str(&listed).expect("a worker a line");
    assert_eq!(worker["state"], "ready", "{listed}");
}
