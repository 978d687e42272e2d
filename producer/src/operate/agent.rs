//! Agents: what they wait for, and holding, letting go or resetting one.

use std::collections::{BTreeSet, HashSet};

use serde::Serialize;
use turnmill_redis::steps::{ActOnAgent, AgentActed};
use turnmill_redis::{AgentFound, AgentRecord, WorkPlace};
use turnmill_schema::keys::{BacklogEntry, Keys};
use turnmill_schema::{AgentId, AgentName, TurnId};

use super::{Operator, Scope};
use crate::error::ClientError;

pub use turnmill_redis::steps::AgentAction;

/// Agents asked about in one pipeline.
const PAGE: usize = 200;

/// An agent as it is now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AgentView {
    /// Its tenant.
    pub tenant: String,
    /// Its name; none for a turn that stands alone.
    pub agent: Option<AgentName>,
    /// `idle`, `ready`, `leased`, `delayed`, `parked` (its tenant runs as many turns as it may), `paused`, `halted`
    /// (by a dead letter), or `unreadable`.
    pub state: String,
    /// What it will be once the turn that runs ends: `paused`.
    pub hold: Option<String>,
    /// What a dead letter does to its later turns: `skip` to them, or `halt`.
    pub on_dead: String,
    /// Its next or running turn.
    pub head: Option<TurnId>,
    /// Milliseconds since that turn was enqueued.
    pub head_age_ms: Option<u64>,
    /// When it is looked at again, in Unix milliseconds; for those that are delayed.
    pub due_ms: Option<u64>,
    /// Turns that have not ended.
    pub backlog: u64,
    /// Completed turns in its history.
    pub transcript: u64,
    /// The worker that has it.
    pub worker: Option<String>,
    /// The epoch of its newest lease.
    pub epoch: Option<u64>,
}

/// Which agents to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentQuery {
    /// Of which tenants.
    pub scope: Scope,
    /// Idle ones too, if there is room for them beside those with work. Reads through all keys of the server: slow if there are
    /// many.
    pub idle: bool,
    /// The most agents that are listed.
    pub limit: usize,
}

impl Operator {
    /// The tenant's agent of that name.
    pub async fn agent(&self, agent: &AgentName) -> Result<AgentView, ClientError> {
        let (keys, id) = self.agent_keys(agent);
        let view = self.views(&keys, &[id]).await?.pop();
        view.ok_or_else(|| self.client.unknown_agent(agent))
    }

    /// Agents with work, those longest without an end first; then idle ones, where asked for.
    pub async fn agents(&self, query: AgentQuery) -> Result<Vec<AgentView>, ClientError> {
        let mut found = Vec::new();
        for keys in self.client.queue.all_keys() {
            let mut ids = self.open(&keys, query).await?;
            if query.idle {
                self.add_idle(&keys, query, &mut ids).await?;
            }
            for page in ids.chunks(PAGE) {
                found.extend(self.views(&keys, page).await?);
            }
        }
        found.sort_by_key(|view| std::cmp::Reverse(view.head_age_ms));
        found.truncate(query.limit);
        Ok(found)
    }

    /// Agents with work.
    async fn open(&self, keys: &Keys, query: AgentQuery) -> Result<Vec<AgentId>, ClientError> {
        let (mut listed, mut found) = (HashSet::new(), Vec::new());
        let mut next = Some(WorkPlace::default());
        while let Some(from) = next.filter(|_| found.len() < query.limit) {
            let (page, after) = self.redis().ask(|server| server.agents_with_work(keys, from)).await?;
            let covered = page.into_iter().filter(|agent| self.covers(query, agent));
            found.extend(covered.filter(|agent| listed.insert(agent.clone())));
            next = after;
        }
        found.truncate(query.limit);
        Ok(found)
    }

    /// Fills up the agents with work, which are listed whatever their place in the scan, with others that have a hash.
    async fn add_idle(
        &self,
        keys: &Keys,
        query: AgentQuery,
        listed: &mut Vec<AgentId>,
    ) -> Result<(), ClientError> {
        let with_work: HashSet<AgentId> = listed.iter().cloned().collect();
        let room = query.limit.saturating_sub(listed.len());
        let prefix = keys.agent(&AgentId::from_wire(String::new()));
        let (mut scan, mut found) = (self.redis().server().scan(format!("{prefix}*")), BTreeSet::new());
        while found.len() < room
            && let Some(page) = self.redis().next_page(&mut scan).await?
        {
            let agents = page.iter().filter_map(|key| key.strip_prefix(&prefix));
            let agents = agents.map(|agent| AgentId::from_wire(agent.to_owned()));
            found.extend(agents.filter(|agent| self.covers(query, agent) && !with_work.contains(agent)));
        }
        listed.extend(found.into_iter().take(room));
        Ok(())
    }

    fn covers(&self, query: AgentQuery, agent: &AgentId) -> bool {
        query.scope.covers(&self.client.settings.tenant, agent.tenant())
    }

    /// Agents of one shard, without those that are not there.
    async fn views(&self, keys: &Keys, agents: &[AgentId]) -> Result<Vec<AgentView>, ClientError> {
        let now_ms = self.now_ms().await?;
        let found = self.redis().ask(|server| server.agents(keys, agents)).await?;
        let view = |(agent, found): (&AgentId, AgentFound)| match found {
            AgentFound::There(record) => Some(view(agent, now_ms, *record)),
            AgentFound::Unreadable => Some(unreadable(agent)),
            AgentFound::Absent => None,
        };
        Ok(agents.iter().zip(found).filter_map(view).collect())
    }

    /// Does it; the agent's state after.
    pub async fn act_on_agent(&self, agent: &AgentName, action: AgentAction) -> Result<String, ClientError> {
        let (keys, id) = self.agent_keys(agent);
        let mut head: Option<BacklogEntry> = None;
        // Every round but the last met another's progress, so this comes to an end.
        loop {
            let step = ActOnAgent { agent: &id, action, head: head.as_ref() };
            head = match self.redis().run(&keys, &step).await? {
                AgentActed::Done(state) => return Ok(state),
                AgentActed::Head(head) => head,
                AgentActed::Busy => return Err(ClientError::AgentBusy { agent: agent.to_string() }),
                AgentActed::Changed => {
                    return Err(ClientError::HistoryChanged { agent: agent.to_string() });
                }
                AgentActed::Unknown => return Err(self.client.unknown_agent(agent)),
            };
        }
    }
}

fn view(id: &AgentId, now_ms: u64, record: AgentRecord) -> AgentView {
    let AgentRecord { state, hold, on_dead, head, due_ms, backlog, transcript, worker, epoch } = record;
    AgentView {
        tenant: id.tenant().to_owned(),
        agent: id.agent(),
        state,
        hold,
        on_dead: on_dead.unwrap_or_else(|| "skip".to_owned()),
        head: head.as_ref().map(|head| head.turn),
        head_age_ms: head.map(|head| now_ms.saturating_sub(head.enqueued_ms)),
        due_ms,
        backlog,
        transcript,
        worker,
        epoch,
    }
}

/// An agent of which some key is of another type.
fn unreadable(id: &AgentId) -> AgentView {
    let nothing = AgentRecord {
        state: "unreadable".to_owned(),
        hold: None,
        on_dead: None,
        head: None,
        due_ms: None,
        backlog: 0,
        transcript: 0,
        worker: None,
        epoch: None,
    };
    view(id, 0, nothing)
}
