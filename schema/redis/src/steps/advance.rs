//! Commits a manifest during or after a lease.

use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::AgentId;
use turnmill_schema::keys::Keys;

use crate::call::{Call, Step};

/// Says what is stored of the agent's K and V, as of the lease of `epoch`. See `advance.lua`, which needs no other file.
#[derive(Clone, Debug)]
pub struct Advance<'a> {
    /// Whose.
    pub agent: &'a AgentId,
    /// Of the lease.
    pub epoch: u64,
    /// The manifest in its envelope.
    pub manifest: Vec<u8>,
}

impl Step for Advance<'_> {
    const NAME: &'static str = "advance";
    const SCRIPT: &'static str = concat!("#!lua flags=allow-oom\n", include_str!("advance.lua"));
    /// Whether it was written; it is ignored if it comes too late.
    type Reply = bool;

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::of_key(keys.agent(self.agent));
        call.text(self.epoch).arg(self.manifest.clone());
        call
    }

    fn read(reply: Value) -> Result<bool, ParsingError> {
        bool::from_redis_value(reply)
    }
}
