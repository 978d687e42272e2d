//! Creating a consumer group of the stream of events.

use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::keys::Keys;

use crate::call::{Call, Step};

/// Creates a group if it is missing, on a full server too. See `group.lua`.
#[derive(Clone, Copy, Debug)]
pub struct CreateGroup<'a> {
    /// Its name: see [`turnmill_schema::keys::events_group`].
    pub group: &'a str,
    /// The entry after which it starts; `$`: with what comes from now on.
    pub after: &'a str,
}

impl Step for CreateGroup<'_> {
    const NAME: &'static str = "group";
    const SCRIPT: &'static str =
        concat!("#!lua flags=allow-oom\n", include_str!("info.lua"), include_str!("group.lua"));
    /// Whether it was created.
    type Reply = bool;

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::of_key(keys.events());
        call.text(self.group).text(self.after);
        call
    }

    fn read(reply: Value) -> Result<bool, ParsingError> {
        bool::from_redis_value(reply)
    }
}
