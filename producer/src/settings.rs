//! How a producer behaves.

use std::path::PathBuf;
use std::time::Duration;

use turnmill_schema::Name;

/// Open turns of a shard, unless set: at 8 KB a turn, less than a gigabyte.
const MAX_DEPTH: u64 = 100_000;

/// Settings of [`crate::Producer::connect`].
#[derive(Clone, Debug)]
pub struct ProducerSettings {
    /// The queue; it serves one model.
    pub queue: Name,
    /// Whose turns these are; tenants never share anything.
    pub tenant: Name,
    /// Where turns too large for Redis go: `file:///var/lib/turnmill`, `s3://bucket/prefix`, `gs://bucket/prefix` or
    /// `az://container/prefix`; the queue's workers must be given the same. Credentials come from the variables that
    /// the store's own tools read. None: such turns are refused.
    pub store: Option<String>,
    /// How many turns of a shard may be open (waiting or running); beyond it enqueueing is refused.
    pub max_depth: u64,
    /// The same for the turns of one tenant, so that no tenant can fill the queue alone.
    pub tenant_max_depth: u64,
    /// How long one command may take before it counts as lost.
    pub response_timeout: Duration,
    /// How long to go on trying, with growing pauses, when Redis goes away after it was once reached.
    pub retry_for: Duration,
    /// How long one blocking read of a result stream waits. The read's own timeout is this and
    /// [`Self::response_timeout`] together.
    pub block: Duration,
    /// How long the result of a turn that is cancelled is kept; as the workers' `result_ttl_ms`.
    pub result_ttl: Duration,
    /// How long its outcome is kept; as the workers' `outcome_ttl_ms`.
    pub outcome_ttl: Duration,
    /// For `rediss://`: a PEM file of the authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
}

impl ProducerSettings {
    /// Settings for `queue` and `tenant`; the rest is good for most.
    pub fn new(queue: Name, tenant: Name) -> Self {
        Self {
            queue,
            tenant,
            store: None,
            max_depth: MAX_DEPTH,
            tenant_max_depth: MAX_DEPTH,
            response_timeout: Duration::from_secs(5),
            retry_for: Duration::from_secs(30),
            block: Duration::from_secs(2),
            result_ttl: Duration::from_secs(3600),
            outcome_ttl: Duration::from_secs(24 * 3600),
            ca_file: None,
        }
    }
}
