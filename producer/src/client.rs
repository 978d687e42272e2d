//! The client: a queue, a tenant and a way to Redis.

use turnmill_schema::keys::{Keys, Queue};
use turnmill_schema::{AgentId, AgentName, TurnId};

use crate::builder::ClientBuilder;
use crate::connection::Connection;
use crate::error::ClientError;
use crate::follow::Waiters;
use crate::new_turn::NewTurn;
use crate::prepared::PreparedTurn;
use crate::settings::Settings;
use crate::store::PayloadStore;

/// A client of one tenant for one queue. Cheap to clone; clones share its few connections.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) connection: Connection,
    pub(crate) waiters: Waiters,
    pub(crate) queue: Queue,
    pub(crate) payloads: Option<PayloadStore>,
    pub(crate) settings: Settings,
}

impl Client {
    /// Begins to connect to the Redis at `url`: `redis://[user:password@]host[:port][/database]`, `rediss://` for TLS, `unix://`;
    /// `valkey://` and `valkeys://` mean the same. Characters of user and password that have a meaning in URLs are
    /// percent-encoded.
    pub fn builder(url: impl Into<String>) -> ClientBuilder {
        ClientBuilder::new(url.into())
    }

    pub(crate) async fn open(builder: ClientBuilder) -> Result<Self, ClientError> {
        let (payloads, ClientBuilder { url, settings }) = (checked(&builder)?, builder);
        let connection = Connection::open(url, &settings).await?;
        Ok(Self::of(connection, payloads, settings))
    }

    /// Connects, and takes the server as it is.
    pub(crate) async fn reach(builder: ClientBuilder) -> Result<Self, ClientError> {
        let (payloads, ClientBuilder { url, settings }) = (checked(&builder)?, builder);
        let connection = Connection::reach(url, &settings).await?;
        Ok(Self::of(connection, payloads, settings))
    }

    /// Has connected to nothing, for tests of what asks nothing.
    #[cfg(test)]
    pub(crate) fn unconnected(settings: Settings) -> Self {
        Self::of(Connection::unconnected(&settings), None, settings)
    }

    fn of(connection: Connection, payloads: Option<PayloadStore>, settings: Settings) -> Self {
        Self {
            connection,
            waiters: Waiters::default(),
            queue: Queue::single(settings.queue.clone().into()),
            payloads,
            settings,
        }
    }

    /// Gives a turn its id, tenant and seed. Nothing is written.
    pub fn prepare(&self, turn: NewTurn) -> PreparedTurn {
        let (tenant, after) = (&self.settings.tenant, turn.after);
        let id = self.queue.new_turn_id(tenant, turn.agent.as_ref());
        PreparedTurn::new(turn.into_turn(id, tenant.clone()), after)
    }

    /// No trace of the turn is left.
    pub(crate) fn unknown_turn(&self, turn: TurnId) -> ClientError {
        ClientError::UnknownTurn { turn, queue: self.queue.name.to_string() }
    }

    /// There is no such agent.
    pub(crate) fn unknown_agent(&self, agent: &AgentName) -> ClientError {
        ClientError::UnknownAgent {
            agent: agent.to_string(),
            tenant: self.settings.tenant.to_string(),
            queue: self.queue.name.to_string(),
        }
    }

    /// The tenant's agent of that name, and the keys of its shard.
    pub(crate) fn agent_keys(&self, agent: &AgentName) -> (Keys, AgentId) {
        let tenant = &self.settings.tenant;
        (self.queue.keys(self.queue.shard_of(tenant, agent)), AgentId::named(tenant, agent))
    }

    /// The key names of the turn's shard.
    pub(crate) fn keys_of(&self, turn: TurnId) -> Keys {
        self.queue.keys(turn.shard())
    }
}

/// Its store, if it names one. Refuses settings that are of no use.
fn checked(builder: &ClientBuilder) -> Result<Option<PayloadStore>, ClientError> {
    let settings = &builder.settings;
    settings.validate()?;
    settings.store.as_ref().map(|store| PayloadStore::open(&store.0, settings.queue.as_name())).transpose()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use turnmill_redis::Fault;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever a password holds: it is not in the error, and the host that is asked is the one that was meant.
        #[test]
        fn no_part_of_a_password_is_told_or_taken_for_a_host(
            before in "[-a-z@:/?#%&= ]{0,4}", after in "[-a-z@:/?#%&= ]{0,4}", user in "[a-z]{0,3}",
        ) {
            let url = format!("redis://{user}:{before}hunter{after}@127.0.0.1:1");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("one");
            let connected = runtime.block_on(Client::builder(&url).connect());
            let error = connected.expect_err("nobody listens there");
            prop_assert!(!error.to_string().contains("hunter"), "{}", error);
            match error {
                ClientError::Queue(Fault::Unreachable { address, .. }) => prop_assert_eq!(address, "127.0.0.1:1"),
                ClientError::InvalidUrl(reason) => prop_assert!(reason.contains("percent-encode"), "{}", reason),
                other => prop_assert!(false, "{}", other),
            }
        }
    }
}
