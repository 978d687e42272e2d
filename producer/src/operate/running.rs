//! Turns that workers hold just now, and how far each got.
//!
//! A held turn is found by its agent's ticket, which stays pending in a ready stream for as long as the lease lasts. So
//! what this costs grows with the limit that the caller gives, and neither with the backlog nor with the keys there are.

use redis::streams::{StreamPendingCountReply, StreamRangeReply};
use redis::{FromRedisValue, RedisResult, Value};
use serde::Serialize;
use turnmill_schema::keys::{BacklogEntry, FIELD_AGENT, GROUP, Keys};
use turnmill_schema::scripts::ready_keys;
use turnmill_schema::{AgentId, Name, Priority, TurnId};

use super::Operator;
use super::hash::Hash;
use crate::error::ProducerError;
use crate::stream_id::StreamId;

/// What errors call this.
const STEP: &str = "reading running turns";
/// Fields of an agent's hash.
const AGENT_FIELDS: [&str; 2] = ["state", "owner"];
/// Fields of a turn's hash.
const TURN_FIELDS: [&str; 1] = ["attempts"];
/// Questions about one turn, in each of the two rounds.
const QUESTIONS: usize = 2;

/// A turn that a worker holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunningTurn {
    /// The turn.
    pub turn: TurnId,
    /// Its tenant.
    pub tenant: String,
    /// Its agent; none for a turn that stands alone.
    pub agent: Option<Name>,
    /// Its priority.
    pub priority: Priority,
    /// The consumer id of the worker that holds it.
    pub worker: Option<String>,
    /// Milliseconds since it was enqueued.
    pub age_ms: u64,
    /// Leases that count as attempts, this one included; none where that cannot be read.
    pub attempts: Option<u64>,
    /// Tokens of its reply that are published; none where that cannot be read.
    pub published: Option<u64>,
}

/// Turns that workers hold, as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Running {
    /// The moment, in Unix milliseconds by the server's clock.
    pub read_ms: u64,
    /// The turns: interactive ones first, and of each priority those whose agent was made runnable first.
    pub turns: Vec<RunningTurn>,
}

/// An agent that a worker holds.
struct Held {
    keys: Keys,
    priority: Priority,
    agent: AgentId,
}

/// The turn that its worker runs.
struct Leased {
    held: Held,
    worker: Option<String>,
    entry: BacklogEntry,
}

impl Operator {
    /// Turns of all tenants that workers hold, at most `limit` of them.
    pub async fn running(&self, limit: usize) -> Result<Running, ProducerError> {
        let mut held = Vec::new();
        for keys in self.producer.queue.all_keys() {
            for (priority, stream) in Priority::ALL.into_iter().zip(ready_keys(&keys)) {
                let agents = self.pending_agents(&stream, limit).await?;
                held.extend(agents.into_iter().map(|agent| Held { keys: keys.clone(), priority, agent }));
            }
        }
        held.truncate(limit);
        let leased = self.leased(held).await?;
        self.progress(leased).await
    }

    /// Agents whose tickets are delivered and not acknowledged.
    async fn pending_agents(&self, stream: &str, limit: usize) -> Result<Vec<AgentId>, ProducerError> {
        let mut pending = redis::pipe();
        // A stream that does not exist yet has no group either.
        pending.ignore_errors();
        pending.cmd("XPENDING").arg(stream).arg(GROUP).arg("-").arg("+").arg(limit);
        let mut answers: Vec<RedisResult<Value>> = self.producer.connection.ask_all(STEP, &pending).await?;
        let pending: StreamPendingCountReply = match answers.pop() {
            Some(Ok(answer)) => self.producer.connection.read(STEP, answer)?,
            Some(Err(error)) if error.code() != Some("NOGROUP") => {
                return Err(self.producer.connection.failure(STEP, &error));
            }
            _ => return Ok(Vec::new()),
        };
        if pending.ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut tickets = redis::pipe();
        for entry in &pending.ids {
            tickets.cmd("XRANGE").arg(stream).arg(&entry.id).arg(&entry.id);
        }
        let tickets: Vec<StreamRangeReply> = self.producer.connection.ask_all(STEP, &tickets).await?;
        // A ticket that was acknowledged meanwhile is gone.
        let agents = tickets.iter().filter_map(|ticket| ticket.ids.first()?.get::<String>(FIELD_AGENT));
        Ok(agents.map(AgentId::from_wire).collect())
    }

    /// The turns that run: a ticket may be read and not leased yet, or requeued meanwhile.
    async fn leased(&self, held: Vec<Held>) -> Result<Vec<Leased>, ProducerError> {
        let mut pipeline = redis::pipe();
        // One broken agent must not hide the others.
        pipeline.ignore_errors();
        for Held { keys, agent, .. } in &held {
            pipeline.add_command(Hash::command(&keys.agent(agent), &AGENT_FIELDS));
            pipeline.cmd("LINDEX").arg(keys.backlog(agent)).arg(0);
        }
        let answers = self.answers(&pipeline, held.len()).await?;
        let leased = held.into_iter().zip(answers).filter_map(|(held, [hash, head])| {
            let hash = Hash::read(format!("agent {}", held.agent), &AGENT_FIELDS, hash.ok()?).ok()?;
            let head = Option::<String>::from_redis_value(head.ok()?).ok()??;
            let entry = BacklogEntry::parse(&head)?;
            let runs = hash.text("state").as_deref() == Some("leased");
            runs.then(|| Leased { held, worker: hash.text("owner"), entry })
        });
        Ok(leased.collect())
    }

    /// How far each got, all read at one moment.
    async fn progress(&self, leased: Vec<Leased>) -> Result<Running, ProducerError> {
        let read_ms = self.now_ms().await?;
        let mut pipeline = redis::pipe();
        pipeline.ignore_errors();
        for Leased { held, entry, .. } in &leased {
            let (turn, result) = (held.keys.turn(entry.turn), held.keys.result(entry.turn));
            pipeline.cmd("XREVRANGE").arg(result).arg("+").arg("-").arg("COUNT").arg(1);
            pipeline.add_command(Hash::command(&turn, &TURN_FIELDS));
        }
        let answers = self.answers(&pipeline, leased.len()).await?;
        let turns = leased.into_iter().zip(answers);
        Ok(Running {
            read_ms,
            turns: turns.map(|(leased, answers)| view(leased, read_ms, answers)).collect(),
        })
    }

    /// Answers to [`QUESTIONS`] about each of `items`.
    async fn answers(
        &self,
        pipeline: &redis::Pipeline,
        items: usize,
    ) -> Result<Vec<[RedisResult<Value>; QUESTIONS]>, ProducerError> {
        if items == 0 {
            return Ok(Vec::new());
        }
        let answers: Vec<RedisResult<Value>> = self.producer.connection.ask_all(STEP, pipeline).await?;
        let mut answers = answers.into_iter();
        let mut next = || answers.next().unwrap_or(Ok(Value::Nil));
        Ok((0..items).map(|_| std::array::from_fn(|_| next())).collect())
    }
}

fn view(leased: Leased, read_ms: u64, [top, hash]: [RedisResult<Value>; QUESTIONS]) -> RunningTurn {
    let Leased { held, worker, entry } = leased;
    RunningTurn {
        turn: entry.turn,
        tenant: held.agent.tenant().to_owned(),
        agent: held.agent.agent(),
        priority: held.priority,
        worker,
        age_ms: read_ms.saturating_sub(entry.enqueued_ms),
        attempts: attempts(entry.turn, hash),
        published: published(top),
    }
}

/// The top of a result stream is the Begin of the lease, or what was published since; either tells.
fn published(top: RedisResult<Value>) -> Option<u64> {
    let top = StreamRangeReply::from_redis_value(top.ok()?).ok()?;
    top.ids.first()?.id.parse::<StreamId>().ok().map(|id| id.sequence)
}

fn attempts(turn: TurnId, hash: RedisResult<Value>) -> Option<u64> {
    Hash::read(format!("turn {turn}"), &TURN_FIELDS, hash.ok()?).ok()?.parsed("attempts").ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn what_cannot_be_read_is_none_and_not_nothing() {
        let top = |id: &str| Ok(Value::Array(vec![Value::Array(vec![text(id), Value::Array(Vec::new())])]));
        assert_eq!(published(top("1700000000000-0")), Some(0), "a Begin");
        assert_eq!(published(top("1700000000000-42")), Some(42));
        assert_eq!(published(top("nonsense")), None);
        assert_eq!(published(Ok(Value::Array(Vec::new()))), None, "no stream");
        assert_eq!(published(Ok(Value::Int(7))), None, "another type");
        let turn = TurnId::new(0);
        assert_eq!(attempts(turn, Ok(Value::Array(vec![text("3")]))), Some(3));
        assert_eq!(attempts(turn, Ok(Value::Array(vec![text("x")]))), None);
        assert_eq!(attempts(turn, Ok(Value::Array(vec![Value::Nil]))), None);
    }
}
