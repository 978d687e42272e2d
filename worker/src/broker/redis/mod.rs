//! The queue in Redis Streams: one file for each step of the protocol.
//!
//! Invariants:
//! * what must be atomic is a script of `turnmill_schema::scripts`; the rest are single commands;
//! * every ticket this worker was given and has not forgotten is in `held`; tickets pending to this worker that
//!   are not in `held` are those whose reply was lost, and `read` claims them first;
//! * a future that is dropped half way leaves nothing behind that the next call would not find.

mod append;
mod batch;
mod claim;
mod collector;
mod connect;
mod facts;
mod finish;
mod held;
mod lease;
mod manifests;
mod notices;
mod read;
mod registry;
mod renew;
mod steps;
mod sweep;
mod waiting;

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use turnmill_schema::keys::{Keys, Queue};
use turnmill_schema::{DeadReason, Delta, Manifest, Name, Priority, TurnId, WorkerStatus};

use super::{
    Broker, BrokerError, Claim, Ending, Lease, Orders, PriorityCounts, QueueCounts, Renewal, Retry, Ticket,
};
use crate::config::{RedisEndpoint, RedisUrl};

use batch::{Batch, BatchContext};
pub use collector::{Collector, HoldError};
use connect::Server;
pub use connect::check_server;
pub use facts::ServerFacts;
use held::Held;
pub use manifests::RedisReferences;
use notices::Notices;
use read::Reader;
pub use steps::Scripts;
use steps::Steps;

/// What a worker must know of its queue.
#[derive(Clone, Debug)]
pub struct BrokerSettings {
    /// Where Redis is.
    pub redis: RedisEndpoint,
    /// The queue to serve.
    pub queue: Name,
    /// How many shards the queue was created with.
    pub shards: NonZeroU16,
    /// This worker's name, unlike that of any other worker.
    pub worker: String,
    /// A worker silent for this long loses its turns.
    pub lease_ms: u64,
    /// Attempts in a row without a new token after which a turn fails.
    pub max_attempts: u32,
    /// How long an ended turn's result stream is kept.
    pub result_ttl_ms: u64,
    /// How long an ended turn's outcome and its idempotency key are kept.
    pub outcome_ttl_ms: u64,
    /// How long the result stream of an ended turn stays whose whole reply is kept with its outcome.
    pub keep_stream_ms: u64,
    /// What ended turns may take in a shard, roughly, in bytes; beyond it the oldest are forgotten early.
    pub retained_bytes: u64,
    /// Turns of one tenant that may run at once in a shard; 0: no limit.
    pub tenant_max_running: u64,
    /// Turns in a row that a worker may take of an agent while other agents wait.
    pub max_continues: u32,
}

/// A ready stream.
#[derive(Debug)]
struct ReadyStream {
    key: String,
    shard: u16,
    priority: Priority,
}

/// The steps of one shard that many turns take at about the same time.
#[derive(Debug)]
struct Batches {
    lease: Batch,
    finish: Batch,
    requeue: Batch,
}

/// The [`Broker`] over Redis.
#[derive(Debug)]
pub struct RedisBroker {
    settings: BrokerSettings,
    queue: Queue,
    /// Most urgent priority first.
    streams: Vec<ReadyStream>,
    server: Arc<Server>,
    steps: Arc<Steps>,
    /// By shard.
    batches: Vec<Batches>,
    reader: tokio::sync::Mutex<Reader>,
    notices: tokio::sync::Mutex<Notices>,
    held: Arc<Held>,
}

impl RedisBroker {
    /// Connects, checks the server (see [`check_server`]) and creates the queue's consumer groups where missing.
    pub async fn connect(settings: BrokerSettings) -> Result<Self, BrokerError> {
        Self::connect_with(settings, Scripts::default()).await
    }

    /// The same with other scripts than the protocol's: for tests that show what a check is for.
    pub async fn connect_with(settings: BrokerSettings, scripts: Scripts) -> Result<Self, BrokerError> {
        check_server(&settings.redis).await?;
        let queue = Queue { name: settings.queue.clone(), shards: settings.shards };
        let streams = Priority::ALL.into_iter().flat_map(|priority| {
            queue.all_keys().map(move |keys| ReadyStream {
                key: keys.ready(priority),
                shard: keys.shard(),
                priority,
            })
        });
        let streams = streams.collect();
        let server = Arc::new(Server::new(&settings.redis)?);
        let steps = Arc::new(Steps::from(scripts));
        let held = Arc::new(Held::default());
        let context = |keys, args: &[u64], step| BatchContext {
            server: Arc::clone(&server),
            held: Arc::clone(&held),
            steps: Arc::clone(&steps),
            keys,
            args: batch_args(&settings.worker, args),
            step,
        };
        let s = &settings;
        let (attempts, result, outcome) = (u64::from(s.max_attempts), s.result_ttl_ms, s.outcome_ttl_ms);
        let batches = queue.all_keys().map(|keys| Batches {
            lease: Batch::start(context(
                keys.clone(),
                &[attempts, result, outcome, s.tenant_max_running],
                |steps| &steps.lease,
            )),
            finish: Batch::start(context(keys.clone(), &[result, outcome, s.keep_stream_ms], |steps| {
                &steps.finish
            })),
            requeue: Batch::start(context(keys, &[attempts, result, outcome], |steps| &steps.requeue)),
        });
        let batches = batches.collect();
        let (reader, notices) = (tokio::sync::Mutex::default(), tokio::sync::Mutex::default());
        let broker = Self { streams, server, steps, batches, reader, notices, held, queue, settings };
        broker.create_groups().await?;
        broker.set_clock().await?;
        Ok(broker)
    }

    fn keys(&self, ticket: &Ticket) -> Keys {
        self.queue.keys(ticket.shard)
    }

    fn batches(&self, shard: u16) -> Result<&Batches, BrokerError> {
        self.batches.get(usize::from(shard)).ok_or_else(|| {
            let shards = self.settings.shards;
            BrokerError::Unsuitable(format!(
                "shard {shard} is not one of the queue's {shards}; correct shards"
            ))
        })
    }

    fn fenced(&self, lease: &Lease) -> BrokerError {
        self.held.forget(lease);
        BrokerError::Fenced { turn: lease.turn }
    }
}

fn batch_args(worker: &str, numbers: &[u64]) -> Vec<Vec<u8>> {
    let numbers = numbers.iter().map(u64::to_string);
    std::iter::once(worker.to_owned()).chain(numbers).map(String::into_bytes).collect()
}

impl Broker for RedisBroker {
    async fn read(&self, room: usize) -> Result<Vec<Ticket>, BrokerError> {
        self.read_tickets(room).await
    }

    async fn reclaim(&self, room: usize) -> Result<Vec<Ticket>, BrokerError> {
        self.reclaim_tickets(room).await
    }

    async fn lease(&self, ticket: &Ticket) -> Result<Option<Claim>, BrokerError> {
        self.lease_head(ticket).await
    }

    async fn renew(&self, held: &[Lease], unleased: &[Ticket]) -> Result<Renewal, BrokerError> {
        self.renew_all(held, unleased).await
    }

    async fn append(&self, lease: &Lease, delta: &Delta) -> Result<(), BrokerError> {
        self.append_delta(lease, delta).await
    }

    async fn next_cancelled(&self) -> Result<TurnId, BrokerError> {
        self.wait_for_notice().await
    }

    async fn finish(&self, lease: &Lease, ending: &Ending) -> Result<Option<Ticket>, BrokerError> {
        self.end_turn(lease, ending).await
    }

    async fn requeue(&self, lease: &Lease, manifest: Option<&Manifest>) -> Result<(), BrokerError> {
        self.requeue_turn(lease, manifest).await
    }

    async fn advance(&self, lease: &Lease, manifest: &Manifest) -> Result<(), BrokerError> {
        self.advance_manifest(lease, manifest).await
    }

    async fn retry(
        &self,
        lease: &Lease,
        delay: Duration,
        reason: DeadReason,
        text: &str,
    ) -> Result<Retry, BrokerError> {
        self.retry_later(lease, delay, reason, text).await
    }

    async fn return_ticket(&self, ticket: &Ticket) -> Result<(), BrokerError> {
        self.return_unleased(ticket).await
    }

    async fn sweep(&self) -> Result<(), BrokerError> {
        self.sweep_shards().await
    }

    async fn counts(&self) -> Result<QueueCounts, BrokerError> {
        self.count_work().await
    }

    async fn register(&self, status: &WorkerStatus) -> Result<Orders, BrokerError> {
        self.enter(status).await
    }
}
