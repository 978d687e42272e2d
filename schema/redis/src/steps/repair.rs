//! Giving agents whose ticket was lost a new one.

use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::AgentId;
use turnmill_schema::keys::Keys;

use super::{Attended, script};
use crate::call::{Call, Step};
use crate::shared_keys::waiting_keys;

/// Gives a new ticket to those of the agents whose state says that somebody sees to them, and nobody does. See `repair.lua`.
#[derive(Clone, Debug)]
pub struct Repair<'a> {
    /// Agents with work.
    pub agents: &'a [AgentId],
}

impl Step for Repair<'_> {
    const NAME: &'static str = "repair";
    const SCRIPT: &'static str = script!(" flags=allow-oom" "info.lua" "repair.lua");
    /// How many agents got a new ticket.
    type Reply = Attended;

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::new(keys);
        for agent in self.agents {
            call.keys(waiting_keys(keys, agent)).text(agent);
        }
        call
    }

    fn read(reply: Value) -> Result<Attended, ParsingError> {
        Attended::from_redis_value(reply)
    }
}
