//! What a server tells of itself and of the keys it holds, for one who wants to know what is wrong.

use std::collections::HashMap;

use crate::fault::Fault;
use crate::server::Server;

/// Everything a server tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerReport {
    /// The fields of `INFO`.
    pub info: HashMap<String, String>,
    /// When it writes its append-only file to the disk; none if this user may not ask.
    pub appendfsync: Option<String>,
}

impl Server {
    /// Asks the server everything about itself.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn report(&self) -> Result<ServerReport, Fault> {
        let info: String = self.ask("INFO", redis::cmd("INFO").arg("everything")).await?;
        // CONFIG is often kept from users; the report then lacks it.
        let mut config = redis::cmd("CONFIG");
        config.arg("GET").arg("appendfsync");
        let config: HashMap<String, String> = self.ask("CONFIG GET", &config).await.unwrap_or_default();
        let fields = info.lines().filter_map(|line| line.trim().split_once(':'));
        Ok(ServerReport {
            info: fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            appendfsync: config.get("appendfsync").cloned(),
        })
    }

    /// The types of keys, in order, by Redis's names; `none` for those that are gone.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn types_of(&self, keys: &[String]) -> Result<Vec<String>, Fault> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut look = redis::pipe();
        for key in keys {
            look.cmd("TYPE").arg(key);
        }
        self.ask_all("TYPE", &look).await
    }
}

/// The type that a key of a queue must have, by its name after `tm:{queue.shard}:`; none if no key of this version is called
/// that.
pub fn type_of_name(name: &str) -> Option<&'static str> {
    let kind = name.split_once(':').map_or(name, |(kind, _)| kind);
    match kind {
        "ready" | "result" | "dead" | "events" => Some("stream"),
        "agent" | "turn" | "counters" | "worker" => Some("hash"),
        "backlog" | "transcript" | "ended" => Some("list"),
        "open" | "delayed" | "parked" | "workers" | "streams" | "deadlines" => Some("zset"),
        "capped" => Some("set"),
        "idem" | "paused" | "order" | "sweeper" | "sweep-cursor" | "collector" => Some("string"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every name that the schema makes, taken from its text: a key that is added there must get a type here.
    #[test]
    fn every_key_has_its_type() {
        let schema = include_str!("../../src/keys.rs");
        let names: Vec<&str> =
            schema.split("format!(\"{}:").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(names.len() > 20 && names.contains(&"collector"), "{names:?}");
        // A channel is no key.
        for name in names.into_iter().filter(|name| *name != "notices") {
            let kind = name.split("{}").next().unwrap_or_default();
            assert!(type_of_name(kind).is_some(), "{name}");
        }
        assert_eq!(type_of_name("depth"), None, "an older version's");
    }
}
