//! The right to remove garbage from the object store.

use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::keys::Keys;

use crate::call::{Call, Step};

/// Takes, keeps or gives up the right to remove garbage of the queue. See `collector.lua`, which needs no other file.
#[derive(Clone, Debug)]
pub struct KeepCollector<'a> {
    /// Who the caller is; unlike any other process's name.
    pub holder: &'a str,
    /// How long to have it, in milliseconds; 0: give it up.
    pub for_ms: u64,
    /// Whether to take it if nobody has it.
    pub take: bool,
}

impl Step for KeepCollector<'_> {
    const NAME: &'static str = "collector";
    const SCRIPT: &'static str = concat!("#!lua flags=allow-oom\n", include_str!("collector.lua"));
    /// Who else has it; none: the caller does, or did. An empty text: nobody has it, and it was not to be taken.
    type Reply = Option<String>;

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::of_key(keys.collector());
        call.text(self.holder).text(self.for_ms).text(u8::from(self.take));
        call
    }

    fn read(reply: Value) -> Result<Option<String>, ParsingError> {
        Option::from_redis_value(reply)
    }
}
