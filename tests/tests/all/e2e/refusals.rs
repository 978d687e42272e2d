//! A Redis that answers and refuses: the worker says so, and loses nothing that it need not lose.

use std::time::{Duration, Instant};

use redis::FromRedisValue;
use turnmill_client::NewTurn;
use turnmill_schema::keys::Keys;
use turnmill_schema::{AgentId, Outcome};
use turnmill_tests::PATIENCE;
use turnmill_tests::line::{Line, exactly, name};
use turnmill_tests::worker::Worker;

/// A connection that stays logged in, whatever password is asked of later ones.
struct Operator(redis::aio::MultiplexedConnection);

impl Operator {
    async fn new(line: &Line) -> Self {
        let client = redis::Client::open(line.redis.url()).expect("a URL");
        Self(client.get_multiplexed_async_connection().await.expect("Redis answers"))
    }

    async fn ask<T: FromRedisValue>(&mut self, words: &[&str]) -> T {
        let answer = redis::cmd(words[0]).arg(&words[1..]).query_async(&mut self.0).await;
        answer.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    async fn tell(&mut self, words: &[&str]) {
        let _: redis::Value = self.ask(words).await;
    }

    /// How often Redis has refused somebody who is not logged in.
    async fn refusals(&mut self) -> u64 {
        let info: String = self.ask(&["INFO", "errorstats"]).await;
        let count = info.lines().find_map(|line| line.strip_prefix("errorstat_NOAUTH:count="));
        count.map_or(0, |count| count.trim().parse().expect("a number"))
    }
}

async fn until(what: &str, worker: &Worker, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}\n{}", worker.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How many lines of the log begin so.
fn told(worker: &Worker, message: &str) -> usize {
    let lines = worker.log_lines();
    lines.iter().filter(|line| line["message"].as_str().is_some_and(|text| text.starts_with(message))).count()
}

#[tokio::test]
async fn a_worker_that_redis_refuses_is_not_ready_until_it_is_allowed_again() {
    let line = Line::start().await;
    let mut worker = line.worker(&["--lease-ms", "1500"]);
    let mut operator = Operator::new(&line).await;
    operator.tell(&["CONFIG", "SET", "requirepass", "secret"]).await;
    operator.tell(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    operator.tell(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    let says_why = || worker.get("/health/ready").1.contains("another user or password");
    until("readiness says why the worker gets no work", &worker, says_why).await;
    worker.until_ready_says(Some("redis_disconnected")).await;
    assert_eq!(worker.metric("turnmill_redis_up", &[]), 0.0);
    assert_eq!(worker.get("/health/live").0, 200, "a restart would not help");
    let (before, deadline) = (operator.refusals().await, Instant::now() + PATIENCE);
    while operator.refusals().await < before + 20 {
        assert!(Instant::now() < deadline, "the worker does not try again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(told(&worker, "Redis refuses this worker"), 1, "{}", worker.log());

    operator.tell(&["CONFIG", "SET", "requirepass", ""]).await;
    worker.until_ready_says(None).await;
    assert_eq!(worker.metric("turnmill_redis_up", &[]), 1.0);
    let result = line.run(NewTurn::user("Still there?").sampling(exactly(2))).await;
    assert_eq!(result.outcome, Outcome::Completed);
    assert_eq!(worker.exited(), None);
}

#[tokio::test]
async fn a_turn_whose_end_is_refused_is_not_called_lost() {
    let line = Line::start().await;
    let worker = line.worker(&[]);
    let turn = NewTurn::user("Count.").agent(name("ada")).sampling(exactly(300));
    let turns = line.enqueue(vec![turn]).await;
    line.until_all_have_tokens(&turns).await;
    // Somebody's data lies where the agent's history belongs.
    let agent = AgentId::named(&name("default"), &name("ada"));
    let transcript = Keys::new(&name("default"), 0).transcript(&agent);
    Operator::new(&line).await.tell(&["SET", &transcript, "x"]).await;

    let is_told = || told(&worker, "the turn could not be ended") > 0;
    until("the log says that the turn was not ended", &worker, is_told).await;
    assert_eq!(worker.metric("turnmill_turns_fenced_total", &[]), 0.0);
    assert_eq!(told(&worker, "the turn is not ours any more"), 0, "{}", worker.log());
}
