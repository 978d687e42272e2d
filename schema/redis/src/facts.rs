//! What a server says about itself, and whether a queue may live there.

/// Oldest version with everything the scripts use (shebang flags, EVAL over `allow-oom`).
const MIN_VERSION: (u32, u32) = (7, 0);

/// A server's answers to `INFO`. What it does not say is empty, 0 or false.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerFacts {
    /// Its version as text.
    pub version: String,
    /// Identifies one start of one server: another value means another server, or the same one restarted.
    pub run_id: String,
    /// Memory limit in bytes; 0 is none.
    pub maxmemory_bytes: u64,
    /// What it does at the limit.
    pub maxmemory_policy: String,
    /// `master` or `slave`.
    pub role: String,
    /// Whether it is still reading its data from disk, or from its primary.
    pub loading: bool,
    /// Whether it keeps an append-only file.
    pub append_only: bool,
    /// Connected replicas.
    pub replicas: u32,
}

impl ServerFacts {
    /// Reads the answer to `INFO`, whole or in sections.
    pub fn from_info(info: &str) -> Self {
        let mut facts = Self::default();
        for (name, value) in info.lines().filter_map(|line| line.split_once(':')) {
            match name {
                "redis_version" => facts.version = value.to_owned(),
                "run_id" => facts.run_id = value.to_owned(),
                "maxmemory" => facts.maxmemory_bytes = value.parse().unwrap_or(0),
                "maxmemory_policy" => facts.maxmemory_policy = value.to_owned(),
                "role" => facts.role = value.to_owned(),
                "loading" | "async_loading" => facts.loading |= value == "1",
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

    /// Whether the server is too old for the scripts. One that does not say its version is taken as it is.
    pub fn is_too_old(&self) -> bool {
        !self.version.is_empty() && version(&self.version) < Some(MIN_VERSION)
    }

    /// Why it cannot serve the queue now, though it may later.
    pub(crate) fn trouble_that_passes(&self) -> Option<&'static str> {
        if self.loading {
            Some("it is loading its data")
        } else if self.role == "slave" {
            Some("it is a read-only replica (role slave)")
        } else {
            None
        }
    }

    /// Why no queue can live at `address` until an operator changes something, and what to change.
    pub(crate) fn unsuitable(&self, address: &str) -> Option<String> {
        let (major, minor) = MIN_VERSION;
        if self.is_too_old() {
            return Some(format!(
                "Redis at {address} is too old: its version is {}; upgrade to {major}.{minor} or newer",
                self.version
            ));
        }
        if self.maxmemory_bytes > 0
            && !self.maxmemory_policy.is_empty()
            && self.maxmemory_policy != "noeviction"
        {
            return Some(format!(
                "Redis at {address} is evicting: maxmemory-policy {} would delete queued turns; run CONFIG SET \
                 maxmemory-policy noeviction",
                self.maxmemory_policy
            ));
        }
        None
    }
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n\
        role:master\r\nloading:0\r\naof_enabled:1\r\nconnected_slaves:2\r\n";

    fn facts(from: &str, to: &str) -> ServerFacts {
        ServerFacts::from_info(&INFO.replace(from, to))
    }

    #[test]
    fn a_good_server_is_taken_as_it_is() {
        let good = facts("", "");
        assert_eq!((good.version.as_str(), good.run_id.as_str(), good.replicas), ("7.0.15", "abc", 2));
        assert_eq!((good.warning(), good.trouble_that_passes(), good.unsuitable("h")), (None, None, None));
        let volatile = facts("aof_enabled:1", "aof_enabled:0");
        assert!(volatile.warning().expect("a warning").contains("appendonly yes"));
        assert_eq!(
            ServerFacts::from_info("").unsuitable("h"),
            None,
            "one that says nothing is taken as it is"
        );
        assert_eq!(facts("7.0.15", "10.1.0").unsuitable("h"), None);
    }

    #[test]
    fn what_cannot_carry_a_queue_is_refused_with_the_remedy() {
        let old = facts("7.0.15", "6.2.14").unsuitable("h").expect("too old");
        assert!(old.contains("too old: its version is 6.2.14"), "{old}");
        let evicting = facts("maxmemory:0", "maxmemory:1000").unsuitable("h").expect("evicting");
        assert!(
            evicting.contains("allkeys-lru") && evicting.contains("CONFIG SET maxmemory-policy noeviction")
        );
    }

    #[test]
    fn what_passes_is_told_apart() {
        assert!(
            facts("role:master", "role:slave")
                .trouble_that_passes()
                .is_some_and(|text| text.contains("replica"))
        );
        assert!(
            facts("loading:0", "loading:1")
                .trouble_that_passes()
                .is_some_and(|text| text.contains("loading"))
        );
    }
}
