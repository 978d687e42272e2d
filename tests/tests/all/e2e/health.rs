//! What probes and Prometheus see while Redis goes away, and while the pool fills.

use turnmill::NewTurn;
use turnmill_schema::{Outcome, Sampling};
use turnmill_tests::line::{Line, exactly, name};

/// Redis as it should be run: what it acknowledged survives its crash.
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

const CORE_SERIES: [&str; 14] = [
    "turnmill_build_info{",
    "turnmill_turns_claimed_total 1",
    "turnmill_turns_ended_total{outcome=\"completed\"} 1",
    "turnmill_turns_ended_total{outcome=\"failed\"} 0",
    "turnmill_engine_step_seconds_count",
    "turnmill_engine_running_sequences 0",
    "turnmill_engine_waiting_sequences 0",
    "turnmill_prompt_tokens_total",
    "turnmill_generated_tokens_total 4",
    "turnmill_pool_blocks{state=\"free\"}",
    "turnmill_pool_headroom_ratio 1",
    "turnmill_first_token_seconds_count 1",
    "turnmill_inter_token_seconds_count 3",
    "turnmill_queue_source_up 1",
];

async fn until_metrics_have(worker: &turnmill_tests::worker::Worker, series: &str) {
    let found = async {
        while !worker.get("/metrics").1.lines().any(|line| line.starts_with(series)) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(turnmill_tests::PATIENCE, found).await;
    assert!(found.is_ok(), "{series} is not among\n{}", worker.get("/metrics").1);
}

#[tokio::test]
async fn metrics_tell_what_was_done() {
    let line = Line::start().await;
    let worker = line.worker(&[]);
    assert_eq!(worker.get("/health/startup").0, 200);
    let result = line.run(NewTurn::user("Count.").sampling(exactly(4))).await;
    assert_eq!(result.outcome, Outcome::Completed);
    for series in CORE_SERIES {
        until_metrics_have(&worker, series).await;
    }
}

#[tokio::test]
async fn a_worker_outlives_a_redis_crash_and_loses_no_token() {
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
    until_metrics_have(&worker, "turnmill_queue_source_up 0").await;
    assert!(!worker.get("/metrics").1.contains("turnmill_queue_runnable_agents"), "unknown is not 0");

    line.redis.restart();
    worker.until_ready_says(None).await;
    let cut_off = line.told(&running).await;
    let undisturbed = line.enqueue(vec![says("undisturbed")]).await;
    assert_eq!(cut_off[0].words(), line.told(&undisturbed).await[0].words());
}

#[tokio::test]
async fn a_redis_that_forgot_everything_is_served_again() {
    let mut line = Line::start().await;
    let worker = line.worker(&["--lease-ms", "1000"]);
    line.redis.crash();
    worker.until_ready_says(Some("redis_disconnected")).await;
    line.redis.restart();
    worker.until_ready_says(None).await;
    let result = line.run(NewTurn::user("Still there?").sampling(exactly(2))).await;
    assert_eq!(result.outcome, Outcome::Completed);
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
