//! Every metric of the catalogue moves when what it counts happens: a scripted load on real workers, and a scrape of each.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use turnmill_client::NewTurn;
use turnmill_schema::{Outcome, Sampling, TurnId, envelope};
use turnmill_tests::line::{Line, exactly, greedy, name};
use turnmill_tests::redis_server::free_port;
use turnmill_tests::s3_server::{Faults, S3Server};
use turnmill_tests::scrape::Scrape;
use turnmill_tests::worker::Worker;
use turnmill_worker::observe::catalogue;

/// What was done is told by then, on a busy machine too.
const SOON: Duration = Duration::from_secs(60);

/// What this load does not move, and why.
const ELSEWHERE: [(&str, &str); 2] = [
    ("turnmill_engine_bad_logits_total", "no real model gives them; worker/tests/all/engine.rs makes them"),
    ("process_virtual_memory_max_bytes", "absent where there is no limit"),
];

/// Which metrics were seen to move.
#[derive(Default)]
struct Moved(BTreeSet<String>);

impl Moved {
    /// Waits until each series (or sum of a metric's series) has a value that `holds`.
    async fn until(&mut self, worker: &Worker, holds: fn(f64) -> bool, wanted: &[&str]) {
        let deadline = Instant::now() + SOON;
        loop {
            let scrape = Scrape::of(worker);
            let value = |series: &str| scrape.series(series).or_else(|| scrape.sum(series));
            let missing: Vec<_> = wanted.iter().filter(|series| !value(series).is_some_and(holds)).collect();
            if missing.is_empty() {
                let names = wanted.iter().map(|series| series.split('{').next().unwrap_or(series));
                self.0.extend(names.map(str::to_owned));
                return;
            }
            assert!(Instant::now() < deadline, "{missing:?} did not move: {scrape:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_some(&mut self, worker: &Worker, wanted: &[&str]) {
        self.until(worker, |value| value > 0.0, wanted).await;
    }

    /// The catalogue and what moved are the same.
    fn check(&self) {
        let elsewhere = |metric: &str| ELSEWHERE.iter().any(|(name, _)| *name == metric);
        let still: Vec<_> =
            catalogue().map(|m| m.name).filter(|name| !self.0.contains(*name) && !elsewhere(name)).collect();
        assert_eq!(still, Vec::<&str>::new(), "never moved");
        let unknown: Vec<_> = self.0.iter().filter(|name| catalogue().all(|m| m.name != **name)).collect();
        assert_eq!(unknown, Vec::<&String>::new(), "not in the catalogue");
        assert!(ELSEWHERE.iter().all(|(name, _)| !self.0.contains(*name)));
    }
}

fn endless(agent: &str) -> NewTurn {
    let sampling = Sampling { ignore_eos: true, temperature: 0.0, ..Sampling::default() };
    NewTurn::user("Go on.").agent(name(agent)).sampling(sampling)
}

/// A worker with few blocks and the S3 server as its store.
fn small_worker(line: &Line, server: &S3Server, flags: &[&str]) -> Worker {
    let environment = server.env();
    let variables: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let url = server.url();
    let own = ["--store", &url, "--store-timeout-ms", "1000", "--lease-ms", "1000", "--pool-bytes", "18MiB"];
    let flags = [&own[..], &["--max-sequences", "6", "--batch-tokens", "64"], flags].concat();
    let mut worker = Worker::launch_with(&line.redis.url(), &flags, &variables);
    worker.until_ready();
    worker
}

/// Enough to be seen waiting: the queue is counted every two seconds.
const CROWD: usize = 24;

/// More agents than run at once, with more tokens than the pool holds.
async fn crowd(line: &Line, worker: &Worker, moved: &mut Moved) {
    let turn = |i: usize| {
        let text = format!("Tell me {} facts about clocks.", i + 2);
        NewTurn::user(text).agent(name(&format!("crowd{i}"))).sampling(exactly(150))
    };
    let turns = line.enqueue((0..CROWD).map(turn).collect()).await;
    let now = ["turnmill_queue_leased_agents", "turnmill_queue_turns", "turnmill_queue_oldest_seconds"];
    moved.until_some(worker, &now).await;
    let waits = ["turnmill_queue_runnable_agents", "turnmill_queue_lag_agents", "turnmill_turns_held"];
    moved.until_some(worker, &waits).await;
    let engine = ["turnmill_engine_running_sequences", "turnmill_pool_blocks{state=\"held\"}"];
    moved.until_some(worker, &engine).await;
    moved.until(worker, |ratio| ratio < 0.9, &["turnmill_pool_headroom_ratio"]).await;
    moved.until_some(worker, &["turnmill_engine_waiting_sequences"]).await;
    for turn in turns {
        assert_eq!(line.wait(turn).await.outcome, Outcome::Completed);
    }
    moved.until(worker, |turns| turns == 0.0, &["turnmill_queue_turns", "turnmill_turns_held"]).await;
    moved
        .until(
            worker,
            |turns| turns == CROWD as f64,
            &["turnmill_turns_claimed_total", "turnmill_turn_seconds"],
        )
        .await;
    moved.until(worker, |tokens| tokens == 150.0 * CROWD as f64, &["turnmill_generated_tokens_total"]).await;
    let events = [
        "turnmill_turns_ended_total{outcome=\"completed\"}",
        "turnmill_queue_enqueued_total",
        "turnmill_queue_ended_total{outcome=\"completed\"}",
        "turnmill_queue_retained_bytes",
        "turnmill_turn_queued_seconds",
        "turnmill_first_token_seconds",
        "turnmill_inter_token_seconds",
        "turnmill_engine_step_seconds",
        "turnmill_engine_step_rows",
        "turnmill_engine_preempted_total",
        "turnmill_offloaded_blocks_total",
        "turnmill_offloaded_blocks_restored_total",
        "turnmill_prompt_tokens_total",
        "turnmill_pool_evictions_total",
        "turnmill_pool_blocks{state=\"cached\"}",
        "turnmill_store_saves_total{outcome=\"saved\"}",
        "turnmill_store_save_bytes_total{outcome=\"saved\"}",
        "turnmill_store_put_seconds",
    ];
    moved.until_some(worker, &events).await;
}

/// Turns that end in every other way.
async fn unhappy(line: &Line, worker: &Worker, moved: &mut Moved) {
    // It waits for as long as it takes to spoil its envelope and to count it.
    let poison = NewTurn::user("x").agent(name("poison")).delay(Duration::from_secs(3600));
    let poison: TurnId = line.enqueue(vec![poison]).await[0];
    line.overwrite(poison, &[9, 1]).await;
    moved.until_some(worker, &["turnmill_queue_delayed_agents"]).await;
    assert!(line.turnmill(&["turn", "retry", &poison.to_string()]).await.status.success());
    let late = endless("late").deadline_in(Duration::from_millis(700));
    let too_long = NewTurn::user("word ".repeat(3000)).sampling(greedy(1));
    let ends = line.enqueue(vec![late, too_long]).await;
    assert_eq!(line.wait(ends[0]).await.outcome, Outcome::Expired);
    assert_eq!(line.wait(ends[1]).await.outcome, Outcome::Failed);
    let cancelled = line.enqueue(vec![endless("cancelled")]).await;
    line.until_all_have_tokens(&cancelled).await;
    assert!(line.turnmill(&["turn", "cancel", &cancelled[0].to_string()]).await.status.success());
    assert_eq!(line.wait(poison).await.outcome, Outcome::Failed);
    let ends = [
        "turnmill_turns_ended_total{outcome=\"expired\"}",
        "turnmill_turns_ended_total{outcome=\"failed\"}",
        "turnmill_turns_dead_total{reason=\"rejected\"}",
        "turnmill_turns_dead_total{reason=\"unreadable\"}",
        "turnmill_turns_retried_total",
        "turnmill_turns_fenced_total",
        "turnmill_queue_dead_letters",
        "turnmill_queue_ended_total{outcome=\"failed\"}",
        "turnmill_queue_ended_total{outcome=\"expired\"}",
        "turnmill_queue_ended_total{outcome=\"cancelled\"}",
    ];
    moved.until_some(worker, &ends).await;
    assert!(line.turnmill(&["queue", "pause"]).await.status.success());
    moved.until_some(worker, &["turnmill_queue_paused"]).await;
    assert!(line.turnmill(&["queue", "resume"]).await.status.success());
    moved.until(worker, |paused| paused == 0.0, &["turnmill_queue_paused"]).await;
}

/// A store in trouble, and then a drain that takes as long as its slow answers.
async fn trouble_and_drain(line: &Line, mut worker: Worker, server: &S3Server, moved: &mut Moved) {
    server.faults(&Faults { full: true, slow_ms: 50, ..Faults::default() });
    let long = |i: usize| {
        let text = format!("Count {i}: {}", "one two three ".repeat(30));
        NewTurn::user(text).agent(name(&format!("kept{i}"))).sampling(exactly(4))
    };
    for turn in line.enqueue((0..4).map(long).collect()).await {
        line.wait(turn).await;
    }
    moved.until_some(&worker, &["turnmill_store_saves_total{outcome=\"failed\"}"]).await;
    moved.until(&worker, |up| up == 0.0, &["turnmill_store_up"]).await;
    server.faults(&Faults { slow_ms: 300, ..Faults::default() });
    let left = line.enqueue(vec![endless("left")]).await;
    line.until_all_have_tokens(&left).await;
    moved.until_some(&worker, &["turnmill_store_save_queue_bytes"]).await;
    worker.sigterm();
    let phase = "turnmill_worker_phase{phase=\"draining\"}";
    moved.until(&worker, |value| value == 1.0, &["turnmill_turns_requeued_total", phase]).await;
    assert_eq!(worker.wait_exit().code(), Some(0));
    server.faults(&Faults::default());
    assert!(line.turnmill(&["turn", "cancel", &left[0].to_string()]).await.status.success());
}

/// Agents with so long a history that it is fetched rather than computed.
const LONG: [&str; 2] = ["long", "lost"];

/// Gives an agent a long history; waits until it is stored.
async fn long_history(line: &Line, agent: &str) {
    let rules: String =
        (1..=34).map(|i| format!("Rule {i}: be polite, and never mention rule {i}.\n")).collect();
    let rules = format!("I am {agent}. {rules}");
    let result = line.run(NewTurn::user(rules).agent(name(agent)).sampling(exactly(4))).await;
    assert!(result.usage.prompt_tokens > 500, "{:?}", result.usage);
    line.until_stored(agent, 500).await;
}

fn again(agent: &str) -> NewTurn {
    NewTurn::user("Once more.").agent(name(agent)).sampling(exactly(4))
}

/// Another worker restores what the first one stored.
async fn restored(line: &Line, worker: &Worker, moved: &mut Moved) {
    let result = line.run(again(LONG[0])).await;
    assert!(result.usage.cached_tokens > 0, "{:?}", result.usage);
    let events = [
        "turnmill_restores_total{outcome=\"restored\"}",
        "turnmill_restored_tokens_total",
        "turnmill_restore_seconds",
        "turnmill_store_fetches_total",
        "turnmill_store_fetch_bytes_total",
        "turnmill_store_get_seconds",
        "turnmill_cached_tokens_total",
        "turnmill_host_cache_bytes",
    ];
    moved.until_some(worker, &events).await;
    // Their blocks drive those of the first out of the pool, and leave it in the host cache.
    let others =
        (10..16).map(|i| NewTurn::user("Hello.").agent(name(&format!("o{i}"))).sampling(exactly(150)));
    for turn in line.enqueue(others.collect()).await {
        line.wait(turn).await;
    }
    line.run(again(LONG[0])).await;
    moved.until_some(worker, &["turnmill_host_cache_hits_total"]).await;
}

#[tokio::test]
async fn every_metric_moves_when_what_it_counts_happens() {
    let mut line = Line::start_with(&["--appendonly", "yes"]).await;
    let (server, mut moved) = (S3Server::start(), Moved::default());
    let flags = ["--speculation", "off", "--max-attempts", "2", "--retry-base-ms", "20", "--drain-ms", "50"];
    let first = small_worker(&line, &server, &flags);
    let ready = ["turnmill_worker_phase{phase=\"ready\"}", "turnmill_worker_ready", "turnmill_redis_up"];
    moved.until(&first, |value| value == 1.0, &ready).await;
    let known = ["turnmill_build_info", "turnmill_queue_source_up", "turnmill_store_up"];
    moved.until(&first, |value| value == 1.0, &known).await;
    crowd(&line, &first, &mut moved).await;
    for agent in LONG {
        long_history(&line, agent).await;
    }
    unhappy(&line, &first, &mut moved).await;
    let process = catalogue().map(|metric| metric.name).filter(|name| {
        name.starts_with("process_") && ELSEWHERE.iter().all(|(elsewhere, _)| elsewhere != name)
    });
    moved.until_some(&first, &process.collect::<Vec<_>>()).await;
    trouble_and_drain(&line, first, &server, &mut moved).await;

    let mut second = small_worker(&line, &server, &["--speculation", "off"]);
    restored(&line, &second, &mut moved).await;
    server.faults(&Faults { gone: true, ..Faults::default() });
    line.run(again(LONG[1])).await;
    moved.until_some(&second, &["turnmill_store_misses_total"]).await;
    let orphan = line.enqueue(vec![endless("orphan")]).await;
    line.until_all_have_tokens(&orphan).await;
    second.kill9();

    let (folder, envelope) = (TempDir::new().expect("a folder"), envelope::VERSION);
    assert_eq!(envelope, 1, "poison has another version");
    let url = format!("file://{}", folder.path().display());
    // Nobody receives its spans.
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let flags =
        ["--lease-ms", "1000", "--speculation", "lookup", "--store", &url, "--otlp-endpoint", &nowhere];
    let third = line.worker(&flags);
    moved.until_some(&third, &["turnmill_turns_reclaimed_total"]).await;
    let parrot = "The quick brown fox jumps over the lazy dog. ".repeat(6);
    line.run(NewTurn::user(format!("Repeat: {parrot}")).agent(name("parrot")).sampling(exactly(60))).await;
    let speculation =
        ["turnmill_speculation_proposed_tokens_total", "turnmill_speculation_accepted_tokens_total"];
    moved.until_some(&third, &speculation).await;
    moved.until_some(&third, &["turnmill_store_saves_total{outcome=\"saved\"}"]).await;
    moved.until_some(&third, &["turnmill_spans_dropped_total{reason=\"export_failed\"}"]).await;
    let fourth = line.worker(&["--lease-ms", "1000", "--store", &url, "--store-max-bytes", "1KiB"]);
    moved.until_some(&fourth, &["turnmill_store_trimmed_bytes_total"]).await;

    line.redis.crash();
    let gone = ["turnmill_redis_up", "turnmill_worker_ready", "turnmill_queue_source_up"];
    moved.until(&fourth, |value| value == 0.0, &gone).await;
    let scrape = Scrape::of(&fourth);
    let queue = catalogue().map(|metric| metric.name).filter(|name| name.starts_with("turnmill_queue_"));
    for name in queue.filter(|name| *name != "turnmill_queue_source_up") {
        assert_eq!(scrape.sum(name), None, "{name}: what nobody knows is absent, not 0");
    }
    moved.check();
}
