//! How a producer behaves.

use std::time::Duration;

use turnmill_schema::Name;

/// Settings of [`crate::Producer::connect`].
#[derive(Clone, Debug)]
pub struct ProducerSettings {
    /// The queue; it serves one model.
    pub queue: Name,
    /// Whose turns these are; tenants never share anything.
    pub tenant: Name,
    /// How many turns of a shard may be open (waiting or running); beyond it enqueueing is refused.
    pub max_depth: u64,
    /// How long one command may take before it counts as lost.
    pub response_timeout: Duration,
    /// How long to go on trying, with growing pauses, when Redis goes away after it was once reached.
    pub retry_for: Duration,
    /// How long one blocking read of a result stream waits. The read's own timeout is this and
    /// [`Self::response_timeout`] together.
    pub block: Duration,
}

impl ProducerSettings {
    /// Settings for `queue` and `tenant`; the rest is good for most.
    pub fn new(queue: Name, tenant: Name) -> Self {
        Self {
            queue,
            tenant,
            max_depth: 100_000,
            response_timeout: Duration::from_secs(5),
            retry_for: Duration::from_secs(30),
            block: Duration::from_secs(2),
        }
    }
}
