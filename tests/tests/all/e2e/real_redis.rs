//! What production does to Redis: its address moves to another server while connections stay open, and it fills up.
//!
//! Everything here is seen from outside, so that older programs can be held against it (`TURNMILL_TEST_BIN`).

use std::process::Stdio;

use redis::FromRedisValue;
use tokio::process::Command;
use turnmill_schema::Name;
use turnmill_tests::chaos::failover::Failovers;
use turnmill_tests::chaos::store::Store;
use turnmill_tests::line::Line;
use turnmill_tests::machine;
use turnmill_tests::proxy::Proxy;
use turnmill_tests::redis_server::RedisServer;
use turnmill_tests::worker::Worker;
use turnmill_tests::{PATIENCE, command, until};

async fn ask<T: FromRedisValue>(server: &RedisServer, words: &[&str]) -> redis::RedisResult<T> {
    let client = redis::Client::open(server.url()).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("Redis answers");
    redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await
}

async fn told<T: FromRedisValue>(server: &RedisServer, words: &[&str]) -> T {
    ask(server, words).await.expect("the command works")
}

/// Runs `turnmill` on the queue at `url` to its end; what it printed.
async fn turnmill(url: &str, arguments: &[&str]) -> String {
    let mut command = Command::from(command("turnmill"));
    command.args(arguments).env("TURNMILL_REDIS_URL", url).stdin(Stdio::null()).kill_on_drop(true);
    let output =
        tokio::time::timeout(2 * PATIENCE, command.output()).await.expect("it ends").expect("it runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

// The proxy runs while the test waits for programs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_keeps_connections_open_is_noticed_by_everybody() {
    let _machine = machine::alone();
    let (mut primary, mut failovers) = Failovers::pair(&[]).await.expect("a replica in sync");
    let proxy = Proxy::start(primary.address()).await.expect("a local port is free");
    let mut worker = Worker::launch(&proxy.url(), &["--lease-ms", "1500"]);
    worker.until_ready();
    turnmill(&proxy.url(), &["submit", "-m", "before", "--max-tokens", "2", "--wait"]).await;

    assert!(failovers.fail_over(&mut primary).await.expect("both answer"));
    proxy.lead_to(primary.address());
    let said =
        turnmill(&proxy.url(), &["submit", "-m", "after", "--max-tokens", "2", "--wait", "--json"]).await;
    assert!(said.contains("completed"), "{said}");
    let store = Store::open(&primary.url(), &Name::new("default").expect("a name")).expect("a URL of ours");
    assert!(failovers.look(&store).await.expect("it answers").is_some(), "a turn has ended since");

    // And back, with nothing to do meanwhile: the first turn afterwards finds everything in order.
    failovers.until_possible(&primary).await.expect("the old primary gets in sync");
    assert!(failovers.fail_over(&mut primary).await.expect("both answer"));
    proxy.lead_to(primary.address());
    until("the worker is ready again", async || {
        worker.try_get("/health/ready").is_some_and(|(status, _)| status == 200)
    })
    .await;
    turnmill(&proxy.url(), &["submit", "-m", "again", "--max-tokens", "2", "--wait"]).await;
    assert_eq!(worker.exited(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_starts_while_redis_loads_waits() {
    let _machine = machine::alone();
    let options = [
        "--key-load-delay",
        "1000",
        "--loading-process-events-interval-bytes",
        "1024",
        "--enable-debug-command",
        "yes",
    ];
    let mut server = RedisServer::start_with(&options);
    let _: String = told(&server, &["DEBUG", "POPULATE", "3000", "key", "1000"]).await;
    let _: String = told(&server, &["SAVE"]).await;
    let url = server.url();
    server.crash();
    // Its data takes it some seconds.
    let restarted = tokio::task::spawn_blocking(move || {
        server.restart();
        server
    });
    until("it says that it loads", async || {
        let Ok(client) = redis::Client::open(url.as_str()) else { return false };
        let Ok(mut connection) = client.get_multiplexed_async_connection().await else { return false };
        let info: redis::RedisResult<String> =
            redis::cmd("INFO").arg("persistence").query_async(&mut connection).await;
        info.is_ok_and(|info| info.contains("loading:1"))
    })
    .await;
    let mut worker = Worker::launch(&url, &[]);
    worker.until_ready();
    assert!(worker.log().contains("waiting for Redis"), "{}", worker.log());
    drop(restarted.await.expect("it starts"));
}

#[tokio::test]
async fn a_full_redis_drains_whoever_was_cut_off() {
    const TURNS: usize = 40;
    let line = Line::start().await;
    let mut worker = line.worker(&["--retained-bytes", "0", "--lease-ms", "1500"]);
    assert!(line.turnmill(&["queue", "pause"]).await.status.success());
    // Each is an agent of one turn: nothing of it has to stay.
    let message = "Say a word. ".repeat(340);
    let lines = format!("{{\"message\": \"{message}\", \"max_tokens\": 4}}\n").repeat(TURNS);
    let file = tempfile::NamedTempFile::new().expect("the temporary directory is writable");
    std::fs::write(file.path(), lines).expect("written");
    assert!(line.turnmill(&["submit", &file.path().to_string_lossy()]).await.status.success());
    // Somebody else's data takes what is there and more: whatever the turns free, Redis stays full.
    let junk = "x".repeat(8 << 20);
    let _: String = told(&line.redis, &["SET", "junk", &junk]).await;
    let full = memory(&line.redis, "used_memory_dataset").await;
    let limit = memory(&line.redis, "used_memory").await - junk.len() as u64 / 2;
    let _: String = told(&line.redis, &["CONFIG", "SET", "maxmemory", &limit.to_string()]).await;
    let _: u64 = told(&line.redis, &["CLIENT", "KILL", "TYPE", "normal"]).await;

    assert!(line.turnmill(&["queue", "resume"]).await.status.success());
    until("every turn ends", async || {
        let agents: Vec<String> = told(&line.redis, &["ZRANGE", "tm:{default.0}:open", "0", "-1"]).await;
        agents.is_empty()
    })
    .await;
    let refused = ask::<String>(&line.redis, &["SET", "one", "more"]).await.expect_err("Redis is full");
    assert_eq!(refused.code(), Some("OOM"));
    until("memory falls", async || memory(&line.redis, "used_memory_dataset").await < full).await;
    assert_eq!(worker.exited(), None, "{}", worker.log());

    let _: u64 = told(&line.redis, &["DEL", "junk"]).await;
    turnmill(&line.redis.url(), &["submit", "-m", "one more", "--max-tokens", "2", "--wait"]).await;
    assert_eq!(worker.exited(), None, "{}", worker.log());
}

/// A figure of INFO in bytes. The data set leaves out what connections and cached scripts take.
async fn memory(server: &RedisServer, figure: &str) -> u64 {
    let info: String = told(server, &["INFO", "memory"]).await;
    let used = info.lines().find_map(|line| line.strip_prefix(figure)?.strip_prefix(':'));
    used.and_then(|bytes| bytes.trim().parse().ok()).expect("Redis says it")
}

#[tokio::test]
async fn hot_agents_starve_neither_a_dead_workers_turn_nor_a_due_one() {
    const LEASE: [&str; 2] = ["--lease-ms", "2000"];
    let line = Line::start().await;
    let url = line.redis.url();
    // Somebody's turn is in the hands of a worker that will die.
    let mut dying = line.worker(&[&LEASE[..], &["--max-sequences", "1"]].concat());
    let left = turnmill(&url, &["submit", "--agent", "left", "-m", "Count.", "--max-tokens", "1000"]).await;
    until("it runs", async || is_in_state(&line, left.trim(), "leased").await).await;
    // Two agents with many turns take both places of the other worker, before there is anything else to do.
    let _worker = line.worker(&[&LEASE[..], &["--max-sequences", "2"]].concat());
    let hot: String = (0..1000)
        .map(|i| format!("{{\"agent\": \"hot-{}\", \"message\": \"Go on.\", \"new_session\": true, \"max_tokens\": 8}}\n", i % 2))
        .collect();
    let file = tempfile::NamedTempFile::new().expect("the temporary directory is writable");
    std::fs::write(file.path(), hot).expect("written");
    assert!(line.turnmill(&["submit", &file.path().to_string_lossy()]).await.status.success());
    until("both places are taken", async || {
        let hot = ["hot-0", "hot-1"].map(|agent| format!("tm:{{default.0}}:agent:default/{agent}"));
        for agent in &hot {
            if told::<Option<String>>(&line.redis, &["HGET", agent, "state"]).await.as_deref()
                != Some("leased")
            {
                return false;
            }
        }
        true
    })
    .await;
    dying.kill9();
    let due = ["submit", "--agent", "due", "-m", "due", "--delay", "1", "--max-tokens", "2"];
    let due = turnmill(&url, &due).await;
    for turn in [left.trim(), due.trim()] {
        until("it ends while the hot agents have work", async || is_in_state(&line, turn, "ended").await)
            .await;
    }
    let waiting: u64 = told(&line.redis, &["LLEN", "tm:{default.0}:backlog:default/hot-0"]).await;
    assert!(waiting > 0, "the hot agents were done first: nothing was shown");
}

async fn is_in_state(line: &Line, turn: &str, state: &str) -> bool {
    let shown = line.turnmill(&["turn", "show", turn, "--json"]).await;
    String::from_utf8_lossy(&shown.stdout).contains(&format!("\"state\":\"{state}\""))
}
