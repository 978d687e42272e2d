//! The address of Redis, looked at before it is used.

use crate::error::ProducerError;

/// What one of these characters in a user's name or a password is, percent-encoded.
const ENCODED: &str = "its user or password has one of the characters / ? # as it is, which ends the host's name; percent-encode \
     @ : / ? # % in both, as %40 %3A %2F %3F %23 %25";

/// Refuses a URL whose password would be read as a host, a path or a fragment. No part of the URL is in the error.
pub(crate) fn check(url: &str) -> Result<(), ProducerError> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let is_socket = url.split("://").next().is_some_and(|scheme| scheme.ends_with("unix"));
    let behind_host = rest.find(['/', '?', '#']).map_or("", |end| &rest[end..]);
    if !is_socket && behind_host.contains('@') {
        return Err(ProducerError::InvalidUrl(format!("the Redis URL is not usable: {ENCODED}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use turnmill_schema::Name;

    use super::*;
    use crate::{Producer, ProducerSettings};

    #[test]
    fn addresses_of_all_kinds_pass() {
        for url in [
            "redis://127.0.0.1",
            "redis://user:word@host:6379/1",
            "redis://:a@b:c@host",
            "rediss://:w%23rd@host/0#insecure",
            "valkey://host",
            "unix:///run/redis@1.sock?db=1&pass=s3cret@",
            "nonsense",
        ] {
            assert!(check(url).is_ok(), "{url}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever a password holds: it is not in the error, and the host that is asked is the one that was meant.
        #[test]
        fn no_part_of_a_password_is_told_or_taken_for_a_host(
            before in "[-a-z@:/?#%&= ]{0,4}", after in "[-a-z@:/?#%&= ]{0,4}", user in "[a-z]{0,3}",
        ) {
            let name = || Name::new("default").expect("a name");
            let url = format!("redis://{user}:{before}hunter{after}@127.0.0.1:1");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("one");
            let connected = runtime.block_on(Producer::connect(&url, ProducerSettings::new(name(), name())));
            let error = connected.expect_err("nobody listens there");
            prop_assert!(!error.to_string().contains("hunter"), "{}", error);
            match error {
                ProducerError::Queue(turnmill_redis::Fault::Unreachable { address, .. }) => prop_assert_eq!(address, "127.0.0.1:1"),
                ProducerError::InvalidUrl(reason) => prop_assert!(reason.contains("percent-encode"), "{}", reason),
                other => prop_assert!(false, "{}", other),
            }
        }
    }
}
