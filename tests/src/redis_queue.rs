//! A queue in a Redis of its own, seen as producers, readers and operators see it.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId, StreamRangeReply};
use redis::{FromRedisValue, Pipeline, Value};
use turnmill_redis::steps::{
    ActOnAgent, AgentActed, AgentAction, Cancel, DepthLimits, Enqueue, EnqueueTurn, Enqueued, Pause, Unrun,
    UnrunLimits,
};
use turnmill_redis::{Fault, RESPONSE_TIMEOUT, RedisUrl, Server, Step};
use turnmill_schema::envelope::{decode, encode_turn};
use turnmill_schema::keys::{BacklogEntry, FIELD_EVENT, FIELD_REPLY, GROUP, Keys, Queue};
use turnmill_schema::{AgentId, Delta, Event, Name, Outcome, Priority, Turn, TurnId};
use turnmill_worker::broker::Holdings;
use turnmill_worker::broker::redis::{BrokerSettings, RedisBroker};

use crate::broker_conformance::{LEASE_MS, PATIENCE, TestQueue, WorkerLimits};
use crate::leftovers;
use crate::memory_broker::{Acted, AfterTurn, AgentState, Cancelled, DeadLetter, NotEnqueued, QueueFull};
use crate::redis_link::RedisLink;
use crate::redis_server::RedisServer;

/// How long these queues keep result streams.
pub const RESULT_TTL_MS: u64 = 60_000;
/// How long these queues keep result streams of short replies.
pub const KEEP_STREAM_MS: u64 = 60_000;
/// How long these queues keep outcomes.
pub const OUTCOME_TTL_MS: u64 = 120_000;
/// What ended turns may take in these queues; dead letters as well.
pub const RETAINED_BYTES: u64 = 100_000_000;

/// A queue of one shard in a Redis of its own.
pub struct RedisQueue {
    /// The server.
    pub server: RedisServer,
    /// The test's own way to it.
    link: RedisLink,
    /// The ways to it of producers and operators.
    steps: Arc<Server>,
    queue: Queue,
    /// Scripts that are run in place of the protocol's, by the steps' names.
    scripts: Vec<(&'static str, String)>,
    /// Of each worker that was made.
    holdings: Mutex<Vec<Holdings>>,
    /// Somebody broke its keys on purpose.
    is_broken: bool,
}

impl RedisQueue {
    /// A new one.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more command-line options of the server.
    pub fn start_with(options: &[&str]) -> Self {
        let queue = Queue::single(Name::new("q").expect("a name"));
        let server = RedisServer::start_with(options);
        let endpoint = RedisUrl::from(server.url()).into();
        let steps = Server::new(&endpoint, RESPONSE_TIMEOUT).expect("a URL of ours is usable");
        let link = RedisLink::new(server.url());
        let (scripts, holdings) = Default::default();
        Self { server, link, steps, queue, scripts, holdings, is_broken: false }
    }

    /// The same queue, in which everybody takes these steps with other scripts than the protocol's.
    pub fn with_scripts(mut self, scripts: Vec<(&'static str, String)>) -> Self {
        for (name, text) in &scripts {
            self.steps.replace_script(name, text);
        }
        self.scripts = scripts;
        self.broken()
    }

    /// The same queue, in which somebody breaks keys or entries: what is left over says nothing.
    pub fn broken(mut self) -> Self {
        self.is_broken = true;
        self
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
            dead_bytes: RETAINED_BYTES,
        }
    }

    /// A connection of its own.
    pub async fn raw(&self) -> MultiplexedConnection {
        self.link.connect().await
    }

    /// One command.
    pub async fn command<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.link.command(words).await
    }

    /// The answers to commands, in their order and over one round trip.
    pub async fn ask(&self, commands: &Pipeline) -> Vec<Value> {
        self.link.ask(commands).await
    }

    /// A step as a producer or an operator takes it.
    pub async fn run<S: Step>(&self, step: &S) -> S::Reply {
        self.steps.run(&self.keys(), step).await.expect("the step is answered")
    }

    /// Enqueues turns; an error if Redis refuses.
    pub async fn try_enqueue(
        &self,
        turns: &[Turn],
        limits: DepthLimits,
    ) -> Result<Result<Vec<TurnId>, NotEnqueued>, Fault> {
        self.try_enqueue_after(&turns.iter().map(|turn| (turn, None)).collect::<Vec<_>>(), limits).await
    }

    async fn try_enqueue_after(
        &self,
        turns: &[AfterTurn<'_>],
        limits: DepthLimits,
    ) -> Result<Result<Vec<TurnId>, NotEnqueued>, Fault> {
        let stored = turns.iter().map(|(turn, after)| {
            let stored = encode_turn(turn).expect("turns fit");
            EnqueueTurn { after: *after, ..EnqueueTurn::new(turn, stored) }
        });
        let step = Enqueue { limits, turns: stored.collect() };
        Ok(match self.steps.run(&self.keys(), &step).await? {
            Enqueued::Done { known } => Ok(step.ids(&known).expect("places are those of the turns")),
            Enqueued::Conflict { place, first } => Err(NotEnqueued::Conflict { place, first }),
            Enqueued::Stale { place, head } => Err(NotEnqueued::Stale { place, head }),
            Enqueued::Full { tenant, open, limit, retry_after } => {
                let retry_after_ms = retry_after.as_millis() as u64;
                Err(QueueFull { tenant, open, limit, retry_after_ms }.into())
            }
        })
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

/// The events of a result stream.
pub fn events_of(stream: StreamRangeReply) -> Vec<Event> {
    let read = |entry: &StreamId| {
        let event: Vec<u8> = entry.get(FIELD_EVENT).expect("every entry has an event");
        decode(&event).expect("events can be read")
    };
    stream.ids.iter().map(read).collect()
}

/// The reply that a turn's key keeps.
pub fn reply_of(stored: Option<Vec<u8>>) -> Option<Delta> {
    stored.filter(|reply| !reply.is_empty()).map(|reply| decode(&reply).expect("replies can be read"))
}

/// The dead letters of their stream.
pub fn dead_letters_of(stream: StreamRangeReply) -> Vec<DeadLetter> {
    let read = |entry: StreamId| {
        let text = |field| entry.get::<String>(field).expect("dead letters have their fields");
        DeadLetter {
            turn: text("turn").parse().expect("a turn id"),
            agent: AgentId::from_wire(text("agent")),
            reason: text("reason"),
            attempts: text("attempts").parse().expect("a number"),
        }
    };
    stream.ids.into_iter().map(read).collect()
}

fn outcome_of(name: &str) -> Outcome {
    let all = [Outcome::Completed, Outcome::Failed, Outcome::Cancelled, Outcome::Expired];
    all.into_iter().find(|outcome| outcome.as_str() == name).expect("an outcome")
}

impl TestQueue for RedisQueue {
    type Broker = RedisBroker;

    async fn worker_with(&self, name: &str, limits: WorkerLimits) -> RedisBroker {
        let settings = self.settings(name, limits);
        let server = Server::new(&settings.redis, RESPONSE_TIMEOUT).expect("a URL of ours is usable");
        for (name, text) in &self.scripts {
            server.replace_script(name, text);
        }
        let broker = RedisBroker::over(server, settings).await.expect("the server is suitable");
        self.holdings.lock().expect("not poisoned").push(broker.holdings().clone());
        broker
    }

    async fn enqueue_after(
        &self,
        turns: &[AfterTurn<'_>],
        limits: DepthLimits,
    ) -> Result<Vec<TurnId>, NotEnqueued> {
        self.try_enqueue_after(turns, limits).await.expect("the step is answered")
    }

    async fn events(&self, turn: TurnId) -> Vec<Event> {
        events_of(self.command(&["XRANGE", &self.keys().result(turn), "-", "+"]).await)
    }

    async fn short_reply(&self, turn: TurnId) -> Option<Delta> {
        reply_of(self.command(&["HGET", &self.keys().turn(turn), FIELD_REPLY]).await)
    }

    async fn cancel(&self, turn: TurnId) -> Cancelled {
        let keys = self.keys();
        let found: (Option<String>, Option<String>) =
            self.command(&["HMGET", &keys.turn(turn), "agent", "entry"]).await;
        let (Some(agent), Some(entry)) = found else { return Cancelled::Unknown };
        let entry = BacklogEntry::parse(&entry).expect("an entry");
        let cancel = Cancel { agent: AgentId::from_wire(agent), entry };
        let limits = UnrunLimits { result_ttl_ms: RESULT_TTL_MS, outcome_ttl_ms: OUTCOME_TTL_MS };
        let answer =
            self.steps.run_items(&keys, &limits, [&cancel]).await.expect("the step is answered").pop();
        match answer.expect("one item has one answer").expect("the turn can be read") {
            Unrun::Done => Cancelled::Now,
            Unrun::Ended(outcome) => Cancelled::Ended(outcome_of(&outcome)),
            Unrun::Unknown => Cancelled::Unknown,
            Unrun::Early => panic!("nobody need wait to cancel a turn"),
        }
    }

    async fn act(&self, agent: &AgentId, action: AgentAction) -> Acted {
        let mut head = None;
        loop {
            match self.run(&ActOnAgent { agent, action, head: head.as_ref() }).await {
                AgentActed::Done(state) => {
                    return Acted::State(AgentState::from_name(&state).expect("a state"));
                }
                AgentActed::Unknown => return Acted::Unknown,
                AgentActed::Busy => return Acted::Busy,
                AgentActed::Head(now) => head = now,
                AgentActed::Changed => panic!("nobody changes histories in a test of brokers"),
            }
        }
    }

    async fn pause(&self, paused: bool) {
        self.run(&Pause { paused }).await;
    }

    async fn dead_letters(&self) -> Vec<DeadLetter> {
        dead_letters_of(self.command(&["XRANGE", &self.keys().dead(), "-", "+"]).await)
    }

    async fn now_ms(&self) -> u64 {
        let (seconds, micros): (u64, u64) = self.command(&["TIME"]).await;
        seconds * 1000 + micros / 1000
    }
}

impl Drop for RedisQueue {
    fn drop(&mut self) {
        if std::thread::panicking() || self.is_broken {
            return;
        }
        for holdings in self.holdings.lock().expect("not poisoned").iter() {
            assert!(holdings.is_empty(), "{} tickets or leases are left in a worker's hands", holdings.len());
        }
        leftovers::check(&self.server.url(), &self.keys());
    }
}
