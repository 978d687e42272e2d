//! Forgetting ended turns.

use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::keys::{EndedEntry, Keys};

use super::script;
use crate::call::{Call, Step};

/// Forgets the oldest of the ended turns: those past their time, and the rest while they take more than they may.
/// See `trim.lua`.
#[derive(Clone, Debug)]
pub struct Trim<'a> {
    /// What ended turns may take in the shard, in bytes.
    pub retained_bytes: u64,
    /// How long outcomes stay, in milliseconds.
    pub outcome_ttl_ms: u64,
    /// Their entries in the list of ended turns, oldest first, as they are there.
    pub oldest: &'a [String],
}

impl Step for Trim<'_> {
    const NAME: &'static str = "trim";
    const SCRIPT: &'static str = script!(" flags=allow-oom" "trim.lua");
    /// How many were forgotten.
    type Reply = u64;

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::new(keys);
        call.text(self.retained_bytes).text(self.outcome_ttl_ms);
        for text in self.oldest {
            // One that cannot be read ends the list: the script forgets from its start only.
            let Some(entry) = EndedEntry::parse(text) else { break };
            call.keys([keys.turn(entry.turn), keys.result(entry.turn)]).text(text);
        }
        call
    }

    fn read(reply: Value) -> Result<u64, ParsingError> {
        u64::from_redis_value(reply)
    }
}
