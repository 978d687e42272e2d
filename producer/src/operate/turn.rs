//! One turn: what became of it, cancelling it, and running it now or again.

use redis::Value;
use redis::streams::StreamRangeReply;
use serde::Serialize;
use turnmill_schema::keys::{BacklogEntry, FIELD_AGENT, FIELD_END, FIELD_REPLY};
use turnmill_schema::scripts::{CANCEL, Call, PROMOTE, entry_keys};
use turnmill_schema::{AgentId, Delta, End, Event, Name, Outcome, Priority, TurnId};

use super::hash::Hash;
use super::{Operator, waiting_keys};
use crate::error::ProducerError;
use crate::stream_id::StreamId;

/// A turn as it is now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TurnView {
    /// The turn.
    pub turn: TurnId,
    /// Its tenant.
    pub tenant: String,
    /// Its agent; none for a turn that stands alone.
    pub agent: Option<Name>,
    /// `queued`, `leased` or `ended`.
    pub state: String,
    /// The agent's own state, until the turn ended: why a queued turn does not run.
    pub agent_state: Option<String>,
    /// Turns of its agent that end before it; none once it ended.
    pub behind: Option<u64>,
    /// Its priority.
    pub priority: Priority,
    /// When it was enqueued, in Unix milliseconds by Redis's clock.
    pub enqueued_ms: u64,
    /// It does not run before, in Unix milliseconds.
    pub not_before_ms: Option<u64>,
    /// It is not worth running after, in Unix milliseconds.
    pub deadline_ms: Option<u64>,
    /// Its idempotency key with its tenant.
    pub idempotency: Option<String>,
    /// Leases that count as attempts.
    pub attempts: u32,
    /// The epoch of its newest lease or of its end.
    pub epoch: Option<u64>,
    /// The worker that runs it or ended it.
    pub worker: Option<String>,
    /// Tokens published so far.
    pub published: u64,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// When it ended, in Unix milliseconds by Redis's clock.
    pub ended_ms: Option<u64>,
    /// Its terminal result.
    pub end: Option<End>,
}

/// What [`Operator::cancel_turn`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "status", content = "outcome")]
pub enum Cancelled {
    /// It is cancelled, now.
    Cancelled,
    /// It had ended before, in this way.
    Ended(Outcome),
}

/// What [`Operator::run_now`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunNow {
    /// It waited for a time and may be leased at once.
    Promoted,
    /// It ended: a dead letter can be replayed.
    Ended(Outcome),
    /// It does not wait for a time: it is queued behind others, runs, or its agent is held.
    NotDelayed,
}

const TURN_FIELDS: [&str; 9] =
    ["state", FIELD_AGENT, "entry", "deadline_ms", "attempts", "epoch", "outcome", FIELD_END, "ended_ms"];

impl Operator {
    /// The turn as it is now.
    pub async fn turn(&self, turn: TurnId) -> Result<TurnView, ProducerError> {
        let (hash, agent, entry) = self.read_turn(turn, &TURN_FIELDS).await?;
        let end = match hash.decoded::<Event>(FIELD_END)? {
            Some(Event::End(end)) => Some(end),
            _ => None,
        };
        let mut view = TurnView {
            turn,
            tenant: agent.tenant().to_owned(),
            agent: agent.agent(),
            state: hash.text("state").unwrap_or_default(),
            agent_state: None,
            behind: None,
            priority: entry.priority,
            enqueued_ms: entry.enqueued_ms,
            not_before_ms: Some(entry.not_before_ms).filter(|ms| *ms > 0),
            deadline_ms: hash.parsed("deadline_ms")?,
            idempotency: entry.idempotency.clone(),
            attempts: hash.parsed("attempts")?.unwrap_or(0),
            epoch: hash.parsed("epoch")?,
            worker: end.as_ref().and_then(|end| end.worker.clone()),
            published: self.published(turn).await?,
            outcome: end.as_ref().map(|end| end.outcome),
            ended_ms: hash.parsed("ended_ms")?,
            end,
        };
        if view.state != "ended" {
            self.add_agent(&mut view, &agent, &entry).await?;
        }
        Ok(view)
    }

    /// What the agent's keys say of a turn that has not ended.
    async fn add_agent(
        &self,
        view: &mut TurnView,
        agent: &AgentId,
        entry: &BacklogEntry,
    ) -> Result<(), ProducerError> {
        let keys = self.producer.queue.keys(view.turn.shard());
        let mut pipeline = redis::pipe();
        pipeline.cmd("HMGET").arg(keys.agent(agent)).arg(&["state", "owner"]);
        pipeline.cmd("LPOS").arg(keys.backlog(agent)).arg(entry.to_string());
        let ((state, owner), place): ((Option<String>, Option<String>), Option<u64>) =
            self.producer.connection.ask_all("reading an agent", &pipeline).await?;
        view.agent_state = state;
        view.behind = place;
        if view.state == "leased" {
            view.worker = owner.filter(|owner| !owner.is_empty());
        }
        Ok(())
    }

    /// Tokens of its reply, by the top of its result stream, or by its kept reply where the stream is gone.
    async fn published(&self, turn: TurnId) -> Result<u64, ProducerError> {
        let (turn_key, result_key) = self.producer.keys_of(turn);
        let mut pipeline = redis::pipe();
        pipeline.cmd("XREVRANGE").arg(result_key).arg("+").arg("-").arg("COUNT").arg(1);
        pipeline.add_command(Hash::command(&turn_key, &[FIELD_REPLY]));
        let (top, reply): (StreamRangeReply, Value) =
            self.producer.connection.ask_all("reading a result", &pipeline).await?;
        if let Some(top) = top.ids.first() {
            return Ok(top.id.parse::<StreamId>().map_or(0, |id| id.sequence));
        }
        let reply =
            self.hash(format!("turn {turn}"), &[FIELD_REPLY], reply)?.decoded::<Event>(FIELD_REPLY)?;
        Ok(match reply {
            Some(Event::Delta(Delta { index, tokens, .. })) => u64::from(index) + tokens.len() as u64,
            _ => 0,
        })
    }

    /// Cancels a turn, waiting or running. A running one has ended when this returns; its worker learns of it at once or
    /// with its next renewal. The object of a large turn is removed from the producer's store.
    pub async fn cancel_turn(&self, turn: TurnId) -> Result<Cancelled, ProducerError> {
        let (_, agent, entry) = self.read_turn(turn, &[FIELD_AGENT, "entry"]).await?;
        let objects = self.producer.objects_of(&[turn]).await?;
        let keys = self.producer.queue.keys(turn.shard());
        let mut call = Call::new(&keys);
        call.keys(entry_keys(&keys, &agent, &entry));
        let settings = &self.producer.settings;
        call.text(settings.result_ttl.as_millis())
            .text(settings.outcome_ttl.as_millis())
            .text(keys.notices());
        call.text(&agent).text(&entry);
        let status = self.status_of("cancel", CANCEL, &call).await?;
        match status.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["cancelled"] => {
                self.producer.remove_objects(&objects).await;
                Ok(Cancelled::Cancelled)
            }
            ["ended", outcome] => Ok(Cancelled::Ended(self.outcome_named(turn, outcome)?)),
            ["unknown"] => Err(self.unknown(turn)),
            _ => Err(self.unreadable("the answer to cancel".into(), format!("{status:?}"))),
        }
    }

    /// Lets a turn that waits for a time (a retry, or a schedule) run at once.
    pub async fn run_now(&self, turn: TurnId) -> Result<RunNow, ProducerError> {
        let (hash, agent, entry) = self.read_turn(turn, &["state", FIELD_AGENT, "entry", "outcome"]).await?;
        if hash.text("state").as_deref() == Some("ended") {
            let outcome = hash.text("outcome").unwrap_or_default();
            return Ok(RunNow::Ended(self.outcome_named(turn, &outcome)?));
        }
        let keys = self.producer.queue.keys(turn.shard());
        let mut head = redis::cmd("LINDEX");
        head.arg(keys.backlog(&agent)).arg(0);
        let head: Option<String> = self.producer.connection.ask("reading a backlog", &head).await?;
        if head != Some(entry.to_string()) {
            return Ok(RunNow::NotDelayed);
        }
        let mut due = redis::cmd("ZADD");
        due.arg(keys.delayed()).arg("XX").arg(0).arg(agent.as_str());
        let _changed: u64 = self.producer.connection.ask("retry", &due).await?;
        let mut call = Call::new(&keys);
        call.keys(waiting_keys(&keys, &agent));
        // One that waits for a place among its tenant's turns gets a ticket only where none of them runs.
        call.text(1).text(&agent);
        let promoted = self.producer.connection.script("retry", PROMOTE, &call).await?;
        let promoted: u64 = self.producer.connection.read("retry", promoted)?;
        Ok(if promoted == 1 { RunNow::Promoted } else { RunNow::NotDelayed })
    }

    /// Fields of the turn's hash, `agent` and `entry` among them.
    pub(super) async fn read_turn(
        &self,
        turn: TurnId,
        names: &[&'static str],
    ) -> Result<(Hash, AgentId, BacklogEntry), ProducerError> {
        let (key, _) = self.producer.keys_of(turn);
        let answer: Value =
            self.producer.connection.ask("reading a turn", &Hash::command(&key, names)).await?;
        let hash = self.hash(format!("turn {turn}"), names, answer)?;
        let agent = hash.text(FIELD_AGENT).map(AgentId::from_wire).ok_or_else(|| self.unknown(turn))?;
        let entry = hash.text("entry").and_then(|entry| BacklogEntry::parse(&entry)).ok_or_else(|| {
            hash.unreadable("entry", "it is missing or of another form, as another version writes it".into())
        })?;
        Ok((hash, agent, entry))
    }

    /// Reads an answer to [`Hash::command`].
    pub(super) fn hash(
        &self,
        what: String,
        names: &[&'static str],
        answer: Value,
    ) -> Result<Hash, ProducerError> {
        Hash::read(what.clone(), names, answer).map_err(|error| self.unreadable(what, error.to_string()))
    }

    fn outcome_named(&self, turn: TurnId, name: &str) -> Result<Outcome, ProducerError> {
        let all = Outcome::ALL;
        let found = all.into_iter().find(|outcome| outcome.as_str() == name);
        found.ok_or_else(|| self.unreadable(format!("the outcome of turn {turn}"), format!("it is {name:?}")))
    }

    pub(super) fn unknown(&self, turn: TurnId) -> ProducerError {
        ProducerError::UnknownTurn { turn, queue: self.producer.queue.name.to_string() }
    }

    pub(super) fn unreadable(&self, what: String, reason: String) -> ProducerError {
        ProducerError::Unreadable { what, reason }
    }
}
