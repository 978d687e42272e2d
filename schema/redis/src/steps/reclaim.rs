//! Making agents runnable again whose worker fell silent.

use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::keys::Keys;
use turnmill_schema::{AgentId, Priority};

use super::{Attended, script};
use crate::call::{Call, Step};

/// Gives the agents of tickets that were not renewed for a whole lease new ones. See `reclaim.lua`.
#[derive(Clone, Debug)]
pub struct Reclaim {
    /// How long a silence ends a lease, in milliseconds.
    pub lease_ms: u64,
    /// Tickets that may be silent.
    pub tickets: Vec<SilentTicket>,
}

/// A ticket whose worker may have fallen silent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SilentTicket {
    /// Its entry id.
    pub entry: String,
    /// The ready stream it is in.
    pub priority: Priority,
    /// Its agent; none if the entry is gone and only its id is still pending.
    pub agent: Option<AgentId>,
}

impl Step for Reclaim {
    const NAME: &'static str = "reclaim";
    const SCRIPT: &'static str = script!(" flags=allow-oom" "reclaim.lua");
    /// The server's time in Unix milliseconds, and how many agents are runnable again.
    type Reply = (u64, Attended);

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::new(keys);
        call.text(self.lease_ms);
        for ticket in &self.tickets {
            let (agent_key, backlog) = match &ticket.agent {
                Some(agent) => (keys.agent(agent), keys.backlog(agent)),
                // Not looked at.
                None => (keys.open(), keys.open()),
            };
            call.keys([agent_key, backlog]);
            call.text(&ticket.entry).text(ticket.priority.as_str());
            call.text(ticket.agent.as_ref().map(ToString::to_string).unwrap_or_default());
        }
        call
    }

    fn read(reply: Value) -> Result<(u64, Attended), ParsingError> {
        FromRedisValue::from_redis_value(reply)
    }
}
