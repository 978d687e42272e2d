//! Forgetting dead letters.

use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::TurnId;
use turnmill_schema::keys::Keys;

use super::script;
use crate::call::{Call, Step};

/// A dead letter of one shard.
#[derive(Clone, Copy, Debug)]
pub struct Letter<'a> {
    /// Its entry id in the stream of dead letters.
    pub entry: &'a str,
    /// Its turn.
    pub turn: TurnId,
}

/// Forgets dead letters, their turns and results. See `purge.lua`.
#[derive(Clone, Debug)]
pub struct Purge<'a> {
    /// Only while dead letters take more than this many bytes; none: all of them.
    pub over_bytes: Option<u64>,
    /// Which, oldest first.
    pub letters: Vec<Letter<'a>>,
}

impl Step for Purge<'_> {
    const NAME: &'static str = "purge";
    const SCRIPT: &'static str = script!(" flags=allow-oom" "purge.lua");
    /// How many were there.
    type Reply = u64;

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::new(keys);
        call.text(self.over_bytes.map(|bytes| bytes.to_string()).unwrap_or_default());
        for letter in &self.letters {
            call.keys([keys.turn(letter.turn), keys.result(letter.turn)]).text(letter.entry);
        }
        call
    }

    fn read(reply: Value) -> Result<u64, ParsingError> {
        u64::from_redis_value(reply)
    }
}
