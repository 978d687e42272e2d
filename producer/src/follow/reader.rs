//! What one turn's entries say, in order and once.
//!
//! If Redis lost its last second, tokens come again and are dropped by their index ([`super::seen`]). A result stream that has
//! expired is replaced by what the turn's hash keeps for longer: the outcome, and the whole reply if it is short. An entry that is
//! not ours is passed by.

use std::collections::VecDeque;

use tokio::sync::mpsc;
use turnmill_redis::steps::ResultEntry;
use turnmill_redis::{ReadUpTo, TurnState};
use turnmill_schema::{AgentId, Event, StreamId, TurnId};

use super::Followed;
use super::assembly::{Assembly, id_of};
use super::entry::event_of;
use super::source::{self, News};
use crate::client::Client;
use crate::error::ClientError;

/// Reads one turn.
pub(crate) struct Reader {
    client: Client,
    turn: TurnId,
    /// Whose turn it is, as far as that is known.
    agent: Option<AgentId>,
    /// The last entry read.
    last: StreamId,
    assembly: Assembly,
    /// What is told of the turn after `last`; none: nobody was asked yet.
    news: Option<mpsc::Receiver<News>>,
    ready: VecDeque<Followed>,
    ended: bool,
}

impl Reader {
    pub(crate) fn new(client: &Client, turn: TurnId, from: Option<StreamId>) -> Self {
        let last = from.unwrap_or(StreamId::START);
        Self {
            client: client.clone(),
            turn,
            agent: None,
            last,
            assembly: Assembly::after(turn, last),
            news: None,
            ready: VecDeque::new(),
            ended: false,
        }
    }

    /// Whose turn it is, once something was read; none if its hash is gone.
    pub(crate) fn agent(&self) -> Option<&AgentId> {
        self.agent.as_ref()
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Followed>, ClientError> {
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
        let (client, read) = (&self.client, ReadUpTo { turn: self.turn, last: self.last });
        let open = || source::open(&client.connection, &client.waiters, &client.keys_of(read.turn), read);
        self.news.get_or_insert_with(open).recv().await
    }

    /// Ends here if no further entry can come.
    fn judge(&mut self, mut state: TurnState) -> Result<(), ClientError> {
        let is_known = state.agent.is_some();
        self.agent = state.agent.take().or(self.agent.take());
        let read = |top| id_of(top).map(|id| (id, event_of(top)));
        let top = state.top.as_ref().map(read).transpose()?;
        match top {
            Some((id, _)) if id > self.last => {}
            Some((id, Ok(event @ Event::End(_)))) => self.tell(Followed { id: Some(id), event }),
            _ => match &state.end {
                Some(end) => {
                    let rest = self.assembly.take_stored(end, &state)?;
                    rest.into_iter().for_each(|followed| self.tell(followed));
                }
                None if is_known => {}
                None => return Err(self.client.unknown_turn(self.turn)),
            },
        }
        Ok(())
    }

    /// Takes entries up to the End.
    fn take(&mut self, entries: &[ResultEntry]) -> Result<(), ClientError> {
        for entry in entries {
            let (id, added) = self.assembly.take(entry)?;
            self.last = id;
            if let Some(event) = added {
                self.tell(Followed { id: Some(id), event });
            }
            if self.ended {
                break;
            }
        }
        Ok(())
    }

    fn tell(&mut self, followed: Followed) {
        self.ended |= matches!(followed.event, Event::End(_));
        self.ready.push_back(followed);
    }
}

#[cfg(test)]
mod tests {
    use turnmill_schema::{Begin, Delta, End, Outcome, Timing, Usage, envelope};

    use super::super::entry::foreign;
    use super::*;
    use crate::settings::Settings;

    fn reader() -> Reader {
        let client = Client::unconnected(Settings::default());
        Reader::new(&client, TurnId::new(0), None)
    }

    fn token(index: u32) -> Event {
        Event::Delta(Delta { index, tokens: vec![index], text: format!("{index} "), ..Delta::default() })
    }

    fn end() -> Event {
        let (outcome, usage, timing) = (Outcome::Completed, Usage::default(), Timing::default());
        Event::End(End { outcome, finish: None, stop: None, error: None, usage, timing, worker: None })
    }

    fn begin() -> Event {
        Event::Begin(Begin { epoch: 1, resume_from: 0, attempt: 1, worker: "w".into() })
    }

    /// Each event with how many tokens are published with it, each in an epoch of its own: 10, 20, …
    fn stream(events: &[(u64, Event)]) -> Vec<ResultEntry> {
        let entry = |(place, (sequence, event)): (usize, &(u64, Event))| {
            let id = StreamId { epoch: (place as u64 + 1) * 10, sequence: *sequence };
            ResultEntry { id: id.to_string(), event: encode(event), at_ms: None }
        };
        events.iter().enumerate().map(entry).collect()
    }

    fn encode(event: &Event) -> Vec<u8> {
        envelope::encode(event).expect("encodes")
    }

    /// The stream with an entry that is not ours in front of that of `place`, for each kind of such an entry.
    fn with_foreign(stream: &[ResultEntry], place: usize) -> Vec<Vec<ResultEntry>> {
        let insert = |foreign| {
            let mut stream = stream.to_vec();
            stream.insert(place, foreign);
            stream
        };
        let id = StreamId { epoch: place as u64 * 10 + 5, sequence: 999 };
        foreign(id).into_iter().map(insert).collect()
    }

    #[tokio::test]
    async fn foreign_entries_are_passed_by_wherever_they_stand() {
        let events = [(0, begin()), (1, token(0)), (2, token(1)), (2, end())];
        let stream = stream(&events);
        for place in 0..events.len() {
            for stream in with_foreign(&stream, place) {
                let mut reader = reader();
                reader.take(&stream).expect("it is passed by");
                let read: Vec<Event> = reader.ready.iter().map(|followed| followed.event.clone()).collect();
                let expected: Vec<Event> = events.iter().map(|(_, event)| event.clone()).collect();
                assert_eq!((read, reader.ended), (expected, true), "in front of entry {place}");
            }
        }
    }

    #[tokio::test]
    async fn tokens_that_a_foreign_entry_held_are_a_gap() {
        for events in [vec![(1, token(0)), (3, token(2))], vec![(1, token(0)), (2, end())]] {
            for stream in with_foreign(&stream(&events), 1) {
                let error = reader().take(&stream).expect_err("a token is missing");
                assert!(matches!(error, ClientError::Gap { expected: 1, .. }), "{error}");
            }
        }
    }

    /// The rest of the stream expired, and what the turn's hash keeps tells the end.
    #[tokio::test]
    async fn a_foreign_entry_on_top_hides_no_end() {
        let events = [(1, token(0))];
        for stream in with_foreign(&stream(&events), 1) {
            let mut reader = reader();
            reader.take(&stream).expect("it is passed by");
            let (tokens, lengths) = (vec![0, 1], vec![2, 2]);
            let reply = Delta { tokens, lengths, text: "0 1 ".into(), ..Delta::default() };
            let state = TurnState {
                agent: Some(AgentId::from_wire("t/a".into())),
                end: Some(encode(&end())),
                epoch: Some(20),
                reply: Some(encode(&Event::Delta(reply))),
                top: stream.last().cloned(),
                ..TurnState::default()
            };
            reader.judge(state).expect("it ended");
            let read: Vec<Event> = reader.ready.into_iter().map(|followed| followed.event).collect();
            let Event::Delta(rest) = &read[1] else { panic!("no rest: {read:?}") };
            assert_eq!((read.len(), rest.text.as_str(), reader.ended), (3, "1 ", true));
        }
    }
}
