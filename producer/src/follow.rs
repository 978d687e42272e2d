//! Following a turn: its events as they are made, each token once, whatever happens to the connection.
//!
//! A dropped connection is opened again and reading goes on after the last entry. Where Redis lost its last second
//! meanwhile, tokens come again and are dropped by their index ([`crate::seen`]). A result stream that has
//! expired is replaced by what the turn's hash keeps for longer: the outcome, and the whole reply where it is short.

use std::collections::VecDeque;

use futures::Stream;
use serde::Serialize;
use turnmill_redis::steps::ResultEntry;
use turnmill_redis::{Blocking, Fault, ReadUpTo, TurnState};
use turnmill_schema::keys::Keys;
use turnmill_schema::{Delta, Event, StreamId, TurnId, envelope};

use crate::connection::{Connection, Patience, passes};
use crate::error::ProducerError;
use crate::producer::Producer;
use crate::seen::{Misfit, Seen};

/// Entries in one reply at most.
const COUNT: usize = 256;
/// What to do where a repeated text cannot be cut.
const FROM_ITS_START: &str =
    "tokens come again that cannot be told from those read; follow it from its start";

/// An event and where it stands in the result stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Followed {
    /// Its entry, to go on from later. None: the stream has expired, its text with it, and this is the outcome kept of it.
    pub id: Option<StreamId>,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl Producer {
    /// The turn's events after entry `from` (from the start where none), waiting for those to come. Ends after its End.
    ///
    /// Reads on a connection of its own. Fails where no trace of the turn is left, or where Redis is away for longer than
    /// [`crate::ProducerSettings::retry_for`]; the turn goes on all the same.
    pub fn follow(
        &self,
        turn: TurnId,
        from: Option<StreamId>,
    ) -> impl Stream<Item = Result<Followed, ProducerError>> + Send + use<> {
        let reader = Reader::new(self, turn, from);
        futures::stream::try_unfold(reader, |mut reader| async move {
            let followed = reader.next().await?;
            Ok(followed.map(|followed| (followed, reader)))
        })
    }
}

struct Reader {
    connection: Connection,
    turn: TurnId,
    queue: String,
    keys: Keys,
    /// Where the caller wanted to start.
    origin: StreamId,
    /// The last entry read.
    last: StreamId,
    /// The highest entry ever read; above `last` while reading again.
    newest: StreamId,
    seen: Seen,
    /// Went back to the origin and found nothing new since.
    reread: bool,
    /// Its own: a blocking read holds up everything behind it.
    reader: Option<Blocking>,
    /// Set from a lost connection to the next answer.
    lost: Option<Patience>,
    /// The state of the turn must be looked at before waiting for entries.
    look: bool,
    ready: VecDeque<Followed>,
    ended: bool,
}

impl Reader {
    fn new(producer: &Producer, turn: TurnId, from: Option<StreamId>) -> Self {
        let origin = from.unwrap_or(StreamId::START);
        Self {
            connection: producer.connection.clone(),
            turn,
            queue: producer.queue.name.to_string(),
            keys: producer.keys_of(turn),
            origin,
            last: origin,
            newest: origin,
            seen: if origin == StreamId::START { Seen::nothing() } else { Seen::unknown() },
            reread: false,
            reader: None,
            lost: None,
            look: true,
            ready: VecDeque::new(),
            ended: false,
        }
    }

    async fn next(&mut self) -> Result<Option<Followed>, ProducerError> {
        loop {
            if let Some(followed) = self.ready.pop_front() {
                return Ok(Some(followed));
            }
            if self.ended {
                return Ok(None);
            }
            match self.step().await {
                Ok(Step::State(state)) => self.judge(&state)?,
                Ok(Step::Entries(entries)) => self.take(&entries)?,
                Err(fault) => self.lose(fault).await?,
            }
        }
    }

    /// One question to Redis.
    async fn step(&mut self) -> Result<Step, Fault> {
        let step = if self.look { self.look().await? } else { self.wait().await? };
        if self.lost.take().is_some() {
            tracing::info!(turn = %self.turn, "reached Redis again; reading on");
        }
        // Nothing came for a while: it may have ended where the stream cannot tell.
        self.look = matches!(&step, Step::Entries(entries) if entries.is_empty());
        Ok(step)
    }

    async fn look(&self) -> Result<Step, Fault> {
        let states = self.connection.server().turn_states(&self.keys, &[self.turn]).await?;
        states.into_iter().next().map_or(Ok(Step::Entries(Vec::new())), |state| state.map(Step::State))
    }

    async fn wait(&mut self) -> Result<Step, Fault> {
        let reader = match &mut self.reader {
            Some(reader) => reader,
            none => none.insert(self.connection.blocking().await?),
        };
        let read = [ReadUpTo { turn: self.turn, last: self.last }];
        let found = reader.wait_for_results(&self.keys, &read, COUNT, self.connection.block()).await?;
        Ok(Step::Entries(found.into_iter().flat_map(|(_, entries)| entries).collect()))
    }

    /// Waits before the next try, or gives up.
    async fn lose(&mut self, fault: Fault) -> Result<(), ProducerError> {
        if !passes(&fault) {
            return Err(fault.into());
        }
        self.reader = None;
        self.look = true;
        let patience = self.lost.get_or_insert_with(|| {
            tracing::warn!(turn = %self.turn, "{fault}; trying again");
            self.connection.patience()
        });
        if patience.pause().await { Ok(()) } else { Err(fault.into()) }
    }

    /// Ends here where no further entry can come.
    fn judge(&mut self, state: &TurnState) -> Result<(), ProducerError> {
        let top = state.top.as_ref().map(decode).transpose()?;
        match top {
            Some((id, _)) if id > self.last => {}
            Some((id, event @ Event::End(_))) => self.end(Some(id), event),
            _ => match (&state.end, &state.agent) {
                (Some(end), _) => self.take_stored(end, state)?,
                (None, Some(_)) => {}
                (None, None) => {
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
            let starts_within = self.last.sequence > 0 && self.seen.is_unknown();
            match self.seen.add(reply) {
                Ok(added) if !starts_within => {
                    let followed = |delta| Followed { id: Some(id), event: Event::Delta(delta) };
                    self.ready.extend(added.map(followed));
                }
                _ => return Err(self.unreadable("reply", FROM_ITS_START.into())),
            }
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

    /// Takes entries up to the End, or up to one that makes reading again necessary.
    fn take(&mut self, entries: &[ResultEntry]) -> Result<(), ProducerError> {
        for entry in entries {
            let (id, event) = decode(entry)?;
            let new = id > self.newest;
            match event {
                Event::Begin(_) if new => self.ready.push_back(Followed { id: Some(id), event }),
                Event::Begin(_) => {}
                Event::End(_) => {
                    self.end(Some(id), event);
                    return Ok(());
                }
                Event::Delta(delta) => match self.seen.add(delta) {
                    Ok(None) => {}
                    Ok(Some(delta)) => {
                        self.reread = false;
                        self.ready.push_back(Followed { id: Some(id), event: Event::Delta(delta) });
                    }
                    Err(misfit) => return self.misfit(misfit),
                },
            }
            self.last = id;
            self.newest = self.newest.max(id);
        }
        Ok(())
    }

    fn misfit(&mut self, misfit: Misfit) -> Result<(), ProducerError> {
        let turn = self.turn;
        match misfit {
            Misfit::Gap { expected, found } => Err(ProducerError::Gap { turn, expected, found }),
            Misfit::Unaligned if self.reread => Err(ProducerError::Unreadable {
                what: format!("the result of turn {turn}"),
                reason: FROM_ITS_START.into(),
            }),
            Misfit::Unaligned => {
                self.reread = true;
                self.last = self.origin;
                Ok(())
            }
        }
    }
}

enum Step {
    State(TurnState),
    Entries(Vec<ResultEntry>),
}

/// An entry of ours in a stored one.
fn decode(entry: &ResultEntry) -> Result<(StreamId, Event), ProducerError> {
    let unreadable = |reason: String| ProducerError::Unreadable {
        what: format!("entry {} of the result stream", entry.id),
        reason,
    };
    let id = entry.id.parse().map_err(|error| unreadable(format!("{error}")))?;
    Ok((id, envelope::decode(&entry.event).map_err(|error| unreadable(error.to_string()))?))
}
