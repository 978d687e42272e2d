//! Whether a Redis can carry a queue: new enough, and keeping what it was given.

use redis::FromRedisValue;
use redis::aio::ConnectionManager;

use crate::error::ProducerError;

/// The oldest version that has what the scripts use (`#!lua` flags).
const OLDEST: (u32, u32) = (7, 0);

/// Asks the server. One that keeps INFO from us is taken as it is: commands will tell.
pub(crate) async fn check(redis: &mut ConnectionManager, address: &str) -> Result<(), ProducerError> {
    let reply = redis::cmd("INFO").query_async::<redis::Value>(redis).await;
    let Some(info) = reply.ok().and_then(|value| String::from_redis_value(value).ok()) else {
        return Ok(());
    };
    judge(&info).map_err(|reason| ProducerError::Unsuitable(format!("Redis at {address} {reason}")))
}

/// What is wrong with a server that describes itself so.
fn judge(info: &str) -> Result<(), String> {
    let field =
        |name| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    if let Some(version) = field("redis_version").filter(|version| is_too_old(version)) {
        return Err(format!("is version {version}; at least 7.0 (or Valkey) is needed"));
    }
    let policy = field("maxmemory_policy").unwrap_or("noeviction");
    let bounded = field("maxmemory").is_some_and(|bytes| bytes != "0");
    if bounded && policy != "noeviction" {
        return Err(format!(
            "may evict turns (maxmemory-policy {policy}); set it with: redis-cli CONFIG SET maxmemory-policy noeviction"
        ));
    }
    Ok(())
}

/// Whether the scripts cannot run on a server of that version.
pub(crate) fn is_too_old(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < OLDEST
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(version: &str, maxmemory: &str, policy: &str) -> String {
        format!(
            "# Server\r\nredis_version:{version}\r\n# Memory\r\nmaxmemory:{maxmemory}\r\nmaxmemory_policy:{policy}\r\n"
        )
    }

    #[test]
    fn a_server_that_is_old_or_forgets_is_refused() {
        assert_eq!(judge(&info("7.0.15", "0", "noeviction")), Ok(()));
        assert_eq!(judge(&info("10.1.0", "1000", "noeviction")), Ok(()));
        assert!(judge(&info("6.2.7", "0", "noeviction")).is_err_and(|e| e.contains("6.2.7")));
        assert!(judge(&info("7.2.4", "1000", "allkeys-lru")).is_err_and(|e| e.contains("allkeys-lru")));
        assert_eq!(judge(&info("7.2.4", "0", "allkeys-lru")), Ok(()), "nothing is evicted without a bound");
    }

    #[test]
    fn a_server_that_says_nothing_is_taken_as_it_is() {
        assert_eq!(judge(""), Ok(()));
    }
}
