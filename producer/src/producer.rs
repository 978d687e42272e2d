//! The producer: a queue, a tenant and a way to Redis.

use turnmill_schema::keys::Queue;
use turnmill_schema::{Turn, TurnId};

use crate::connection::Connection;
use crate::error::ProducerError;
use crate::new_turn::NewTurn;
use crate::payload::PayloadStore;
use crate::redis_url;
use crate::settings::ProducerSettings;

/// A producer of one tenant for one queue. Cheap to clone; clones share the connection for short commands.
#[derive(Clone, Debug)]
pub struct Producer {
    pub(crate) connection: Connection,
    pub(crate) queue: Queue,
    pub(crate) payloads: Option<PayloadStore>,
    pub(crate) settings: ProducerSettings,
}

impl Producer {
    /// Connects to `url` (`redis://[user:password@]host[:port][/database]`, `rediss://` for TLS, `unix://`; `valkey://` and
    /// `valkeys://` mean the same). Characters of user and password that have a meaning in URLs are percent-encoded.
    ///
    /// Fails at once if Redis cannot be reached, is older than 7.0 or may evict what it holds, and if the store of
    /// `settings` is none.
    pub async fn connect(url: &str, settings: ProducerSettings) -> Result<Self, ProducerError> {
        let producer = Self::reach(url, settings).await?;
        producer.connection.check().await?;
        Ok(producer)
    }

    /// Connects, and takes the server as it is.
    pub(crate) async fn reach(url: &str, settings: ProducerSettings) -> Result<Self, ProducerError> {
        settings.validate()?;
        redis_url::check(url)?;
        let open = |store: &String| PayloadStore::open(store, &settings.queue);
        let payloads = settings.store.as_ref().map(open).transpose()?;
        let connection = Connection::open(url, &settings).await?;
        Ok(Self { connection, queue: Queue::single(settings.queue.clone()), payloads, settings })
    }

    /// Gives a turn its id, tenant and seed. Nothing is written.
    pub fn prepare(&self, turn: NewTurn) -> Turn {
        let id = self.queue.new_turn_id(&self.settings.tenant, turn.agent.as_ref());
        turn.into_turn(id, self.settings.tenant.clone())
    }

    /// The turn's key names: its hash and its result stream.
    pub(crate) fn keys_of(&self, turn: TurnId) -> (String, String) {
        let keys = self.queue.keys(turn.shard());
        (keys.turn(turn), keys.result(turn))
    }
}
