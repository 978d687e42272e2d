//! Removing consumers of workers that are gone.

use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::keys::Keys;

use super::script;
use crate::call::{Call, Step};

/// Removes consumers that were silent for long and have nothing pending. See `consumers.lua`.
#[derive(Clone, Copy, Debug)]
pub struct RemoveConsumers {
    /// Silence in milliseconds.
    pub silent_ms: u64,
}

impl Step for RemoveConsumers {
    const NAME: &'static str = "consumers";
    const SCRIPT: &'static str = script!(" flags=allow-oom" "consumers.lua");
    /// How many were removed.
    type Reply = u64;

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::new(keys);
        call.text(self.silent_ms);
        call
    }

    fn read(reply: Value) -> Result<u64, ParsingError> {
        u64::from_redis_value(reply)
    }
}
