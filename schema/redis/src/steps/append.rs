//! Publishing a delta on a full server.

use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::TurnId;
use turnmill_schema::keys::Keys;

use crate::call::{Call, Step};

/// Publishes a delta where Redis is full: what runs must come to its end for memory to get free. Anywhere else a plain XADD
/// does the same ([`crate::Server::append`]). See `append.lua`, which needs no other file.
#[derive(Clone, Debug)]
pub struct AppendAnyway<'a> {
    /// Whose result.
    pub turn: TurnId,
    /// The entry's id.
    pub id: String,
    /// The event in its envelope.
    pub event: &'a [u8],
    /// When it was made, in Unix milliseconds.
    pub at_ms: u64,
}

impl Step for AppendAnyway<'_> {
    const NAME: &'static str = "append";
    const SCRIPT: &'static str = concat!("#!lua flags=allow-oom\n", include_str!("append.lua"));
    /// The entry's id; none if there is no stream.
    type Reply = Option<String>;

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::of_key(keys.result(self.turn));
        call.text(&self.id).arg(self.event).text(self.at_ms);
        call
    }

    fn read(reply: Value) -> Result<Option<String>, ParsingError> {
        Option::from_redis_value(reply)
    }
}
