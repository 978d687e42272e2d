//! Turns as their keys show them.

use redis::streams::StreamRangeReply;
use redis::{ParsingError, RedisResult, Value};
use turnmill_schema::keys::{BacklogEntry, FIELD_AGENT, FIELD_END, FIELD_ENVELOPE, FIELD_REPLY, Keys};
use turnmill_schema::{AgentId, End, Event, TurnId};

use crate::fault::{Fault, unquoted};
use crate::hash::Hash;
use crate::published;
use crate::server::Server;

/// What errors call this.
const STEP: &str = "reading a turn";
const FIELD_ENTRY: &str = "entry";
const PLACE_FIELDS: [&str; 2] = [FIELD_AGENT, FIELD_ENTRY];
const FIELDS: [&str; 9] = [
    FIELD_AGENT,
    FIELD_ENTRY,
    FIELD_END,
    FIELD_REPLY,
    "state",
    "deadline_ms",
    "attempts",
    "epoch",
    "ended_ms",
];

/// Where a turn belongs: what steps must know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnPlace {
    /// Whose it is.
    pub agent: AgentId,
    /// Its entry in the agent's backlog; it stays the same after the turn ended.
    pub entry: BacklogEntry,
}

/// A turn as it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct TurnRecord {
    /// Where it belongs.
    pub place: TurnPlace,
    /// `queued`, `leased` or `ended`.
    pub state: String,
    /// It is not worth running after, in Unix milliseconds.
    pub deadline_ms: Option<u64>,
    /// Leases that count as attempts.
    pub attempts: u32,
    /// The epoch of its newest lease or of its end.
    pub epoch: Option<u64>,
    /// Tokens of its reply that were published; none if nothing tells, as after an end whose reply has expired.
    pub published: Option<u64>,
    /// Its terminal result, once it ended.
    pub end: Option<End>,
    /// When it ended, in Unix milliseconds.
    pub ended_ms: Option<u64>,
}

/// Why a turn that has not ended does not run, or who runs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TurnWait {
    /// The agent's state.
    pub agent_state: Option<String>,
    /// The worker that has the agent.
    pub worker: Option<String>,
    /// Turns of the agent that end before it; none if it ended meanwhile.
    pub behind: Option<u64>,
}

impl Server {
    /// Where the turn belongs; none if there is no such turn.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn turn_place(&self, keys: &Keys, turn: TurnId) -> Result<Option<TurnPlace>, Fault> {
        let answer: Value = self.ask(STEP, &Hash::command(keys.turn(turn), &PLACE_FIELDS)).await?;
        let read = Hash::read(&PLACE_FIELDS, answer).and_then(|hash| place(&hash));
        read.map_err(|error| of_turn(turn, &error))
    }

    /// The turn as it is now; none if there is no such turn.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn turn(&self, keys: &Keys, turn: TurnId) -> Result<Option<TurnRecord>, Fault> {
        let mut look = redis::pipe();
        look.add_command(Hash::command(keys.turn(turn), &FIELDS));
        look.add_command(published::command(keys.result(turn)));
        let (hash, newest): (Value, StreamRangeReply) = self.ask_all(STEP, &look).await?;
        let read = Hash::read(&FIELDS, hash).and_then(|hash| record(&hash, &newest));
        read.map_err(|error| of_turn(turn, &error))
    }

    /// What was asked for, in the form in which it was stored: see [`turnmill_schema::StoredTurn`]. None if there is no such
    /// turn, or if it ended otherwise than as a dead letter.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn turn_payload(&self, keys: &Keys, turn: TurnId) -> Result<Option<Vec<u8>>, Fault> {
        let mut get = redis::cmd("HGET");
        get.arg(keys.turn(turn)).arg(FIELD_ENVELOPE);
        Ok(self.ask::<Option<Vec<u8>>>(STEP, &get).await?.filter(|stored| !stored.is_empty()))
    }

    /// How turns ended; none for each that has not, or whose end cannot be read.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn turn_ends(&self, keys: &Keys, turns: &[TurnId]) -> Result<Vec<Option<End>>, Fault> {
        if turns.is_empty() {
            return Ok(Vec::new());
        }
        let mut look = redis::pipe();
        look.ignore_errors();
        for turn in turns {
            look.add_command(Hash::command(keys.turn(*turn), &[FIELD_END]));
        }
        let answers: Vec<RedisResult<Value>> = self.ask_all(STEP, &look).await?;
        let end =
            |answer: RedisResult<Value>| Hash::read(&[FIELD_END], answer.ok()?).ok()?.end(FIELD_END).ok()?;
        Ok(answers.into_iter().map(end).collect())
    }

    /// Why a turn that has not ended does not run, or who runs it.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn turn_wait(&self, keys: &Keys, place: &TurnPlace) -> Result<TurnWait, Fault> {
        let TurnPlace { agent, entry } = place;
        let mut look = redis::pipe();
        look.cmd("HMGET").arg(keys.agent(agent)).arg(&["state", "owner"]);
        look.cmd("LPOS").arg(keys.backlog(agent)).arg(entry.to_string());
        let ((agent_state, worker), behind): ((Option<String>, Option<String>), Option<u64>) =
            self.ask_all("reading an agent", &look).await?;
        Ok(TurnWait { agent_state, worker: worker.filter(|worker| !worker.is_empty()), behind })
    }
}

fn place(hash: &Hash) -> Result<Option<TurnPlace>, ParsingError> {
    let Some(agent) = hash.text(FIELD_AGENT) else { return Ok(None) };
    let entry = hash.required(FIELD_ENTRY, BacklogEntry::parse)?;
    Ok(Some(TurnPlace { agent: AgentId::from_wire(agent), entry }))
}

fn record(hash: &Hash, newest: &StreamRangeReply) -> Result<Option<TurnRecord>, ParsingError> {
    let Some(place) = place(hash)? else { return Ok(None) };
    let state = hash.text("state").unwrap_or_default();
    let kept = match hash.event(FIELD_REPLY)? {
        Some(Event::Delta(reply)) => Some(u64::from(reply.published())),
        _ => None,
    };
    let nothing_yet = (state != "ended" && newest.ids.is_empty()).then_some(0);
    Ok(Some(TurnRecord {
        place,
        deadline_ms: hash.parsed("deadline_ms")?,
        attempts: hash.parsed("attempts")?.unwrap_or(0),
        epoch: hash.parsed("epoch")?,
        published: published::of(newest).or(kept).or(nothing_yet),
        end: hash.end(FIELD_END)?,
        ended_ms: hash.parsed("ended_ms")?,
        state,
    }))
}

fn of_turn(turn: TurnId, error: &ParsingError) -> Fault {
    Fault::Unreadable { step: STEP, reason: format!("turn {turn}: {}", unquoted(&error.to_string())) }
}

#[cfg(test)]
mod tests {
    use redis::FromRedisValue;

    use super::*;

    #[test]
    fn what_is_published_is_told_by_what_is_ours_or_is_unknown() {
        let (ours, foreign) = (published::entry("7-42", true), published::entry("9-0", false));
        for (state, newest, expected) in [
            ("queued", vec![], Some(0)),
            ("leased", vec![ours.clone()], Some(42)),
            ("leased", vec![foreign.clone(), ours.clone()], Some(42)),
            ("leased", vec![foreign.clone()], None),
            ("ended", vec![foreign, ours], Some(42)),
            ("ended", vec![], None),
        ] {
            let entry = format!("{} interactive 1 0 -", TurnId::new(0));
            let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
            let hash =
                [FIELD_AGENT, FIELD_ENTRY, "state"].into_iter().zip([text("t/a"), text(&entry), text(state)]);
            let (names, values): (Vec<_>, Vec<_>) = hash.unzip();
            let hash = Hash::read(&names, Value::Array(values)).expect("a hash");
            let newest = StreamRangeReply::from_redis_value(Value::Array(newest)).expect("an answer");
            let record = record(&hash, &newest).expect("it can be read").expect("it is there");
            assert_eq!(record.published, expected, "{state}, {newest:?}");
        }
    }
}
