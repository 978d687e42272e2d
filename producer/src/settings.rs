//! How a producer behaves.

use std::path::PathBuf;
use std::time::Duration;

use turnmill_redis::steps::UnrunLimits;
use turnmill_schema::Name;

use crate::error::ProducerError;

/// Longest time that a setting may be. Longer ones are mistakes in the unit, and clocks and scripts could not add them up.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

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
    /// How long one blocking read of the stream of events waits; its own timeout is this and [`Self::response_timeout`]
    /// together. If nothing was told of a followed turn for as long, the follower looks whether the turn ended without its
    /// result stream telling.
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

    /// How long what is left of turns stays that no worker ended.
    pub(crate) fn unrun_limits(&self) -> UnrunLimits {
        UnrunLimits {
            result_ttl_ms: self.result_ttl.as_millis() as u64,
            outcome_ttl_ms: self.outcome_ttl.as_millis() as u64,
        }
    }

    /// Refuses times out of bounds.
    pub(crate) fn validate(&self) -> Result<(), ProducerError> {
        let shortest = Duration::from_millis(1);
        for (name, value, least) in [
            ("response_timeout", self.response_timeout, shortest),
            ("retry_for", self.retry_for, Duration::ZERO),
            ("block", self.block, shortest),
            ("result_ttl", self.result_ttl, shortest),
            ("outcome_ttl", self.outcome_ttl, shortest),
        ] {
            if !(least..=LONGEST).contains(&value) {
                return Err(ProducerError::InvalidSetting { name, value, least, most: LONGEST });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::Producer;

    fn settings(times: [Duration; 5]) -> ProducerSettings {
        let name = || Name::new("default").expect("a name");
        let [response_timeout, retry_for, block, result_ttl, outcome_ttl] = times;
        let settings = ProducerSettings::new(name(), name());
        ProducerSettings { response_timeout, retry_for, block, result_ttl, outcome_ttl, ..settings }
    }

    proptest! {
        #[test]
        fn times_that_are_taken_can_be_added_up(seconds: [u64; 5], shift in 0_u32..64) {
            let times = seconds.map(|seconds| Duration::from_secs(seconds >> shift));
            match settings(times).validate() {
                Ok(()) => prop_assert!(Instant::now().checked_add(times.iter().sum()).is_some()),
                Err(error) => prop_assert!(error.to_string().contains("; it must be from "), "{}", error),
            }
        }
    }

    #[tokio::test]
    async fn connecting_refuses_times_without_end() {
        let error = Producer::connect("redis://127.0.0.1:1", settings([Duration::MAX; 5])).await;
        assert!(matches!(error, Err(ProducerError::InvalidSetting { name: "response_timeout", .. })));
    }
}
