//! Giving agents that waited a ticket.

use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::AgentId;
use turnmill_schema::keys::Keys;

use super::{Attended, script};
use crate::call::{Call, Step};
use crate::shared_keys::waiting_keys;

/// Gives a ticket to those of the agents whose time has come, or for which their tenant has a place. See `promote.lua`.
#[derive(Clone, Debug)]
pub struct Promote<'a> {
    /// Turns of one tenant that may run at once in the shard; 0: no limit.
    pub tenant_max_running: u64,
    /// Agents that wait for a time are due now, whatever their time: an operator says so.
    pub now: bool,
    /// Agents that wait.
    pub agents: &'a [AgentId],
}

impl Step for Promote<'_> {
    const NAME: &'static str = "promote";
    const SCRIPT: &'static str = script!(" flags=allow-oom" "promote.lua");
    /// How many agents got a ticket.
    type Reply = Attended;

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::new(keys);
        call.text(self.tenant_max_running).text(u8::from(self.now));
        for agent in self.agents {
            call.keys(waiting_keys(keys, agent)).text(agent);
        }
        call
    }

    fn read(reply: Value) -> Result<Attended, ParsingError> {
        Attended::from_redis_value(reply)
    }
}
