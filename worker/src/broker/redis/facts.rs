//! What a server says about itself, and whether a queue may live there.

use super::BrokerError;

/// Oldest version with everything the scripts use (shebang flags, EVAL over `allow-oom`).
const MIN_VERSION: (u32, u32) = (7, 0);

/// A server's answers to `INFO`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerFacts {
    /// Its version as text; empty where it does not say.
    pub version: String,
    /// Memory limit in bytes; 0 is none.
    pub maxmemory_bytes: u64,
    /// What it does at the limit.
    pub maxmemory_policy: String,
    /// `master` or `slave`.
    pub role: String,
    /// Whether it keeps an append-only file.
    pub append_only: bool,
    /// Connected replicas.
    pub replicas: u32,
}

impl ServerFacts {
    pub(super) fn from_info(info: &str) -> Self {
        let mut facts = Self::default();
        for (name, value) in info.lines().filter_map(|line| line.split_once(':')) {
            match name {
                "redis_version" => facts.version = value.to_owned(),
                "maxmemory" => facts.maxmemory_bytes = value.parse().unwrap_or(0),
                "maxmemory_policy" => facts.maxmemory_policy = value.to_owned(),
                "role" => facts.role = value.to_owned(),
                "aof_enabled" => facts.append_only = value == "1",
                "connected_slaves" => facts.replicas = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        facts
    }

    /// What an operator should know though the queue runs.
    pub fn warning(&self) -> Option<&'static str> {
        (!self.append_only).then_some(
            "Redis keeps no append-only file: a restart loses turns; CONFIG SET appendonly yes keeps them",
        )
    }

    pub(super) fn suitable(self, url: &str) -> Result<Self, BrokerError> {
        let unsuitable = |text: String| Err(BrokerError::Unsuitable(text));
        let (major, minor) = MIN_VERSION;
        if version(&self.version) < Some(MIN_VERSION) {
            let found = if self.version.is_empty() { "unknown" } else { &self.version };
            return unsuitable(format!(
                "Redis at {url} is too old: its version is {found}; upgrade to {major}.{minor} or newer"
            ));
        }
        if self.role != "master" {
            return unsuitable(format!(
                "Redis at {url} is a read-only replica (role {}); give the master's address in redis_url",
                self.role
            ));
        }
        if self.maxmemory_bytes > 0 && self.maxmemory_policy != "noeviction" {
            return unsuitable(format!(
                "Redis at {url} is evicting: maxmemory-policy {} would delete queued turns; run CONFIG SET \
                 maxmemory-policy noeviction",
                self.maxmemory_policy
            ));
        }
        Ok(self)
    }
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Server\r\nredis_version:7.0.15\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n\
        role:master\r\naof_enabled:1\r\nconnected_slaves:2\r\n";

    fn refusal(from: &str, to: &str) -> String {
        let facts = ServerFacts::from_info(&INFO.replace(from, to));
        facts.suitable("redis://h").expect_err("must be refused").to_string()
    }

    #[test]
    fn a_good_server_is_told_as_it_is() {
        let facts = ServerFacts::from_info(INFO).suitable("redis://h").expect("suitable");
        assert_eq!((facts.version.as_str(), facts.replicas, facts.warning()), ("7.0.15", 2, None));
        let volatile = ServerFacts::from_info(&INFO.replace("aof_enabled:1", "aof_enabled:0"));
        assert!(volatile.warning().expect("a warning").contains("appendonly yes"));
    }

    #[test]
    fn what_cannot_carry_a_queue_is_refused_with_the_remedy() {
        assert!(refusal("7.0.15", "6.2.14").contains("too old: its version is 6.2.14"));
        assert!(refusal("redis_version", "x").contains("version is unknown"));
        assert!(refusal("role:master", "role:slave").contains("read-only replica"));
        let evicting = refusal("maxmemory:0", "maxmemory:1000");
        assert!(
            evicting.contains("allkeys-lru") && evicting.contains("CONFIG SET maxmemory-policy noeviction")
        );
    }
}
