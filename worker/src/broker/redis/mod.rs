//! The queue in Redis Streams: one file for each step of the protocol.
//!
//! Invariants:
//! * what must be atomic is a script of `turnmill_schema::scripts`; the rest are single commands;
//! * every token this worker was handed and did not give up is in `held`; tokens pending to this worker that
//!   are not in `held` are those whose reply was lost, and `read` claims them first;
//! * a future that is dropped half way leaves nothing behind that the next call would not find.

mod append;
mod claim;
mod connect;
mod facts;
mod finish;
mod heartbeat;
mod held;
mod lease;
mod read;
mod steps;
mod sweep;

use std::num::NonZeroU16;

use turnmill_schema::keys::{Keys, Queue};
use turnmill_schema::{Delta, End, Name, Priority, TranscriptEntry};

use super::{Beat, Broker, BrokerError, Claim, Lease, QueueCounts, ReadyToken};
use crate::config::RedisUrl;

use connect::Server;
pub use connect::check_server;
pub use facts::ServerFacts;
use held::Held;
use read::Reader;

/// What a worker must know of its queue.
#[derive(Clone, Debug)]
pub struct BrokerSettings {
    /// Where Redis is.
    pub url: RedisUrl,
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
}

/// A ready stream.
#[derive(Debug)]
struct ReadyStream {
    key: String,
    shard: u16,
    priority: Priority,
}

/// The [`Broker`] over Redis.
#[derive(Debug)]
pub struct RedisBroker {
    settings: BrokerSettings,
    queue: Queue,
    /// Most urgent priority first.
    streams: Vec<ReadyStream>,
    server: Server,
    reader: tokio::sync::Mutex<Reader>,
    held: Held,
}

impl RedisBroker {
    /// Connects, checks the server (see [`check_server`]) and creates the queue's consumer groups where missing.
    pub async fn connect(settings: BrokerSettings) -> Result<Self, BrokerError> {
        check_server(&settings.url).await?;
        let queue = Queue { name: settings.queue.clone(), shards: settings.shards };
        let streams = Priority::ALL.into_iter().flat_map(|priority| {
            queue.all_keys().map(move |keys| ReadyStream {
                key: keys.ready(priority),
                shard: keys.shard(),
                priority,
            })
        });
        let broker = Self {
            streams: streams.collect(),
            server: Server::new(&settings.url)?,
            reader: tokio::sync::Mutex::default(),
            held: Held::default(),
            queue,
            settings,
        };
        broker.create_groups().await?;
        Ok(broker)
    }

    fn keys(&self, token: &ReadyToken) -> Keys {
        self.queue.keys(token.shard)
    }

    fn fenced(&self, lease: &Lease) -> BrokerError {
        self.held.give_up(&lease.token, lease.turn);
        BrokerError::Fenced { turn: lease.turn }
    }
}

impl Broker for RedisBroker {
    async fn read(&self, room: usize) -> Result<Vec<ReadyToken>, BrokerError> {
        self.read_tokens(room).await
    }

    async fn reclaim(&self, room: usize) -> Result<Vec<ReadyToken>, BrokerError> {
        self.reclaim_tokens(room).await
    }

    async fn lease(&self, token: &ReadyToken) -> Result<Option<Claim>, BrokerError> {
        self.lease_head(token).await
    }

    async fn heartbeat(&self, held: &[Lease], unleased: &[ReadyToken]) -> Result<Beat, BrokerError> {
        self.beat(held, unleased).await
    }

    async fn append(&self, lease: &Lease, delta: &Delta) -> Result<(), BrokerError> {
        self.append_delta(lease, delta).await
    }

    async fn finish(
        &self,
        lease: &Lease,
        published: u32,
        end: &End,
        entry: Option<&TranscriptEntry>,
    ) -> Result<(), BrokerError> {
        self.end_turn(lease, published, end, entry).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), BrokerError> {
        self.give_back(lease).await
    }

    async fn put_back(&self, token: &ReadyToken) -> Result<(), BrokerError> {
        self.hand_back(token).await
    }

    async fn sweep(&self) -> Result<(), BrokerError> {
        self.sweep_shards().await
    }

    async fn counts(&self) -> Result<QueueCounts, BrokerError> {
        self.count_work().await
    }
}
