//! Agents that wait for a time (a retry, a scheduled turn) or for a place among the running turns of their tenant.

use turnmill_schema::AgentId;
use turnmill_schema::keys::{DeadlineEntry, Keys, counter};

use crate::fault::Fault;
use crate::server::Server;

/// Who waits in a shard, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaitingAgents {
    /// The moment, in Unix milliseconds by the server's clock.
    pub now_ms: u64,
    /// The queue is paused: nothing is leased.
    pub paused: bool,
    /// Agents that are due now, those due first in front.
    pub due: Vec<AgentId>,
    /// About when somebody else is due or overdue, in Unix milliseconds.
    pub next_due_ms: Option<u64>,
    /// Turns whose deadline has passed; those that wait are to be ended.
    pub overdue: Vec<DeadlineEntry>,
    /// Some of the tenants that have agents waiting for a place, drawn at random.
    pub capped: Vec<CappedTenant>,
}

/// A tenant that has agents waiting for a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CappedTenant {
    /// Its name.
    pub tenant: String,
    /// Turns of it that run.
    pub leased: u64,
}

impl Server {
    /// Looks at who waits: about `agents` that are due and as many turns
    /// that are overdue, and `tenants` at their limit.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn waiting_agents(
        &self,
        keys: &Keys,
        agents: usize,
        tenants: usize,
    ) -> Result<WaitingAgents, Fault> {
        type Scored = Vec<(String, f64)>;
        type Answer = (bool, Scored, Scored, Vec<String>, (u64, u64));
        let mut look = redis::pipe();
        look.cmd("EXISTS").arg(keys.paused());
        look.cmd("ZRANGE").arg(keys.delayed()).arg(0).arg(agents).arg("WITHSCORES");
        look.cmd("ZRANGE").arg(keys.deadlines()).arg(0).arg(agents).arg("WITHSCORES");
        look.cmd("SRANDMEMBER").arg(keys.capped()).arg(tenants);
        look.cmd("TIME");
        let (paused, delayed, deadlines, capped, time): Answer = self.ask_all("waiting", &look).await?;
        let now_ms = self.note_time(time);
        let is_due = |(_, due_ms): &&(String, f64)| *due_ms <= now_ms as f64;
        let due: Vec<AgentId> =
            delayed.iter().take_while(is_due).map(|(agent, _)| AgentId::from_wire(agent.clone())).collect();
        let overdue: Vec<DeadlineEntry> =
            deadlines.iter().take_while(is_due).filter_map(|(text, _)| DeadlineEntry::parse(text)).collect();
        let later = [&delayed, &deadlines]
            .into_iter()
            .filter_map(|waiting| waiting.iter().find(|entry| !is_due(entry)));
        let next_due_ms = later.map(|(_, due_ms)| *due_ms as u64).min();
        let capped = self.leased_of(keys, capped).await?;
        Ok(WaitingAgents { now_ms, paused, due, next_due_ms, overdue, capped })
    }

    /// Whether the queue is paused.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn is_paused(&self, keys: &Keys) -> Result<bool, Fault> {
        self.ask("waiting", redis::cmd("EXISTS").arg(keys.paused())).await
    }

    /// How many turns of each tenant run.
    async fn leased_of(&self, keys: &Keys, tenants: Vec<String>) -> Result<Vec<CappedTenant>, Fault> {
        if tenants.is_empty() {
            return Ok(Vec::new());
        }
        let mut counts = redis::cmd("HMGET");
        counts.arg(keys.counters());
        for tenant in &tenants {
            counts.arg(counter::tenant_leased(tenant));
        }
        let counts: Vec<Option<u64>> = self.ask("waiting", &counts).await?;
        let of =
            |(tenant, leased): (String, Option<u64>)| CappedTenant { tenant, leased: leased.unwrap_or(0) };
        Ok(tenants.into_iter().zip(counts).map(of).collect())
    }

    /// Agents of a tenant that wait for a place, those that came first in front; at most `count`.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn parked_agents(
        &self,
        keys: &Keys,
        tenant: &str,
        count: usize,
    ) -> Result<Vec<AgentId>, Fault> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut list = redis::cmd("ZRANGE");
        list.arg(keys.parked(tenant)).arg(0).arg(count - 1);
        let agents: Vec<String> = self.ask("waiting", &list).await?;
        Ok(agents.into_iter().map(AgentId::from_wire).collect())
    }

    /// The oldest entries of the list of ended turns, as they are there: anybody may write there by mistake. At most `count`.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn oldest_ended(&self, keys: &Keys, count: usize) -> Result<Vec<Vec<u8>>, Fault> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut oldest = redis::cmd("LRANGE");
        oldest.arg(keys.ended()).arg(0).arg(count - 1);
        self.ask("trim", &oldest).await
    }
}
