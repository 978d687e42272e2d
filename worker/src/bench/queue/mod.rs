//! What the queue alone does: enqueueing, whole cycles with an engine that does nothing, waiting times, token frames.
//! Beside them raw pipelined `XADD` of the same payload in the same run: what this Redis could do at best.
//!
//! Everything goes through the scripts and the [`RedisBroker`] that workers use, in a queue of its own that is deleted
//! afterwards.

mod cycle;
mod enqueue;
mod frames;

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use turnmill_redis::{Fault, RedisUrl, Server};
use turnmill_schema::keys::{Keys, Queue};
use turnmill_schema::{AgentName, Message, Name, Role, TenantName, Turn};
use uuid::Uuid;

use crate::broker::BrokerError;
use crate::broker::redis::{BrokerSettings, RedisBroker};

/// Turns in one script call.
const BATCH_TURNS: usize = 200;
/// How long a command may take: a call of two hundred large turns waits behind others of its kind.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Turns of each agent, one after the other.
const TURNS_AN_AGENT: usize = 10;
/// Turns a worker runs at once.
const ROOM: usize = 64;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where Redis is.
    pub redis_url: RedisUrl,
    /// Turns to enqueue and to run.
    pub turns: usize,
    /// Bytes of each turn's message.
    pub payload: usize,
    /// Workers, each with connections of its own.
    pub workers: usize,
}

/// How long a turn waits from enqueue to lease.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// Half of them wait no longer.
    pub p50: f64,
    /// All but one in a hundred wait no longer.
    pub p99: f64,
}

/// The figures.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Raw pipelined XADD of the payload.
    pub xadd_per_s: f64,
    /// Turns enqueued, two hundred to a call.
    pub enqueue_batched_per_s: f64,
    /// Turns enqueued, one to a call, by as many producers as there are workers.
    pub enqueue_single_per_s: f64,
    /// Turns enqueued in batches and, at the same time, leased, answered with one delta and finished.
    pub cycle_per_s: f64,
    /// From enqueue to lease, in milliseconds, at half of `cycle_per_s`.
    pub claim_latency_ms: Latency,
    /// Deltas appended.
    pub frames_per_s: f64,
    /// CPU time of Redis for a cycle, in microseconds.
    pub redis_cpu_us_per_cycle: f64,
}

/// Why it could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The queue.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The server.
    #[error(transparent)]
    Server(#[from] Fault),
    /// A turn that is not there was leased, or one that is there was not.
    #[error("the queue lost {0} turns: a bug; please report it")]
    Lost(usize),
}

/// The bench's queue and how to reach it.
#[derive(Clone)]
struct Bench {
    options: Options,
    queue: Queue,
}

/// Measures everything; `told` hears what is measured just now.
pub async fn run(options: &Options, told: &dyn Fn(&'static str)) -> Result<Report, BenchError> {
    let name = format!("bench-{}", Uuid::now_v7());
    let queue = Queue::single(Name::new(name).expect("a hexadecimal name is one"));
    let bench = Bench { options: options.clone(), queue };
    // Says in our words what is wrong with the server, if anything.
    bench.broker("check").await?;
    let report = bench.measure(told).await;
    bench.clear().await?;
    report
}

impl Bench {
    async fn measure(&self, told: &dyn Fn(&'static str)) -> Result<Report, BenchError> {
        told("raw XADD");
        let xadd_per_s = enqueue::raw(self).await?;
        told("enqueueing in batches");
        let enqueue_batched_per_s = enqueue::batched(self).await?;
        self.clear().await?;
        told("enqueueing one by one");
        let enqueue_single_per_s = enqueue::single(self).await?;
        self.clear().await?;
        told("whole cycles");
        let cycle = cycle::full(self).await?;
        self.clear().await?;
        told("waiting times at half load");
        let claim_latency_ms = cycle::half_load(self, cycle.per_s / 2.0).await?;
        self.clear().await?;
        told("token frames");
        let frames_per_s = frames::append(self).await?;
        Ok(Report {
            xadd_per_s,
            enqueue_batched_per_s,
            enqueue_single_per_s,
            cycle_per_s: cycle.per_s,
            claim_latency_ms,
            frames_per_s,
            redis_cpu_us_per_cycle: cycle.redis_cpu_us,
        })
    }

    fn keys(&self) -> Keys {
        self.queue.keys(0)
    }

    /// Connections of one process.
    fn server(&self) -> Result<Arc<Server>, BenchError> {
        Ok(Server::new(&self.options.redis_url.clone().into(), RESPONSE_TIMEOUT)?)
    }

    /// A worker's way to the queue, with the settings a worker has by default.
    async fn broker(&self, worker: &str) -> Result<RedisBroker, BenchError> {
        let settings = BrokerSettings {
            redis: self.options.redis_url.clone().into(),
            queue: self.queue.name.clone(),
            shards: NonZeroU16::MIN,
            worker: worker.to_owned(),
            lease_ms: 15_000,
            max_attempts: 5,
            result_ttl_ms: 3_600_000,
            outcome_ttl_ms: 86_400_000,
            keep_stream_ms: 10_000,
            retained_bytes: 256 << 20,
            dead_bytes: 256 << 20,
            tenant_max_running: 0,
            max_continues: 4,
        };
        Ok(RedisBroker::connect(settings).await?)
    }

    /// Turn number `i`: ten in a row are of different agents, and every agent has ten.
    fn turn(&self, i: usize) -> Turn {
        let agents = self.options.turns.div_ceil(TURNS_AN_AGENT).max(1);
        let tenant = TenantName::new("bench").expect("a name");
        let agent = AgentName::new(format!("a{}", i % agents)).expect("a name");
        let id = self.queue.new_turn_id(&tenant, Some(&agent));
        let messages = vec![Message::new(Role::User, "x".repeat(self.options.payload))];
        Turn { agent: Some(agent), ..Turn::new(id, tenant, messages) }
    }

    /// Deletes the queue.
    async fn clear(&self) -> Result<(), BenchError> {
        let pattern = format!("{}*", self.keys().open().trim_end_matches("open"));
        Ok(self.server()?.delete_matching(escape(&pattern)).await?)
    }
}

/// The hash tag's braces mean themselves in patterns; nothing else of a key means anything there.
fn escape(pattern: &str) -> String {
    pattern.replace('[', "\\[")
}

fn per_second(count: usize, began: Instant) -> f64 {
    count as f64 / began.elapsed().as_secs_f64()
}
