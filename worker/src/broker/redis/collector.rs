//! The right to remove garbage from the object store: one collector a queue at a time.
//!
//! Invariants: it is kept only by who took it, and lasts a minute longer than its holder at most; work done under it ends
//! when it is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use turnmill_redis::Server;
use turnmill_redis::steps::KeepCollector;
use turnmill_schema::keys::Keys;

use super::BrokerError;

/// How long it lasts after its holder was last heard of.
const HELD: Duration = Duration::from_secs(60);
/// Signs of life in that time. Two may be lost before the right is.
const RENEWALS: u32 = 3;

/// Why work was not done, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// Another process removes garbage.
    #[error(
        "{0} collects garbage of this queue; wait until it is done, or a minute after it died, and run this again"
    )]
    Taken(String),
    /// It was held and is not any more.
    #[error("lost the right to collect garbage, and stopped; what was removed was garbage: run this again")]
    Lost,
    /// Redis.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// The right to remove garbage of one queue.
#[derive(Debug)]
pub struct Collector {
    server: Arc<Server>,
    /// Of shard 0.
    keys: Keys,
    held: Duration,
}

impl Collector {
    pub(super) fn new(server: Arc<Server>, keys: Keys) -> Self {
        Self { server, keys, held: HELD }
    }

    /// The same right, which lasts only for `held` after its holder was last heard of.
    pub fn lasting(self, held: Duration) -> Self {
        Self { held, ..self }
    }

    /// Does `work` while holding the right as `holder`, which must be like no other process's name.
    ///
    /// # Errors
    /// [`HoldError::Taken`] before any of it is done; [`HoldError::Lost`] if Redis gave the right to others, or could
    /// not be reached for long, before the work was done.
    pub async fn hold<T>(&self, holder: &str, work: impl Future<Output = T>) -> Result<T, HoldError> {
        self.take(holder).await?;
        let done = tokio::select! {
            done = work => Ok(done),
            lost = self.renew(holder) => Err(lost),
        };
        // If it cannot be given up it expires.
        if let Err(error) = self.keep(holder, Duration::ZERO).await {
            tracing::debug!(%error, "the right to collect garbage expires by itself");
        }
        done
    }

    async fn take(&self, holder: &str) -> Result<(), HoldError> {
        match self.call(holder, self.held, true).await? {
            None => Ok(()),
            Some(other) => Err(HoldError::Taken(other)),
        }
    }

    /// Ends when the right is lost.
    async fn renew(&self, holder: &str) -> HoldError {
        let pause = self.held / RENEWALS;
        let mut last = Instant::now();
        loop {
            tokio::time::sleep(pause).await;
            let sent = Instant::now();
            match self.keep(holder, self.held).await {
                Ok(true) => last = sent,
                Ok(false) => return HoldError::Lost,
                Err(error) if last.elapsed() + pause >= self.held => return error.into(),
                Err(_) => {}
            }
        }
    }

    /// Keeps it for `time`, or gives it up; false if the holder did not have it.
    async fn keep(&self, holder: &str, time: Duration) -> Result<bool, BrokerError> {
        Ok(self.call(holder, time, false).await?.is_none())
    }

    /// Who else has it.
    async fn call(&self, holder: &str, time: Duration, take: bool) -> Result<Option<String>, BrokerError> {
        let for_ms = time.as_millis() as u64;
        Ok(self.server.run(&self.keys, &KeepCollector { holder, for_ms, take }).await?)
    }
}
