//! Removing consumers that are gone.

use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::keys::{GROUP, Keys};

use crate::call::{Call, Step};
use crate::shared_keys::ready_keys;

/// Removes consumers of a group that were silent for long and have nothing pending, on a full server too. See `consumers.lua`.
#[derive(Clone, Copy, Debug)]
pub struct RemoveConsumers<'a> {
    /// Whose.
    pub group: ConsumerGroup<'a>,
    /// Silence in milliseconds.
    pub silent_ms: u64,
}

/// A group of consumers of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsumerGroup<'a> {
    /// The workers, which read the ready streams.
    Workers,
    /// A group of the stream of events: see [`turnmill_schema::keys::events_group`].
    Events(&'a str),
}

impl Step for RemoveConsumers<'_> {
    const NAME: &'static str = "consumers";
    const SCRIPT: &'static str =
        concat!("#!lua flags=allow-oom\n", include_str!("info.lua"), include_str!("consumers.lua"));
    /// How many were removed.
    type Reply = u64;

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::default();
        match self.group {
            ConsumerGroup::Workers => call.keys(ready_keys(keys)).text(GROUP),
            ConsumerGroup::Events(group) => call.keys([keys.events()]).text(group),
        };
        call.text(self.silent_ms);
        call
    }

    fn read(reply: Value) -> Result<u64, ParsingError> {
        u64::from_redis_value(reply)
    }
}
