//! Result streams and what a turn's hash keeps of its end, as they are read by those who wait for a turn.

use std::time::Duration;

use redis::streams::{StreamRangeReply, StreamReadReply};
use redis::{Cmd, FromRedisValue, RedisResult, Value};
use turnmill_schema::keys::{BacklogEntry, DeadlineEntry, FIELD_AGENT, FIELD_END, FIELD_REPLY, Keys};
use turnmill_schema::{AgentId, StreamId, TurnId};

use crate::blocking::Blocking;
use crate::fault::Fault;
use crate::hash::Hash;
use crate::server::Server;
use crate::steps::ResultEntry;

/// What errors call this.
const STEP: &str = "reading a result";
const FIELDS: [&str; 6] = [FIELD_AGENT, FIELD_END, "epoch", FIELD_REPLY, "deadline_ms", "entry"];
/// Questions about one turn.
const QUESTIONS: usize = 2;

/// What is there of a turn. Texts of the protocol are in their envelopes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TurnState {
    /// Whose it is; none if the turn's hash is gone.
    pub agent: Option<AgentId>,
    /// Its [`turnmill_schema::Event::End`], once it ended.
    pub end: Option<Vec<u8>>,
    /// The epoch of its newest lease; of its end, once it ended.
    pub epoch: Option<u64>,
    /// Its whole reply as one [`turnmill_schema::Event::Delta`], if it ended and the reply is short.
    pub reply: Option<Vec<u8>>,
    /// When its time is over, in Unix milliseconds, if it has a deadline.
    pub deadline_ms: Option<u64>,
    /// Its place in the backlog, as it is stored.
    pub entry: Option<String>,
    /// The newest entry of its result stream; none if the stream is not there.
    pub top: Option<ResultEntry>,
}

impl TurnState {
    /// What somebody has to know who ends the turn because its deadline is before `now_ms`; none if it has ended, or has time.
    pub fn overdue(&self, now_ms: u64) -> Option<DeadlineEntry> {
        let is_over = self.end.is_none() && self.deadline_ms.is_some_and(|deadline_ms| deadline_ms < now_ms);
        let place = is_over.then_some(()).and(self.agent.clone().zip(self.entry.as_deref()));
        place.and_then(|(agent, entry)| Some(DeadlineEntry { agent, entry: BacklogEntry::parse(entry)? }))
    }
}

/// How far a result stream was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadUpTo {
    /// Whose.
    pub turn: TurnId,
    /// The last entry read.
    pub last: StreamId,
}

impl Server {
    /// What is there of turns, one answer for each, in order. The hash is read before the stream: one that says that the turn
    /// ended is never older than the stream's end.
    ///
    /// # Errors
    /// See [`Fault`]: of the whole call, or of one turn.
    pub async fn turn_states(
        &self,
        keys: &Keys,
        turns: &[TurnId],
    ) -> Result<Vec<Result<TurnState, Fault>>, Fault> {
        if turns.is_empty() {
            return Ok(Vec::new());
        }
        let mut look = redis::pipe();
        look.ignore_errors();
        for turn in turns {
            look.add_command(Hash::command(keys.turn(*turn), &FIELDS));
            look.cmd("XREVRANGE").arg(keys.result(*turn)).arg("+").arg("-").arg("COUNT").arg(1);
        }
        let mut answers = self.ask_all::<Vec<RedisResult<Value>>>(STEP, &look).await?.into_iter();
        let read = |_| {
            let answers: RedisResult<Vec<Value>> = answers.by_ref().take(QUESTIONS).collect();
            answers.and_then(read_state).map_err(|error| self.classify(STEP, &error))
        };
        Ok(turns.iter().map(read).collect())
    }

    /// What result streams hold that was not read, at most `count` entries of each, one answer for each, in order. Nothing waits.
    ///
    /// # Errors
    /// See [`Fault`]: of the whole call, or of one stream.
    pub async fn results_after(
        &self,
        keys: &Keys,
        read: &[ReadUpTo],
        count: usize,
    ) -> Result<Vec<Result<Vec<ResultEntry>, Fault>>, Fault> {
        if read.is_empty() {
            return Ok(Vec::new());
        }
        let mut look = redis::pipe();
        look.ignore_errors();
        for ReadUpTo { turn, last } in read {
            look.cmd("XRANGE")
                .arg(keys.result(*turn))
                .arg(format!("({last}"))
                .arg("+")
                .arg("COUNT")
                .arg(count);
        }
        let answers: Vec<RedisResult<StreamRangeReply>> = self.ask_all(STEP, &look).await?;
        let entries = |answer: RedisResult<StreamRangeReply>| match answer {
            Ok(found) => Ok(found.ids.into_iter().map(ResultEntry::from).collect()),
            Err(error) => Err(self.classify(STEP, &error)),
        };
        Ok(answers.into_iter().map(entries).collect())
    }
}

impl Blocking {
    /// Waits up to `block` until some of the result streams hold more than was read; at most `count` entries of each. Pairs of
    /// a stream's place in `read` and what it had.
    ///
    /// # Errors
    /// See [`Fault`]. One stream that is broken fails all: [`Server::results_after`] tells which.
    pub async fn wait_for_results(
        &mut self,
        keys: &Keys,
        read: &[ReadUpTo],
        count: usize,
        block: Duration,
    ) -> Result<Vec<(usize, Vec<ResultEntry>)>, Fault> {
        let names: Vec<String> = read.iter().map(|read| keys.result(read.turn)).collect();
        let mut command = Cmd::new();
        // A BLOCK of 0 would wait for ever.
        command.arg("XREAD").arg("COUNT").arg(count).arg("BLOCK").arg((block.as_millis() as u64).max(1));
        command.arg("STREAMS").arg(&names);
        for ReadUpTo { last, .. } in read {
            command.arg(last.to_string());
        }
        let reply: Option<StreamReadReply> = self.ask(STEP, &command).await?;
        // Redis answers in the order in which it was asked, without those that have nothing.
        let mut places = names.iter().enumerate();
        let found = reply.map(|reply| reply.keys).unwrap_or_default().into_iter().filter_map(|stream| {
            let (place, _) = places.by_ref().find(|(_, name)| **name == stream.key)?;
            Some((place, stream.ids.into_iter().map(ResultEntry::from).collect()))
        });
        Ok(found.collect())
    }
}

fn read_state(answers: Vec<Value>) -> RedisResult<TurnState> {
    let mut answers = answers.into_iter();
    let mut next = || answers.next().unwrap_or(Value::Nil);
    let mut hash = Hash::read(&FIELDS, next())?;
    let top = StreamRangeReply::from_redis_value(next())?;
    Ok(TurnState {
        agent: hash.text(FIELD_AGENT).map(AgentId::from_wire),
        end: hash.take(FIELD_END),
        epoch: hash.parsed("epoch")?,
        reply: hash.take(FIELD_REPLY),
        deadline_ms: hash.parsed("deadline_ms")?,
        entry: hash.text("entry"),
        top: top.ids.into_iter().next().map(ResultEntry::from),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_overdue_after_its_deadline_unless_it_ended() {
        let entry = "01980000-0000-7000-8000-000000000001.0 batch 1 0 -";
        let waiting = TurnState {
            agent: Some(AgentId::from_wire("t/a".into())),
            deadline_ms: Some(10),
            entry: Some(entry.into()),
            ..TurnState::default()
        };
        let overdue = |state: &TurnState, now_ms| state.overdue(now_ms).map(|found| found.entry.to_string());
        assert_eq!(overdue(&waiting, 10), None);
        assert_eq!(overdue(&waiting, 11).as_deref(), Some(entry));
        for other in [
            TurnState { end: Some(vec![]), ..waiting.clone() },
            TurnState { deadline_ms: None, ..waiting.clone() },
            TurnState { agent: None, ..waiting.clone() },
            TurnState { entry: None, ..waiting },
        ] {
            assert_eq!(overdue(&other, u64::MAX), None, "{other:?}");
        }
    }
}
