//! Making a ticket that was read but not leased readable by others at once.

use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::keys::Keys;
use turnmill_schema::{AgentId, Priority};

use super::script;
use crate::call::{Call, Step};

/// Returns a ticket. See `return_ticket.lua`.
#[derive(Clone, Copy, Debug)]
pub struct ReturnTicket<'a> {
    /// The worker that has it.
    pub worker: &'a str,
    /// Whose it is.
    pub agent: &'a AgentId,
    /// Its entry id.
    pub ticket: &'a str,
    /// The ready stream it came from.
    pub priority: Priority,
}

impl Step for ReturnTicket<'_> {
    const NAME: &'static str = "return_ticket";
    const SCRIPT: &'static str = script!(" flags=allow-oom" "return_ticket.lua");
    /// Whether it was the worker's.
    type Reply = bool;

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::new(keys);
        call.keys([keys.agent(self.agent), keys.backlog(self.agent)]);
        call.text(self.agent).text(self.ticket).text(self.priority.as_str()).text(self.worker);
        call
    }

    fn read(reply: Value) -> Result<bool, ParsingError> {
        bool::from_redis_value(reply)
    }
}
