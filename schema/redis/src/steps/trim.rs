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
    pub oldest: &'a [Vec<u8>],
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trimmed {
    /// Turns that were forgotten.
    pub forgotten: u64,
    /// Entries that were dropped because they cannot be read: somebody else's, or another version's.
    pub unreadable: u64,
    /// More result streams may be past their time and counted still than one call looks at.
    pub more_streams: bool,
}

impl Step for Trim<'_> {
    const NAME: &'static str = "trim";
    const SCRIPT: &'static str = script!(" flags=allow-oom" "trim.lua");
    type Reply = Trimmed;

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::new(keys);
        call.text(self.retained_bytes).text(self.outcome_ttl_ms);
        for bytes in self.oldest {
            let entry = std::str::from_utf8(bytes).ok().and_then(EndedEntry::parse);
            call.arg(bytes.as_slice()).text(u8::from(entry.is_some()));
            if let Some(entry) = entry {
                call.keys([keys.turn(entry.turn), keys.result(entry.turn)]);
            }
        }
        call
    }

    fn read(reply: Value) -> Result<Trimmed, ParsingError> {
        let (forgotten, unreadable, more_streams) = FromRedisValue::from_redis_value(reply)?;
        Ok(Trimmed { forgotten, unreadable, more_streams })
    }
}
