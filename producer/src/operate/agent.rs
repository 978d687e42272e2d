//! Agents: what they wait for, and holding, letting go or resetting one.

use redis::{FromRedisValue, RedisResult, Value};
use serde::Serialize;
use turnmill_schema::keys::{BacklogEntry, Keys};
use turnmill_schema::scripts::{AGENT, AgentAction, Call, agent_call};
use turnmill_schema::{AgentId, Name, TurnId};

use super::hash::Hash;
use super::{Operator, Scope};
use crate::error::ProducerError;

/// Agents asked about in one pipeline.
const PAGE: usize = 200;
/// Questions about one agent.
const QUESTIONS: usize = 5;

/// An agent as it is now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AgentView {
    /// Its tenant.
    pub tenant: String,
    /// Its name; none for a turn that stands alone.
    pub agent: Option<Name>,
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
    /// Idle ones too. Reads through all keys of the server: slow where there are many.
    pub idle: bool,
    /// At most so many.
    pub limit: usize,
}

const FIELDS: [&str; 5] = ["state", "owner", "epoch", "hold", "on_dead"];

impl Operator {
    /// The tenant's agent of that name.
    pub async fn agent(&self, agent: &Name) -> Result<AgentView, ProducerError> {
        let (keys, id) = self.agent_keys(agent);
        let view = self.views(&keys, vec![id]).await?.pop().filter(|view| view.state != ABSENT);
        view.ok_or_else(|| self.unknown_agent(agent))
    }

    /// Agents with work, those longest without an end first; then idle ones, where asked for.
    pub async fn agents(&self, query: AgentQuery) -> Result<Vec<AgentView>, ProducerError> {
        let mut found = Vec::new();
        for keys in self.producer.queue.all_keys() {
            let ids =
                if query.idle { self.scan(&keys, query).await? } else { self.open(&keys, query).await? };
            for page in ids.chunks(PAGE) {
                found.extend(self.views(&keys, page.to_vec()).await?);
            }
        }
        found.retain(|view| view.state != ABSENT);
        found.sort_by_key(|view| std::cmp::Reverse(view.head_age_ms));
        found.truncate(query.limit);
        Ok(found)
    }

    /// Agents with work.
    async fn open(&self, keys: &Keys, query: AgentQuery) -> Result<Vec<AgentId>, ProducerError> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(keys.open()).arg(0).arg(-1);
        let ids: Vec<String> = self.producer.connection.ask("listing agents", &command).await?;
        let ids = ids.into_iter().map(AgentId::from_wire).filter(|id| self.covers(query.scope, id));
        Ok(ids.take(query.limit).collect())
    }

    /// Every agent that has a hash.
    async fn scan(&self, keys: &Keys, query: AgentQuery) -> Result<Vec<AgentId>, ProducerError> {
        let prefix = keys.agent(&AgentId::from_wire(String::new()));
        let (mut cursor, mut found) = (0_u64, std::collections::BTreeSet::new());
        loop {
            let mut command = redis::cmd("SCAN");
            command.arg(cursor).arg("MATCH").arg(format!("{prefix}*")).arg("COUNT").arg(1000);
            let (next, page): (u64, Vec<String>) =
                self.producer.connection.ask("listing agents", &command).await?;
            let ids = page.iter().filter_map(|key| key.strip_prefix(&prefix));
            let ids = ids.map(|id| AgentId::from_wire(id.to_owned()));
            found.extend(ids.filter(|id| self.covers(query.scope, id)));
            cursor = next;
            if cursor == 0 || found.len() >= query.limit {
                return Ok(found.into_iter().take(query.limit).collect());
            }
        }
    }

    /// Asks about agents of one shard.
    async fn views(&self, keys: &Keys, ids: Vec<AgentId>) -> Result<Vec<AgentView>, ProducerError> {
        let now_ms = self.now_ms().await?;
        let mut pipeline = redis::pipe();
        // One broken agent must not hide the others.
        pipeline.ignore_errors();
        for id in &ids {
            pipeline.add_command(Hash::command(&keys.agent(id), &FIELDS));
            pipeline.cmd("LINDEX").arg(keys.backlog(id)).arg(0);
            pipeline.cmd("LLEN").arg(keys.backlog(id));
            pipeline.cmd("LLEN").arg(keys.transcript(id));
            pipeline.cmd("ZSCORE").arg(keys.delayed()).arg(id.as_str());
        }
        let answers: Vec<RedisResult<Value>> =
            self.producer.connection.ask_all("reading agents", &pipeline).await?;
        let mut answers = answers.into_iter();
        let view = |id: AgentId| {
            let answers: RedisResult<Vec<Value>> =
                answers.by_ref().take(QUESTIONS).collect::<Vec<_>>().into_iter().collect();
            let view = answers.and_then(|answers| read_view(&id, now_ms, answers));
            view.unwrap_or_else(|_| nothing(&id, UNREADABLE))
        };
        Ok(ids.into_iter().map(view).collect())
    }

    /// Does it; the agent's state after.
    pub async fn act_on_agent(&self, agent: &Name, action: AgentAction) -> Result<String, ProducerError> {
        let (keys, id) = self.agent_keys(agent);
        self.call_agent(agent, |head| agent_call(&keys, &id, action, head)).await
    }

    /// Calls the script `agent` until the head that it was called with is the agent's; the agent's state after.
    pub(super) async fn call_agent(
        &self,
        agent: &Name,
        call: impl Fn(Option<&BacklogEntry>) -> Call,
    ) -> Result<String, ProducerError> {
        let mut head = None;
        // Every round but the last met another's progress, so this comes to an end.
        loop {
            let reply = self.producer.connection.script("agent", AGENT, &call(head.as_ref())).await?;
            let reply: Vec<String> = self.producer.connection.read("agent", reply)?;
            match reply.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["ok", state] => return Ok(state.to_owned()),
                ["head", ""] => head = None,
                ["head", text] => head = Some(self.entry(agent, text)?),
                ["busy"] => return Err(ProducerError::AgentBusy { agent: agent.to_string() }),
                ["changed"] => return Err(ProducerError::HistoryChanged { agent: agent.to_string() }),
                ["unknown"] => return Err(self.unknown_agent(agent)),
                _ => return Err(self.unreadable("the answer to agent".into(), format!("{reply:?}"))),
            }
        }
    }

    /// What a backlog is said to hold.
    fn entry(&self, agent: &Name, text: &str) -> Result<BacklogEntry, ProducerError> {
        let unreadable =
            || self.unreadable(format!("the backlog of agent {agent}"), format!("it holds {text:?}"));
        BacklogEntry::parse(text).ok_or_else(unreadable)
    }

    pub(super) fn unknown_agent(&self, agent: &Name) -> ProducerError {
        ProducerError::UnknownAgent {
            agent: agent.to_string(),
            tenant: self.producer.settings.tenant.to_string(),
            queue: self.producer.queue.name.to_string(),
        }
    }
}

/// An agent without a hash.
const ABSENT: &str = "absent";
/// An agent of which some key is of another type.
const UNREADABLE: &str = "unreadable";

fn nothing(id: &AgentId, state: &str) -> AgentView {
    AgentView {
        tenant: id.tenant().to_owned(),
        agent: id.agent(),
        state: state.to_owned(),
        hold: None,
        on_dead: "skip".to_owned(),
        head: None,
        head_age_ms: None,
        due_ms: None,
        backlog: 0,
        transcript: 0,
        worker: None,
        epoch: None,
    }
}

fn read_view(id: &AgentId, now_ms: u64, answers: Vec<Value>) -> RedisResult<AgentView> {
    let mut answers = answers.into_iter();
    let mut next = || answers.next().unwrap_or(Value::Nil);
    let hash = Hash::read(format!("agent {id}"), &FIELDS, next())?;
    let head = Option::<String>::from_redis_value(next())?.and_then(|head| BacklogEntry::parse(&head));
    let backlog = u64::from_redis_value(next())?;
    let transcript = u64::from_redis_value(next())?;
    let due_ms = Option::<f64>::from_redis_value(next())?.map(|due| due as u64);
    let unset = nothing(id, ABSENT);
    Ok(AgentView {
        state: hash.text("state").unwrap_or(unset.state),
        hold: hash.text("hold"),
        on_dead: hash.text("on_dead").unwrap_or(unset.on_dead),
        head: head.as_ref().map(|head| head.turn),
        head_age_ms: head.map(|head| now_ms.saturating_sub(head.enqueued_ms)),
        due_ms,
        backlog,
        transcript,
        worker: hash.text("owner"),
        epoch: hash.text("epoch").and_then(|epoch| epoch.parse().ok()),
        ..unset
    })
}
