//! Agents as their keys show them.

use redis::{FromRedisValue, RedisResult, Value};
use turnmill_schema::AgentId;
use turnmill_schema::keys::{BacklogEntry, Keys};

use crate::fault::Fault;
use crate::hash::Hash;
use crate::server::Server;

/// What errors call this.
const STEP: &str = "reading agents";
/// Questions about one agent.
const QUESTIONS: usize = 5;
const FIELDS: [&str; 5] = ["state", "owner", "epoch", "hold", "on_dead"];

/// Agents with work that are listed in one answer.
const PAGE: usize = 1000;

/// Where a page of the agents with work begins. A place among others in the list would move when an agent in front of it has
/// no more work, and the next page would leave agents out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WorkPlace {
    /// When the heads were enqueued that the page begins with, in Unix milliseconds.
    enqueued_ms: f64,
    /// How many of those agents were on pages before.
    passed: usize,
}

impl WorkPlace {
    /// Where the page after this one begins, which has these agents; none if it is not full, so that nothing follows.
    fn after(self, page: &[(String, f64)], full: usize) -> Option<Self> {
        let (_, enqueued_ms) = *page.last().filter(|_| page.len() >= full)?;
        let alike = page.iter().filter(|(_, ms)| *ms == enqueued_ms).count();
        let before = if enqueued_ms == self.enqueued_ms { self.passed } else { 0 };
        Some(Self { enqueued_ms, passed: before + alike })
    }
}

/// An agent as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentRecord {
    /// `idle`, `ready`, `leased`, `delayed`, `parked` (its tenant runs as many turns as it may), `paused` or `halted` (by a
    /// dead letter).
    pub state: String,
    /// What it will be once the turn that runs ends: `paused`.
    pub hold: Option<String>,
    /// What a dead letter does to its later turns: `skip` to them, or `halt`; none: skip.
    pub on_dead: Option<String>,
    /// Its next or running turn.
    pub head: Option<BacklogEntry>,
    /// When it is looked at again, in Unix milliseconds, if it is delayed.
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

/// What was found of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentFound {
    /// It is there.
    There(Box<AgentRecord>),
    /// It has no state: there is no such agent.
    Absent,
    /// One of its keys is of another type.
    Unreadable,
}

impl Server {
    /// A page of the agents with work, those whose head was enqueued first in front, and where the next page begins. An agent
    /// that gets another head between two pages may be in both.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn agents_with_work(
        &self,
        keys: &Keys,
        from: WorkPlace,
    ) -> Result<(Vec<AgentId>, Option<WorkPlace>), Fault> {
        let mut list = redis::cmd("ZRANGE");
        list.arg(keys.open()).arg(from.enqueued_ms).arg("+inf").arg("BYSCORE");
        list.arg("LIMIT").arg(from.passed).arg(PAGE).arg("WITHSCORES");
        let found: Vec<(String, f64)> = self.ask("listing agents", &list).await?;
        let next = from.after(&found, PAGE);
        Ok((found.into_iter().map(|(agent, _)| AgentId::from_wire(agent)).collect(), next))
    }

    /// Agents of a shard as they are now, one answer for each, in order.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn agents(&self, keys: &Keys, agents: &[AgentId]) -> Result<Vec<AgentFound>, Fault> {
        if agents.is_empty() {
            return Ok(Vec::new());
        }
        let mut look = redis::pipe();
        // One broken agent must not hide the others.
        look.ignore_errors();
        for agent in agents {
            look.add_command(Hash::command(keys.agent(agent), &FIELDS));
            look.cmd("LINDEX").arg(keys.backlog(agent)).arg(0);
            look.cmd("LLEN").arg(keys.backlog(agent));
            look.cmd("LLEN").arg(keys.transcript(agent));
            look.cmd("ZSCORE").arg(keys.delayed()).arg(agent.as_str());
        }
        let mut answers = self.ask_all::<Vec<RedisResult<Value>>>(STEP, &look).await?.into_iter();
        let read = |_| {
            let answers: RedisResult<Vec<Value>> = answers.by_ref().take(QUESTIONS).collect();
            answers.and_then(read_agent).unwrap_or(AgentFound::Unreadable)
        };
        Ok(agents.iter().map(read).collect())
    }

    /// The head of an agent's backlog.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn agent_head(&self, keys: &Keys, agent: &AgentId) -> Result<Option<BacklogEntry>, Fault> {
        let mut head = redis::cmd("LINDEX");
        head.arg(keys.backlog(agent)).arg(0);
        let head: Option<String> = self.ask("reading a backlog", &head).await?;
        Ok(head.and_then(|text| BacklogEntry::parse(&text)))
    }
}

fn read_agent(answers: Vec<Value>) -> RedisResult<AgentFound> {
    let mut answers = answers.into_iter();
    let mut next = || answers.next().unwrap_or(Value::Nil);
    let hash = Hash::read(&FIELDS, next())?;
    let head = Option::<String>::from_redis_value(next())?.and_then(|head| BacklogEntry::parse(&head));
    let (backlog, transcript) = (u64::from_redis_value(next())?, u64::from_redis_value(next())?);
    let due_ms = Option::<f64>::from_redis_value(next())?.map(|due| due as u64);
    let Some(state) = hash.text("state") else { return Ok(AgentFound::Absent) };
    Ok(AgentFound::There(Box::new(AgentRecord {
        state,
        hold: hash.text("hold"),
        on_dead: hash.text("on_dead"),
        head,
        due_ms,
        backlog,
        transcript,
        worker: hash.text("owner"),
        epoch: hash.text("epoch").and_then(|epoch| epoch.parse().ok()),
    })))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Agents whose heads were enqueued at the same time, and times that fill a page and more: each agent is listed once,
        /// in order.
        #[test]
        fn pages_have_every_agent_once(mut times in prop::collection::vec(0_u32..6, 0..40), full in 1_usize..7) {
            times.sort_unstable();
            let agents: Vec<(String, f64)> =
                times.iter().enumerate().map(|(place, ms)| (place.to_string(), f64::from(*ms))).collect();
            let (mut listed, mut from) = (Vec::new(), Some(WorkPlace::default()));
            while let Some(place) = from {
                let later = agents.iter().filter(|(_, ms)| *ms >= place.enqueued_ms);
                let page: Vec<_> = later.skip(place.passed).take(full).cloned().collect();
                from = place.after(&page, full);
                listed.extend(page);
                prop_assert!(listed.len() <= agents.len(), "{listed:?}");
            }
            prop_assert_eq!(listed, agents);
        }
    }
}
