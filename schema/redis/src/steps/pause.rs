//! Pausing the queue as a whole.

use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::keys::Keys;

use crate::call::{Call, Step};

/// Pauses the queue, or lets turns be leased again. See `pause.lua`, which needs no other file.
#[derive(Clone, Copy, Debug)]
pub struct Pause {
    /// Whether it is to be paused.
    pub paused: bool,
}

impl Step for Pause {
    const NAME: &'static str = "pause";
    const SCRIPT: &'static str = concat!("#!lua flags=allow-oom\n", include_str!("pause.lua"));
    /// Whether that changed anything.
    type Reply = bool;

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::of_key(keys.paused());
        call.text(u8::from(self.paused));
        call
    }

    fn read(reply: Value) -> Result<bool, ParsingError> {
        bool::from_redis_value(reply)
    }
}
