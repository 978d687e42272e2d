//! How a client behaves; [`crate::ClientBuilder`] sets it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use turnmill_redis::steps::UnrunLimits;
use turnmill_schema::masked::masked;
use turnmill_schema::{Name, QueueName, TenantName};

use crate::error::ClientError;

/// Longest time that a setting may be. Longer ones are mistakes in the unit, and clocks and scripts could not add them up.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// Open turns of a shard, unless set: at 8 KB a turn, less than a gigabyte.
const MAX_DEPTH: u64 = 100_000;

/// What a [`crate::ClientBuilder`] was told. The fields are documented there.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) queue: QueueName,
    pub(crate) tenant: TenantName,
    pub(crate) store: Option<StoreUrl>,
    pub(crate) max_depth: u64,
    pub(crate) tenant_max_depth: u64,
    pub(crate) response_timeout: Duration,
    pub(crate) retry_for: Duration,
    pub(crate) block: Duration,
    pub(crate) result_ttl: Duration,
    pub(crate) outcome_ttl: Duration,
    pub(crate) ca_file: Option<PathBuf>,
}

/// The URL of an object store. It prints without its password.
#[derive(Clone)]
pub(crate) struct StoreUrl(pub(crate) String);

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked(&self.0))
    }
}

impl Default for Settings {
    /// Good for most.
    fn default() -> Self {
        let name = Name::new("default").expect("letters make a name");
        Self {
            queue: name.clone().into(),
            tenant: name.into(),
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

impl Settings {
    /// How long what is left of turns stays that no worker ended.
    pub(crate) fn unrun_limits(&self) -> UnrunLimits {
        UnrunLimits {
            result_ttl_ms: self.result_ttl.as_millis() as u64,
            outcome_ttl_ms: self.outcome_ttl.as_millis() as u64,
        }
    }

    /// Refuses times out of bounds.
    pub(crate) fn validate(&self) -> Result<(), ClientError> {
        let shortest = Duration::from_millis(1);
        for (name, value, least) in [
            ("response_timeout", self.response_timeout, shortest),
            ("retry_for", self.retry_for, Duration::ZERO),
            ("block", self.block, shortest),
            ("result_ttl", self.result_ttl, shortest),
            ("outcome_ttl", self.outcome_ttl, shortest),
        ] {
            if !(least..=LONGEST).contains(&value) {
                return Err(ClientError::InvalidSetting { name, value, least, most: LONGEST });
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

    fn settings(times: [Duration; 5]) -> Settings {
        let [response_timeout, retry_for, block, result_ttl, outcome_ttl] = times;
        Settings { response_timeout, retry_for, block, result_ttl, outcome_ttl, ..Settings::default() }
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
}
