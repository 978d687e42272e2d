//! One connection: made, checked, and known to be of the server that is the queue's now.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;

use crate::fault::Fault;
use crate::server::Server;

/// A connection is asked again whether its server is still the primary if nobody asked for so long.
const VERIFY_EVERY: Duration = Duration::from_secs(1);

/// A connection whose server was the queue's primary when it was last asked.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) connection: MultiplexedConnection,
    /// Connections of an earlier era are not used any more: the server at their other end is not the queue's.
    pub(crate) era: u64,
    /// Unlike that of any other connection of this process: what was known of the server before may not hold.
    pub(crate) generation: u64,
    verified: Instant,
    /// One of its users found that it is of no more use; shared by all clones.
    broken: Arc<AtomicBool>,
}

impl Link {
    pub(crate) async fn open(server: &Server, config: &AsyncConnectionConfig) -> Result<Self, Fault> {
        let made = server.client.get_multiplexed_async_connection_with_config(config).await;
        let mut connection = made.map_err(|error| server.classify("connect", &error))?;
        server.verify(&mut connection).await?;
        let (era, generation) = server.note_connection();
        Ok(Self { connection, era, generation, verified: Instant::now(), broken: Arc::default() })
    }

    /// Nobody uses it any more.
    pub(crate) fn give_up(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    /// Makes sure that the connection may be used: it is of this era, and its server was lately the primary.
    pub(crate) async fn recheck(&mut self, server: &Server) -> Result<(), Fault> {
        server.expect_era(self.era)?;
        if self.broken.load(Ordering::Relaxed) {
            return Err(server.unreachable(&"the connection broke"));
        }
        if self.verified.elapsed() >= VERIFY_EVERY {
            server.verify(&mut self.connection).await?;
            server.expect_era(self.era)?;
            self.verified = Instant::now();
        }
        Ok(())
    }
}

/// Makes pooled connections; see [`Link`].
pub(crate) struct Manager {
    pub(crate) server: Weak<Server>,
    pub(crate) config: AsyncConnectionConfig,
}

impl Manager {
    fn server(&self) -> Result<Arc<Server>, Fault> {
        self.server
            .upgrade()
            .ok_or_else(|| Fault::Unsuitable("the connections to Redis are closed".to_owned()))
    }
}

impl managed::Manager for Manager {
    type Type = Link;
    type Error = Fault;

    async fn create(&self) -> Result<Link, Fault> {
        Link::open(&*self.server()?, &self.config).await
    }

    async fn recycle(&self, link: &mut Link, _: &Metrics) -> RecycleResult<Fault> {
        let server = self.server().map_err(RecycleError::Backend)?;
        link.recheck(&server).await.map_err(RecycleError::Backend)
    }
}
