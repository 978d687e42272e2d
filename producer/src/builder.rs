//! Connecting: where, to which queue, for whom, and with how much patience.

use std::path::PathBuf;
use std::time::Duration;

use turnmill_redis::RedisUrl;
use turnmill_schema::{QueueName, TenantName};

use crate::client::Client;
use crate::error::ClientError;
use crate::settings::{Settings, StoreUrl};

/// Connects a [`Client`]; [`Client::builder`] makes one. What is not set has a value that is good for most. It prints without
/// passwords.
///
/// ```no_run
/// use std::time::Duration;
/// use turnmill_client::Client;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let builder = Client::builder("rediss://me:secret@redis.example.org").queue("qwen".parse()?).tenant("acme".parse()?);
/// let client = builder.retry_for(Duration::from_secs(5)).connect().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing before `connect`"]
pub struct ClientBuilder {
    pub(crate) url: RedisUrl,
    pub(crate) settings: Settings,
}

impl ClientBuilder {
    pub(crate) fn new(url: String) -> Self {
        Self { url: url.into(), settings: Settings::default() }
    }

    /// The queue; it serves one model. `default` unless set.
    pub fn queue(mut self, queue: QueueName) -> Self {
        self.settings.queue = queue;
        self
    }

    /// Whose turns these are; tenants never share anything. `default` unless set.
    pub fn tenant(mut self, tenant: TenantName) -> Self {
        self.settings.tenant = tenant;
        self
    }

    /// Where turns too large for Redis go: `file:///var/lib/turnmill`, `s3://bucket/prefix`, `gs://bucket/prefix` or
    /// `az://container/prefix`; the queue's workers must be given the same. Credentials come from the variables that the store's
    /// own tools read. Without a store, such turns are refused. Needs the feature `store`.
    pub fn store(mut self, url: impl Into<String>) -> Self {
        self.settings.store = Some(StoreUrl(url.into()));
        self
    }

    /// How many turns of a shard may be open (waiting or running); beyond it enqueueing is refused. 100,000 unless set.
    pub fn max_depth(mut self, turns: u64) -> Self {
        self.settings.max_depth = turns;
        self
    }

    /// The same for the turns of one tenant, so that no tenant can fill the queue alone.
    pub fn tenant_max_depth(mut self, turns: u64) -> Self {
        self.settings.tenant_max_depth = turns;
        self
    }

    /// How long one command may take before it counts as lost. 5 s unless set.
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.settings.response_timeout = timeout;
        self
    }

    /// How long to go on trying, with growing pauses, if Redis goes away after it was reached once. 30 s unless set.
    pub fn retry_for(mut self, time: Duration) -> Self {
        self.settings.retry_for = time;
        self
    }

    /// How long one blocking read of the stream of events waits; its own timeout is this and [`Self::response_timeout`] together.
    /// If nothing was told of a followed turn for as long, the follower looks whether the turn ended without its result stream
    /// telling. 2 s unless set.
    pub fn block(mut self, time: Duration) -> Self {
        self.settings.block = time;
        self
    }

    /// How long the result of a turn that is cancelled is kept; as the workers' `result_ttl_ms`. An hour unless set.
    pub fn result_ttl(mut self, time: Duration) -> Self {
        self.settings.result_ttl = time;
        self
    }

    /// How long its outcome is kept; as the workers' `outcome_ttl_ms`. A day unless set.
    pub fn outcome_ttl(mut self, time: Duration) -> Self {
        self.settings.outcome_ttl = time;
        self
    }

    /// For `rediss://`: a PEM file of the authorities to trust instead of the system's.
    pub fn ca_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.settings.ca_file = Some(file.into());
        self
    }

    /// Connects.
    ///
    /// Fails at once if Redis cannot be reached, is older than 7.0, may evict what it holds or is a replica; if [`Self::store`] is
    /// not the URL of a store; and if a time is out of bounds.
    pub async fn connect(self) -> Result<Client, ClientError> {
        Client::open(self).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connecting_refuses_times_without_end() {
        let connected =
            Client::builder("redis://127.0.0.1:1").response_timeout(Duration::MAX).connect().await;
        assert!(matches!(connected, Err(ClientError::InvalidSetting { name: "response_timeout", .. })));
    }

    #[test]
    fn no_password_is_printed() {
        let builder = Client::builder("redis://me:s3cret@h").store("s3://me:s3cret@bucket/prefix");
        let printed = format!("{builder:?}");
        assert!(!printed.contains("s3cret") && printed.contains("bucket/prefix"), "{printed}");
    }
}
