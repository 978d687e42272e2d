//! Beginning a sweep of a shard.

use redis::{ParsingError, Value};
use turnmill_schema::AgentId;
use turnmill_schema::keys::Keys;

use super::script;
use crate::call::{Call, Step};
use crate::reply::Parts;

/// Takes the right to sweep a shard for a while, and tells which agents are to be looked at. See `sweep.lua`.
#[derive(Clone, Copy, Debug)]
pub struct BeginSweep<'a> {
    /// The worker that sweeps.
    pub worker: &'a str,
    /// How long nobody else sweeps, in milliseconds; agents whose head is younger are left out.
    pub period_ms: u64,
    /// Agents to look at, at most.
    pub agents: usize,
}

impl Step for BeginSweep<'_> {
    const NAME: &'static str = "sweep";
    const SCRIPT: &'static str = script!(" flags=allow-oom" "sweep.lua");
    /// The agents; none while another worker has the right.
    type Reply = Option<Vec<AgentId>>;

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::new(keys);
        call.keys([keys.sweeper(), keys.sweep_cursor()]);
        call.text(self.worker).text(self.period_ms).text(self.agents);
        call
    }

    fn read(reply: Value) -> Result<Option<Vec<AgentId>>, ParsingError> {
        let mut parts = Parts::of(reply)?;
        let _now_ms: u64 = parts.next()?;
        let agents: Option<Vec<String>> = parts.next()?;
        Ok(agents.map(|agents| agents.into_iter().map(AgentId::from_wire).collect()))
    }
}
