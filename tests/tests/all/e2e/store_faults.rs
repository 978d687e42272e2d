//! A store in trouble makes a fleet slower, and nothing else: the words stay, readiness says degraded, and what could not
//! be stored is counted.

use serde_json::Value;
use tokio::sync::OnceCell;
use turnmill_client::NewTurn;
use turnmill_schema::Outcome;
use turnmill_tests::line::{Line, exactly, name};
use turnmill_tests::s3_server::{Faults, S3Server};
use turnmill_tests::told::Told;
use turnmill_tests::worker::Worker;
use turnmill_tests::{command, until};

const TURNS: usize = 5;

/// More tokens of a history make fetching it better than computing it.
const LONG: u32 = 512;

/// Turn number `i` of an agent. The first one is longer than [`LONG`].
fn turn(agent: &str, i: usize) -> NewTurn {
    let rules: String =
        (1..=40).map(|rule| format!("Rule {rule}: be polite, and never mention rule {rule}.\n")).collect();
    let words: String = (0..40).map(|word| format!("{} ", 100 * i + word)).collect();
    let rules = if i == 0 { rules } else { String::new() };
    NewTurn::user(format!("{rules}Count on: {words}")).agent(name(agent)).sampling(exactly(16))
}

/// What one undisturbed worker without a store says. The first test that asks finds out.
async fn undisturbed(line: &Line) -> &'static [Told] {
    static WORDS: OnceCell<Vec<Told>> = OnceCell::const_new();
    let find_out = async || {
        let _worker = line.worker(&[]);
        let mut told = Vec::new();
        for i in 0..TURNS {
            let turn = line.enqueue(vec![turn("undisturbed", i)]).await;
            told.extend(line.told(&turn).await);
        }
        told
    };
    WORDS.get_or_init(find_out).await
}

/// A worker with the S3 server as its store, ready.
fn worker(line: &Line, server: &S3Server, flags: &[&str]) -> Worker {
    let environment = server.env();
    let variables: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let (url, timeout) = (server.url(), "1000");
    let flags = [&["--store", &url, "--store-timeout-ms", timeout], flags].concat();
    let mut worker = Worker::launch_with(&line.redis.url(), &flags, &variables);
    worker.until_ready();
    worker
}

/// Whether readiness, which is a yes, says degraded.
fn is_degraded(worker: &Worker) -> bool {
    let (status, body) = worker.get("/health/ready");
    let body: Value = serde_json::from_str(&body).expect("health is told in JSON");
    assert_eq!(status, 200, "a store in trouble is no reason to be unready: {body}");
    body["degraded"].as_array().is_some_and(|degraded| !degraded.is_empty())
}

#[tokio::test]
async fn slow_answers_errors_and_cut_objects_change_no_word() {
    let line = Line::start().await;
    let words = undisturbed(&line).await;
    let server = S3Server::start();
    let faults = [
        // The history has to be there before it is hard to get.
        Faults::default(),
        Faults { errors_percent: 75, ..Faults::default() },
        Faults { truncate_percent: 90, slow_ms: 20, ..Faults::default() },
        Faults { shorten_percent: 100, ..Faults::default() },
        Faults { gone: true, ..Faults::default() },
    ];
    for (i, (fault, undisturbed)) in faults.into_iter().zip(words).enumerate() {
        // A fresh one each time: it has nothing but the store.
        let mut worker = worker(&line, &server, &[]);
        server.faults(&fault);
        let before = server.counters();
        let turn = line.enqueue(vec![turn("a", i)]).await;
        assert_eq!(line.told(&turn).await[0].words(), undisturbed.words(), "{fault:?}, turn {i}");
        let after = server.counters();
        if i > 0 {
            assert!(after.gets > before.gets, "{fault:?}: nobody asked the store for the history");
            assert!(after.spoiled > before.spoiled, "{fault:?}: no request was spoiled");
        }
        server.faults(&Faults::default());
        // What waits to be stored is stored.
        worker.sigterm();
        worker.wait_exit();
        if i == 0 {
            let stored = line.manifest("a").await.map_or(0, |manifest| manifest.tokens);
            assert!(stored >= LONG, "the manifest names {stored} tokens: not worth fetching");
        }
    }
}

#[tokio::test]
async fn without_its_store_a_worker_goes_on_and_says_degraded() {
    let line = Line::start().await;
    let words = undisturbed(&line).await;
    let mut server = S3Server::start();
    let worker = worker(&line, &server, &[]);
    for (i, undisturbed) in words.iter().enumerate() {
        if i == 1 {
            server.kill();
        }
        let turn = line.enqueue(vec![turn("a", i)]).await;
        assert_eq!(line.told(&turn).await[0].words(), undisturbed.words(), "turn {i}");
    }
    until("it notices", async || is_degraded(&worker)).await;
    server.restart();
    let more = line.enqueue((0..4).map(|i| turn(&format!("later{i}"), 0)).collect()).await;
    for turn in more {
        assert_eq!(line.wait(turn).await.outcome, Outcome::Completed);
    }
    until("it is well again", async || !is_degraded(&worker)).await;
}

#[tokio::test]
async fn a_full_disk_drops_writes_and_counts_them() {
    let line = Line::start().await;
    let server = S3Server::start();
    server.faults(&Faults { full: true, ..Faults::default() });
    let worker = worker(&line, &server, &[]);
    let turns = line.enqueue((0..4).map(|i| turn(&format!("a{i}"), i)).collect()).await;
    for turn in &turns {
        assert_eq!(line.wait(*turn).await.outcome, Outcome::Completed);
    }
    let failed = || worker.metric("turnmill_store_saves_total", &["outcome=\"failed\""]);
    until("failed writes are counted", async || failed() >= 4.0 && is_degraded(&worker)).await;
    assert_eq!(worker.metric("turnmill_store_saves_total", &["outcome=\"saved\""]), 0.0);
    assert_eq!(line.manifest("a0").await, None, "a manifest names what is not there");
}

#[tokio::test]
async fn a_store_that_cannot_be_written_fails_the_check_in_one_sentence() {
    let line = Line::start().await;
    let server = S3Server::start();
    server.faults(&Faults { full: true, ..Faults::default() });
    let (full, redis) = (server.url(), line.redis.url());
    for (store, part) in
        [(full.as_str(), "cannot be written"), ("file:///proc/nowhere/x", "cannot be opened")]
    {
        let ran = tokio::process::Command::from(command("turnmill-worker"))
            .args(["check", "--json", "--store", store, "--redis-url", &redis, "--http-addr", "127.0.0.1:0"])
            .args(["--store-timeout-ms", "1000"])
            .env("TURNMILL_MODEL", turnmill_tests::worker::model())
            .envs(server.env())
            .output()
            .await
            .expect("the command can be run");
        assert_eq!(ran.status.code(), Some(1));
        let findings: Value = serde_json::from_slice(&ran.stdout).expect("findings are told in JSON");
        let findings = findings.as_array().expect("a list");
        let failed: Vec<&Value> = findings.iter().filter(|finding| finding["status"] == "failed").collect();
        let [finding] = &failed[..] else { panic!("one thing is wrong: {findings:?}") };
        let detail = finding["detail"].as_str().expect("a sentence");
        assert!(finding["name"] == "store" && detail.contains(part) && !detail.contains('\n'), "{detail}");
    }
}
