//! Turns that workers have just now, and how far each got.
//!
//! A leased turn is found by its agent's ticket, which stays pending in a ready stream for as long as the lease lasts. So
//! what this costs grows with the limit that the caller gives, and neither with the backlog nor with the keys there are.

use redis::streams::{StreamPendingCountReply, StreamRangeReply};
use redis::{FromRedisValue, Pipeline, RedisResult, Value};
use turnmill_schema::keys::{BacklogEntry, FIELD_AGENT, GROUP, Keys};
use turnmill_schema::{AgentId, Priority};

use crate::fault::Fault;
use crate::hash::Hash;
use crate::published;
use crate::server::{Server, unreadable};
use crate::shared_keys::ready_keys;

/// What errors call this.
const STEP: &str = "reading running turns";
const AGENT_FIELDS: [&str; 2] = ["state", "owner"];
const TURN_FIELDS: [&str; 1] = ["attempts"];
/// Questions about one turn, in each of the two rounds.
const QUESTIONS: usize = 2;

/// A turn that a worker runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningRecord {
    /// Whose.
    pub agent: AgentId,
    /// The turn, as it stands in the agent's backlog.
    pub entry: BacklogEntry,
    /// The worker's consumer id.
    pub worker: Option<String>,
    /// Leases that count as attempts, this one included; none if that cannot be read.
    pub attempts: Option<u64>,
    /// Tokens of its reply that are published; none if that cannot be read.
    pub published: Option<u64>,
}

impl Server {
    /// Turns of a shard that workers run, at most `limit`: interactive ones first, and of each priority those whose agent was
    /// made runnable first.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn running(&self, keys: &Keys, limit: usize) -> Result<Vec<RunningRecord>, Fault> {
        let mut agents = Vec::new();
        for (stream, tickets) in ready_keys(keys).iter().zip(self.pending_of(keys, 0, limit).await?) {
            agents.extend(self.agents_of(stream, &tickets).await?);
        }
        agents.truncate(limit);
        let mut running = self.leased(keys, agents).await?;
        self.add_progress(keys, &mut running).await?;
        Ok(running)
    }

    /// How many tickets of a shard were delivered and not renewed for `idle_ms`; at most `limit` of each priority are counted.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn count_unrenewed(&self, keys: &Keys, idle_ms: u64, limit: usize) -> Result<usize, Fault> {
        Ok(self.pending_of(keys, idle_ms, limit).await?.iter().map(Vec::len).sum())
    }

    /// Tickets of each priority that are delivered and were not renewed for `idle_ms`.
    async fn pending_of(
        &self,
        keys: &Keys,
        idle_ms: u64,
        limit: usize,
    ) -> Result<[Vec<String>; Priority::ALL.len()], Fault> {
        let mut look = redis::pipe();
        // A stream that does not exist yet has no group either.
        look.ignore_errors();
        for stream in ready_keys(keys) {
            look.cmd("XPENDING").arg(stream).arg(GROUP).arg("IDLE").arg(idle_ms).arg("-").arg("+").arg(limit);
        }
        let answers: [RedisResult<Value>; Priority::ALL.len()] = self.ask_all(STEP, &look).await?;
        let mut found = [const { Vec::new() }; Priority::ALL.len()];
        for (found, answer) in found.iter_mut().zip(answers) {
            let pending = match answer {
                Err(error) if error.code() == Some("NOGROUP") => continue,
                answer => answer.and_then(|answer| Ok(StreamPendingCountReply::from_redis_value(answer)?)),
            };
            let pending = pending.map_err(|error| self.classify(STEP, &error))?;
            found.extend(pending.ids.into_iter().map(|ticket| ticket.id));
        }
        Ok(found)
    }

    /// Whose tickets they are; one that was acknowledged meanwhile is gone.
    async fn agents_of(&self, stream: &str, tickets: &[String]) -> Result<Vec<AgentId>, Fault> {
        if tickets.is_empty() {
            return Ok(Vec::new());
        }
        let mut look = redis::pipe();
        for ticket in tickets {
            look.cmd("XRANGE").arg(stream).arg(ticket).arg(ticket);
        }
        let found: Vec<StreamRangeReply> = self.ask_all(STEP, &look).await?;
        let agents = found.iter().filter_map(|ticket| ticket.ids.first()?.get::<String>(FIELD_AGENT));
        Ok(agents.map(AgentId::from_wire).collect())
    }

    /// The turns that run: a ticket may be read and not leased yet, or its turn requeued meanwhile.
    async fn leased(&self, keys: &Keys, agents: Vec<AgentId>) -> Result<Vec<RunningRecord>, Fault> {
        let mut look = redis::pipe();
        for agent in &agents {
            look.add_command(Hash::command(keys.agent(agent), &AGENT_FIELDS));
            look.cmd("LINDEX").arg(keys.backlog(agent)).arg(0);
        }
        let answers = self.answers(look, agents.len()).await?;
        let leased = agents.into_iter().zip(answers).filter_map(|(agent, [hash, head])| {
            let hash = Hash::read(&AGENT_FIELDS, hash.ok()?).ok()?;
            let head = Option::<String>::from_redis_value(head.ok()?).ok()??;
            let entry = BacklogEntry::parse(&head)?;
            let runs = hash.text("state").as_deref() == Some("leased");
            let worker = hash.text("owner");
            runs.then_some(RunningRecord { agent, entry, worker, attempts: None, published: None })
        });
        Ok(leased.collect())
    }

    /// How far each got, all read at one moment.
    async fn add_progress(&self, keys: &Keys, running: &mut [RunningRecord]) -> Result<(), Fault> {
        let mut look = redis::pipe();
        for RunningRecord { entry, .. } in &*running {
            look.add_command(published::command(keys.result(entry.turn)));
            look.add_command(Hash::command(keys.turn(entry.turn), &TURN_FIELDS));
        }
        let answers = self.answers(look, running.len()).await?;
        for (record, [newest, hash]) in running.iter_mut().zip(answers) {
            record.published = published_of(newest);
            record.attempts = attempts(hash);
        }
        Ok(())
    }

    /// Answers to [`QUESTIONS`] about each of `items`. One broken key must not hide the others.
    async fn answers(
        &self,
        mut look: Pipeline,
        items: usize,
    ) -> Result<Vec<[RedisResult<Value>; QUESTIONS]>, Fault> {
        if items == 0 {
            return Ok(Vec::new());
        }
        let answers: Vec<RedisResult<Value>> = self.ask_all(STEP, look.ignore_errors()).await?;
        if answers.len() != items * QUESTIONS {
            return Err(unreadable(STEP, &redis::ParsingError::from("it lacks answers").into()));
        }
        let mut answers = answers.into_iter();
        let mut next = || answers.next().unwrap_or(Ok(Value::Nil));
        Ok((0..items).map(|_| std::array::from_fn(|_| next())).collect())
    }
}

/// The newest entry of ours is the Begin of the lease, or what was published since; either tells.
fn published_of(newest: RedisResult<Value>) -> Option<u64> {
    published::of(&StreamRangeReply::from_redis_value(newest.ok()?).ok()?)
}

fn attempts(hash: RedisResult<Value>) -> Option<u64> {
    Hash::read(&TURN_FIELDS, hash.ok()?).ok()?.parsed("attempts").ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn what_cannot_be_read_is_none_and_not_nothing() {
        let newest = |id: &str| Ok(Value::Array(vec![published::entry(id, true)]));
        assert_eq!(published_of(newest("1700000000000-0")), Some(0), "a Begin");
        assert_eq!(published_of(newest("1700000000000-42")), Some(42));
        assert_eq!(published_of(Ok(Value::Array(Vec::new()))), None, "no stream");
        assert_eq!(published_of(Ok(Value::Int(7))), None, "another type");
        assert_eq!(attempts(Ok(Value::Array(vec![text("3")]))), Some(3));
        assert_eq!(attempts(Ok(Value::Array(vec![text("x")]))), None);
        assert_eq!(attempts(Ok(Value::Array(vec![Value::Nil]))), None);
    }
}
