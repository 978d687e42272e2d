//! Keeping a worker's leases and tickets from being reclaimed.

use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::keys::Keys;
use turnmill_schema::{AgentId, Priority};

use super::script;
use crate::call::{Call, Step};

/// Renews what a worker has in one shard. See `renew.lua`.
#[derive(Clone, Debug)]
pub struct Renew<'a> {
    /// The worker.
    pub worker: &'a str,
    /// Its leases and tickets.
    pub items: Vec<RenewItem<'a>>,
}

/// A lease, or a ticket that is not leased.
#[derive(Clone, Copy, Debug)]
pub struct RenewItem<'a> {
    /// Whose.
    pub agent: &'a AgentId,
    /// The ticket's entry id.
    pub ticket: &'a str,
    /// The ready stream it came from.
    pub priority: Priority,
    /// The epoch of the lease; none: a ticket that is not leased.
    pub epoch: Option<u64>,
}

impl Step for Renew<'_> {
    const NAME: &'static str = "renew";
    const SCRIPT: &'static str = script!(" flags=allow-oom" "renew.lua");
    /// The server's time in Unix milliseconds, and for each item, in order, whether the worker still has it.
    type Reply = (u64, Vec<bool>);

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::new(keys);
        call.text(self.worker);
        for item in &self.items {
            call.keys([keys.agent(item.agent)]);
            call.text(item.ticket).text(item.priority.as_str());
            call.text(item.epoch.map(|epoch| epoch.to_string()).unwrap_or_default());
        }
        call
    }

    fn read(reply: Value) -> Result<(u64, Vec<bool>), ParsingError> {
        FromRedisValue::from_redis_value(reply)
    }
}
