//! A queue in a Redis of its own, seen as producers, readers and operators see it.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId, StreamRangeReply};
use redis::{FromRedisValue, RedisResult, Value};
use turnmill_schema::envelope::{decode, encode_turn};
use turnmill_schema::keys::{BacklogEntry, FIELD_EVENT, FIELD_REPLY, GROUP, Keys, Queue};
use turnmill_schema::scripts::{self, AgentAction, Call, DepthLimits};
use turnmill_schema::{AgentId, Delta, Event, Name, Outcome, Priority, Turn, TurnId};
use turnmill_worker::broker::memory::{Acted, AgentState, Cancelled, DeadLetter, QueueFull};
use turnmill_worker::broker::redis::{BrokerSettings, RedisBroker, Scripts};
use turnmill_worker::config::RedisUrl;

use crate::broker_conformance::{LEASE_MS, PATIENCE, TestQueue, WorkerLimits};
use crate::redis_server::RedisServer;

/// How long these queues keep result streams.
pub const RESULT_TTL_MS: u64 = 60_000;
/// How long these queues keep result streams of short replies.
pub const KEEP_STREAM_MS: u64 = 60_000;
/// How long these queues keep outcomes.
pub const OUTCOME_TTL_MS: u64 = 120_000;
/// What ended turns may take in these queues.
pub const RETAINED_BYTES: u64 = 100_000_000;

/// A queue of one shard in a Redis of its own.
pub struct RedisQueue {
    /// The server.
    pub server: RedisServer,
    queue: Queue,
    scripts: Scripts,
}

impl RedisQueue {
    /// A new one.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more command-line options of the server.
    pub fn start_with(options: &[&str]) -> Self {
        let queue = Queue::single(Name::new("q").expect("a name"));
        Self { server: RedisServer::start_with(options), queue, scripts: Scripts::default() }
    }

    /// The same queue, whose workers take their steps with other scripts than the protocol's.
    pub fn with_scripts(self, scripts: Scripts) -> Self {
        Self { scripts, ..self }
    }

    /// Its key names.
    pub fn keys(&self) -> Keys {
        self.queue.keys(0)
    }

    /// A worker's settings.
    pub fn settings(&self, name: &str, limits: WorkerLimits) -> BrokerSettings {
        BrokerSettings {
            redis: RedisUrl::from(self.server.url()).into(),
            queue: self.queue.name.clone(),
            shards: NonZeroU16::MIN,
            worker: name.to_owned(),
            lease_ms: LEASE_MS,
            max_attempts: limits.max_attempts,
            tenant_max_running: limits.tenant_max_running,
            max_continues: limits.max_continues,
            result_ttl_ms: RESULT_TTL_MS,
            outcome_ttl_ms: OUTCOME_TTL_MS,
            keep_stream_ms: KEEP_STREAM_MS,
            retained_bytes: RETAINED_BYTES,
        }
    }

    /// A connection of its own.
    pub async fn raw(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.server.url()).expect("a URL");
        client.get_multiplexed_async_connection().await.expect("the server answers")
    }

    /// One command.
    pub async fn command<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut self.raw().await).await.expect("the command works")
    }

    /// One call of a script.
    pub async fn run<T: FromRedisValue>(&self, script: &str, call: &Call) -> RedisResult<T> {
        let script = redis::Script::new(script);
        let mut invocation = script.prepare_invoke();
        invocation.key(&call.keys[..]).arg(&call.args[..]);
        invocation.invoke_async(&mut self.raw().await).await
    }

    /// Enqueues turns; an error where Redis refuses.
    pub async fn try_enqueue(
        &self,
        turns: &[Turn],
        limits: DepthLimits,
    ) -> RedisResult<Result<Vec<TurnId>, QueueFull>> {
        let stored = turns.iter().map(|turn| (turn, encode_turn(turn).expect("turns fit")));
        let call = scripts::enqueue_call(&self.keys(), limits, stored);
        let reply: Vec<Value> = self.run(scripts::ENQUEUE, &call).await?;
        let text: Vec<String> = reply.into_iter().map(read).collect();
        let number = |i: usize| text[i].parse().expect("a number");
        if text[0] == "full" {
            let tenant = Some(text[1].clone()).filter(|tenant| !tenant.is_empty());
            let (open, limit, retry_after_ms) = (number(2), number(3), number(4));
            return Ok(Err(QueueFull { tenant, open, limit, retry_after_ms }));
        }
        Ok(Ok(text[1..].chunks(2).map(|pair| pair[0].parse().expect("a turn id")).collect()))
    }

    /// Every key with its dumped value.
    pub async fn dump(&self) -> BTreeMap<String, Option<Vec<u8>>> {
        let keys: Vec<String> = self.command(&["KEYS", "*"]).await;
        let mut dump = BTreeMap::new();
        for key in keys {
            let value = self.command(&["DUMP", &key]).await;
            dump.insert(key, value);
        }
        dump
    }

    /// Waits until a ticket of `priority` has been idle for a lease.
    pub async fn until_idle(&self, priority: Priority) {
        let patience = Instant::now() + PATIENCE;
        let ready = self.keys().ready(priority);
        loop {
            let lease_ms = LEASE_MS.to_string();
            let idle: Vec<(String, String, u64, u64)> =
                self.command(&["XPENDING", &ready, GROUP, "IDLE", &lease_ms, "-", "+", "1"]).await;
            if !idle.is_empty() {
                return;
            }
            assert!(Instant::now() < patience, "the ticket never idled");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn read<T: FromRedisValue>(value: Value) -> T {
    redis::from_redis_value(value).expect("the reply is of its kind")
}

fn outcome_of(name: &str) -> Outcome {
    let all = [Outcome::Completed, Outcome::Failed, Outcome::Cancelled, Outcome::Expired];
    all.into_iter().find(|outcome| outcome.as_str() == name).expect("an outcome")
}

impl TestQueue for RedisQueue {
    type Broker = RedisBroker;

    async fn worker_with(&self, name: &str, limits: WorkerLimits) -> RedisBroker {
        RedisBroker::connect_with(self.settings(name, limits), self.scripts.clone())
            .await
            .expect("the server is suitable")
    }

    async fn enqueue(&self, turns: &[Turn], limits: DepthLimits) -> Result<Vec<TurnId>, QueueFull> {
        self.try_enqueue(turns, limits).await.expect("the script answers")
    }

    async fn events(&self, turn: TurnId) -> Vec<Event> {
        let entries: StreamRangeReply = self.command(&["XRANGE", &self.keys().result(turn), "-", "+"]).await;
        let read = |entry: &StreamId| {
            let event: Vec<u8> = entry.get(FIELD_EVENT).expect("every entry has an event");
            decode(&event).expect("events can be read")
        };
        entries.ids.iter().map(read).collect()
    }

    async fn short_reply(&self, turn: TurnId) -> Option<Delta> {
        let reply: Option<Vec<u8>> = self.command(&["HGET", &self.keys().turn(turn), FIELD_REPLY]).await;
        reply.filter(|reply| !reply.is_empty()).map(|reply| decode(&reply).expect("replies can be read"))
    }

    async fn cancel(&self, turn: TurnId) -> Cancelled {
        let keys = self.keys();
        let found: (Option<String>, Option<String>) =
            self.command(&["HMGET", &keys.turn(turn), "agent", "entry"]).await;
        let (Some(agent), Some(entry)) = found else { return Cancelled::Unknown };
        let agent = AgentId::from_wire(agent);
        let entry = BacklogEntry::parse(&entry).expect("an entry");
        let mut call = Call::new(&keys);
        call.keys(scripts::entry_keys(&keys, &agent, &entry));
        call.text(RESULT_TTL_MS).text(OUTCOME_TTL_MS).text(keys.notices()).text(&agent).text(&entry);
        let reply: Vec<Vec<String>> = self.run(scripts::CANCEL, &call).await.expect("the script answers");
        match reply[0][0].as_str() {
            "cancelled" => Cancelled::Now,
            "ended" => Cancelled::Ended(outcome_of(&reply[0][1])),
            "unknown" => Cancelled::Unknown,
            _ => panic!("cancel answered {reply:?}"),
        }
    }

    async fn act(&self, agent: &AgentId, action: AgentAction) -> Acted {
        let keys = self.keys();
        let mut head = None;
        loop {
            let call = scripts::agent_call(&keys, agent, action, head.as_ref());
            let reply: Vec<String> = self.run(scripts::AGENT, &call).await.expect("the script answers");
            match reply[0].as_str() {
                "ok" => return Acted::State(AgentState::from_name(&reply[1]).expect("a state")),
                "unknown" => return Acted::Unknown,
                "busy" => return Acted::Busy,
                "head" => head = BacklogEntry::parse(&reply[1]),
                _ => panic!("agent answered {reply:?}"),
            }
        }
    }

    async fn pause(&self, paused: bool) {
        let key = self.keys().paused();
        let _: Value =
            if paused { self.command(&["SET", &key, "1"]).await } else { self.command(&["DEL", &key]).await };
    }

    async fn dead_letters(&self) -> Vec<DeadLetter> {
        let entries: StreamRangeReply = self.command(&["XRANGE", &self.keys().dead(), "-", "+"]).await;
        let read = |entry: StreamId| {
            let text = |field| entry.get::<String>(field).expect("dead letters have their fields");
            DeadLetter {
                turn: text("turn").parse().expect("a turn id"),
                agent: AgentId::from_wire(text("agent")),
                reason: text("reason"),
                attempts: text("attempts").parse().expect("a number"),
            }
        };
        entries.ids.into_iter().map(read).collect()
    }

    async fn now_ms(&self) -> u64 {
        let (seconds, micros): (u64, u64) = self.command(&["TIME"]).await;
        seconds * 1000 + micros / 1000
    }
}
