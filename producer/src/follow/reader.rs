//! What one turn's entries say, in order and once.
//!
//! If Redis lost its last second, tokens come again and are dropped by their index ([`super::seen`]). A result stream that has
//! expired is replaced by what the turn's hash keeps for longer: the outcome, and the whole reply if it is short.

use std::collections::VecDeque;

use tokio::sync::mpsc;
use turnmill_redis::steps::ResultEntry;
use turnmill_redis::{ReadUpTo, TurnState};
use turnmill_schema::keys::Keys;
use turnmill_schema::{AgentId, Delta, Event, StreamId, TurnId, envelope};

use super::Followed;
use super::seen::{Misfit, Seen};
use super::source::{self, News};
use super::waiters::Waiters;
use crate::connection::Connection;
use crate::error::ProducerError;
use crate::producer::Producer;

/// Reads one turn.
pub(crate) struct Reader {
    connection: Connection,
    waiters: Waiters,
    turn: TurnId,
    queue: String,
    keys: Keys,
    /// Whose turn it is, as far as that is known.
    agent: Option<AgentId>,
    /// The last entry read.
    last: StreamId,
    seen: Seen,
    /// What is told of the turn after `last`; none: nobody was asked yet.
    news: Option<mpsc::Receiver<News>>,
    ready: VecDeque<Followed>,
    ended: bool,
}

impl Reader {
    pub(crate) fn new(producer: &Producer, turn: TurnId, from: Option<StreamId>) -> Self {
        let last = from.unwrap_or(StreamId::START);
        Self {
            connection: producer.connection.clone(),
            waiters: producer.waiters.clone(),
            turn,
            queue: producer.queue.name.to_string(),
            keys: producer.keys_of(turn),
            agent: None,
            last,
            seen: if last == StreamId::START { Seen::nothing() } else { Seen::up_to(last.sequence) },
            news: None,
            ready: VecDeque::new(),
            ended: false,
        }
    }

    /// Whose turn it is, once something was read; none if its hash is gone.
    pub(crate) fn agent(&self) -> Option<&AgentId> {
        self.agent.as_ref()
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Followed>, ProducerError> {
        loop {
            if let Some(followed) = self.ready.pop_front() {
                return Ok(Some(followed));
            }
            if self.ended {
                return Ok(None);
            }
            match self.hear().await {
                Some(News::State(state)) => self.judge(state)?,
                Some(News::Entries(entries)) => self.take(&entries)?,
                Some(News::Failed(error)) => return Err(error),
                None => self.news = None,
            }
        }
    }

    async fn hear(&mut self) -> Option<News> {
        let read = ReadUpTo { turn: self.turn, last: self.last };
        let open = || source::open(&self.connection, &self.waiters, &self.keys, read);
        self.news.get_or_insert_with(open).recv().await
    }

    /// Ends here if no further entry can come.
    fn judge(&mut self, mut state: TurnState) -> Result<(), ProducerError> {
        let is_known = state.agent.is_some();
        self.agent = state.agent.take().or(self.agent.take());
        let top = state.top.as_ref().map(decode).transpose()?;
        match top {
            Some((id, _)) if id > self.last => {}
            Some((id, event @ Event::End(_))) => self.end(Some(id), event),
            _ => match &state.end {
                Some(end) => self.take_stored(end, &state)?,
                None if is_known => {}
                None => {
                    return Err(ProducerError::UnknownTurn { turn: self.turn, queue: self.queue.clone() });
                }
            },
        }
        Ok(())
    }

    /// The stream is gone: what the turn's hash has. Entries keep the ids they had, so that they can be gone on from.
    fn take_stored(&mut self, end: &[u8], state: &TurnState) -> Result<(), ProducerError> {
        let end = match self.stored("outcome", end)? {
            end @ Event::End(_) => end,
            _ => return Err(self.unreadable("outcome", "it is not an End".into())),
        };
        let (Some(reply), Some(epoch)) = (&state.reply, state.epoch) else {
            self.end(None, end);
            return Ok(());
        };
        let reply: Delta = match self.stored("reply", reply)? {
            Event::Delta(reply) => reply,
            _ => return Err(self.unreadable("reply", "it is not a Delta".into())),
        };
        let sequence = u64::from(reply.published());
        let id = StreamId { epoch, sequence };
        if self.last.sequence < sequence {
            let added = self.seen.add(reply).map_err(|misfit| self.misfit(misfit))?;
            let followed = |delta| Followed { id: Some(id), event: Event::Delta(delta) };
            self.ready.extend(added.map(followed));
        }
        self.end(Some(StreamId { epoch: epoch + 1, sequence }), end);
        Ok(())
    }

    fn stored(&self, what: &str, bytes: &[u8]) -> Result<Event, ProducerError> {
        envelope::decode(bytes).map_err(|error| self.unreadable(what, error.to_string()))
    }

    fn unreadable(&self, what: &str, reason: String) -> ProducerError {
        ProducerError::Unreadable { what: format!("the stored {what} of turn {}", self.turn), reason }
    }

    fn end(&mut self, id: Option<StreamId>, event: Event) {
        self.ready.push_back(Followed { id, event });
        self.ended = true;
    }

    /// Takes entries up to the End.
    fn take(&mut self, entries: &[ResultEntry]) -> Result<(), ProducerError> {
        for entry in entries {
            let (id, event) = decode(entry)?;
            match event {
                Event::Begin(_) => self.ready.push_back(Followed { id: Some(id), event }),
                Event::End(_) => {
                    self.seen.finish(id.sequence).map_err(|misfit| self.misfit(misfit))?;
                    self.end(Some(id), event);
                    return Ok(());
                }
                Event::Delta(delta) => {
                    let added = self.seen.add(delta).map_err(|misfit| self.misfit(misfit))?;
                    let followed = |delta| Followed { id: Some(id), event: Event::Delta(delta) };
                    self.ready.extend(added.map(followed));
                }
            }
            self.last = id;
        }
        Ok(())
    }

    fn misfit(&self, misfit: Misfit) -> ProducerError {
        let turn = self.turn;
        match misfit {
            Misfit::Gap { expected, found } => ProducerError::Gap { turn, expected, found },
            Misfit::Uncut(error) => ProducerError::Unreadable {
                what: format!("the result of turn {turn}"),
                reason: format!("tokens come again, and {error}, or follow the turn from its start"),
            },
        }
    }
}

/// An entry of ours in a stored one.
fn decode(entry: &ResultEntry) -> Result<(StreamId, Event), ProducerError> {
    let event = envelope::decode(&entry.event);
    Ok((source::id_of(entry)?, event.map_err(|error| source::unreadable(entry, error.to_string()))?))
}
