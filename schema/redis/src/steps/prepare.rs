//! Creating what a queue needs before anything is read from it.

use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::keys::Keys;

use super::script;
use crate::call::{Call, Step};

/// Creates the ready streams and their group if they are missing, on a full server too. See `prepare.lua`.
#[derive(Clone, Copy, Debug)]
pub struct Prepare;

impl Step for Prepare {
    const NAME: &'static str = "prepare";
    const SCRIPT: &'static str = script!(" flags=allow-oom" "info.lua" "prepare.lua");
    /// How many groups were created.
    type Reply = u64;

    fn call(&self, keys: &Keys) -> Call {
        Call::new(keys)
    }

    fn read(reply: Value) -> Result<u64, ParsingError> {
        u64::from_redis_value(reply)
    }
}
