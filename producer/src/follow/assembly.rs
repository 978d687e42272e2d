//! Puts one turn's reply together: out of the entries of its result stream and, once that has expired, out of what the turn's hash
//! keeps for longer. Asks nobody anything.

use turnmill_redis::TurnState;
use turnmill_redis::steps::ResultEntry;
use turnmill_schema::{Event, StreamId, TurnId, envelope};

use super::Followed;
use super::entry::event_of;
use super::seen::{Misfit, Seen};
use crate::error::ClientError;
use crate::passed_by::PassedBy;

/// What one reader has of a turn.
#[derive(Debug)]
pub(crate) struct Assembly {
    turn: TurnId,
    from_start: bool,
    seen: Seen,
    passed_by: PassedBy,
}

impl Assembly {
    /// Of a reader that has what stands in the stream up to `last`.
    pub(crate) fn after(turn: TurnId, last: StreamId) -> Self {
        let from_start = last == StreamId::START;
        let seen = if from_start { Seen::nothing() } else { Seen::up_to(last.sequence) };
        Self { turn, from_start, seen, passed_by: PassedBy::of_turn(turn) }
    }

    /// Where the next entry stands, and what it adds: nothing if it is not ours, or says again what was read.
    pub(crate) fn take(&mut self, entry: &ResultEntry) -> Result<(StreamId, Option<Event>), ClientError> {
        let id = id_of(entry)?;
        let event = match event_of(entry) {
            Ok(event) => event,
            Err(reason) => {
                self.passed_by.note(id, &reason);
                return Ok((id, None));
            }
        };
        let added = match event {
            Event::Begin(_) => Some(event),
            Event::Delta(delta) => {
                self.seen.add(delta).map_err(|misfit| self.misfit(misfit))?.map(Event::Delta)
            }
            Event::End(_) => {
                self.seen.finish(id.sequence).map_err(|misfit| self.misfit(misfit))?;
                Some(event)
            }
        };
        Ok((id, added))
    }

    /// The rest, if the stream is gone: what the turn's hash keeps of the reply, and its End, with the ids that the entries had.
    /// The End has none if nothing of the reply is kept: then what was read of it may be a part.
    pub(crate) fn take_stored(
        &mut self,
        end: &[u8],
        state: &TurnState,
    ) -> Result<Vec<Followed>, ClientError> {
        let end = match self.stored("outcome", end)? {
            end @ Event::End(_) => end,
            _ => return Err(self.unreadable("stored outcome", "it is not an End".into())),
        };
        let Some(reply) = &state.reply else { return Ok(vec![Followed { id: None, event: end }]) };
        let reply = match self.stored("reply", reply)? {
            Event::Delta(reply) => reply,
            _ => return Err(self.unreadable("stored reply", "it is not a Delta".into())),
        };
        let (epoch, sequence) = (state.epoch.unwrap_or(0), u64::from(reply.published()));
        let rest = self.seen.add(reply).map_err(|misfit| self.misfit(misfit))?;
        let rest =
            rest.map(|rest| Followed { id: Some(StreamId { epoch, sequence }), event: Event::Delta(rest) });
        let end = Followed { id: Some(StreamId { epoch: epoch + 1, sequence }), event: end };
        Ok(rest.into_iter().chain([end]).collect())
    }

    fn stored(&self, what: &str, bytes: &[u8]) -> Result<Event, ClientError> {
        envelope::decode(bytes).map_err(|error| self.unreadable(&format!("stored {what}"), error.to_string()))
    }

    /// Something of the turn is not what this version reads.
    pub(crate) fn unreadable(&self, what: &str, reason: String) -> ClientError {
        ClientError::Unreadable { what: format!("the {what} of turn {}", self.turn), reason }
    }

    fn misfit(&self, misfit: Misfit) -> ClientError {
        match misfit {
            Misfit::Gap { expected, found } => ClientError::Gap { turn: self.turn, expected, found },
            Misfit::Uncut(error) => {
                let instead = if self.from_start { "" } else { ", or follow the turn from its start" };
                self.unreadable("result", format!("tokens come again, and {error}{instead}"))
            }
        }
    }
}

/// Where an entry stands.
pub(super) fn id_of(entry: &ResultEntry) -> Result<StreamId, ClientError> {
    entry.id.parse().map_err(|error| ClientError::Unreadable {
        what: format!("entry {} of the result stream", entry.id),
        reason: format!("{error}"),
    })
}

#[cfg(test)]
mod tests {
    use turnmill_schema::{Delta, End, Outcome, Timing, Usage};

    use super::*;

    fn encode(event: &Event) -> Vec<u8> {
        envelope::encode(event).expect("encodes")
    }

    fn reply() -> Delta {
        Delta { tokens: vec![0, 1], lengths: vec![2, 2], text: "0 1 ".into(), ..Delta::default() }
    }

    fn end() -> Event {
        let (outcome, usage, timing) = (Outcome::Completed, Usage::default(), Timing::default());
        Event::End(End { outcome, finish: None, stop: None, error: None, usage, timing, worker: None })
    }

    /// Whatever was read before, and whether or not the hash tells an epoch: the reply that it keeps is told.
    #[test]
    fn a_stored_reply_is_told_from_where_the_reading_ended() {
        for epoch in [None, Some(20)] {
            let reply = Some(encode(&Event::Delta(reply())));
            let state = TurnState { epoch, reply, ..TurnState::default() };
            for (last, rest) in [(0, Some("0 1 ")), (1, Some("1 ")), (2, None)] {
                let mut assembly = Assembly::after(TurnId::new(0), StreamId { epoch: last, sequence: last });
                let told = assembly.take_stored(&encode(&end()), &state).expect("it can be read");
                let text = told.iter().find_map(|followed| match &followed.event {
                    Event::Delta(delta) => Some(delta.text.as_str()),
                    _ => None,
                });
                assert_eq!(text, rest, "after {last}, epoch {epoch:?}");
                assert!(told.iter().all(|followed| followed.id.is_some_and(|id| id.sequence == 2)));
                assert_eq!(told.last().map(|last| &last.event), Some(&end()));
            }
        }
    }

    #[test]
    fn an_end_without_a_reply_says_that_there_is_none() {
        let mut assembly = Assembly::after(TurnId::new(0), StreamId::START);
        let told = assembly.take_stored(&encode(&end()), &TurnState::default()).expect("it can be read");
        assert_eq!(told, [Followed { id: None, event: end() }]);
        let delta = encode(&Event::Delta(reply()));
        assembly.take_stored(&delta, &TurnState::default()).expect_err("it is not an End");
        let reply = Some(encode(&end()));
        let state = TurnState { reply, ..TurnState::default() };
        assembly.take_stored(&encode(&end()), &state).expect_err("the reply is not a Delta");
    }
}
