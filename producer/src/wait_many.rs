//! Waiting for many turns over two connections, however many turns there are.
//!
//! The queue's stream of events has an entry for every turn that ends. One reader of it says which turns to look at, and
//! they are looked at in pages over the shared connection.
//!
//! Invariants: the reader has its place in the stream before the first turn is looked at, so that no end falls between;
//! turns are looked at again now and then, since events can be trimmed or lost. Commands are awaited by a task that
//! does nothing else meanwhile: whoever takes the results may await what they like.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt, stream};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};
use turnmill_redis::steps::ResultEntry;
use turnmill_redis::{Fault, ReadUpTo, TurnState};
use turnmill_schema::keys::Keys;
use turnmill_schema::{AgentId, Event, StreamId, TurnId, envelope};

use crate::error::ProducerError;
use crate::follow::{Misfit, Seen, event_of};
use crate::operate::events::{EndedTurn, EventsQuery};
use crate::operate::{Operator, Scope};
use crate::passed_by::PassedBy;
use crate::pieces::{Bounds, pieces};
use crate::producer::Producer;
use crate::turn_result::{Reply, TurnResult};

/// Turns looked at in one round trip. Each answers with up to 4 KiB, a short reply.
const PAGE: usize = 256;
/// Replies read in one round trip; what they weigh are their tokens. Redis serves nobody else meanwhile. A token takes some
/// thirty bytes, and up to three hundred with log-probabilities.
const REPLIES: Bounds = Bounds { items: 32, weight: 4096 };
/// Entries of one reply, at most: more than any has, since each holds a token.
const ENTRIES: usize = 1 << 20;
/// Results that wait for somebody to take them; behind them the task stands still.
const RESULTS: usize = 32;
/// How often turns are looked at that no event told of.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The same if events cannot be read.
const LOOK_WITHOUT_EVENTS: Duration = Duration::from_millis(500);

/// The ends of many turns, in the order in which they come; see [`Producer::wait_many`].
#[derive(Debug)]
pub struct WaitMany {
    turns: mpsc::UnboundedSender<TurnId>,
    results: mpsc::Receiver<Waited>,
    waiting: usize,
}

/// A turn and its result, or why that cannot be read.
type Waited = (TurnId, Result<TurnResult, ProducerError>);

impl Producer {
    /// Waits for the ends of many turns, which [`WaitMany::add`] names, over one connection besides the shared one. Runs a
    /// task of its own, which ends when what is returned is dropped.
    pub fn wait_many(&self) -> WaitMany {
        let (turns, named) = mpsc::unbounded_channel();
        let (sender, results) = mpsc::channel(RESULTS);
        tokio::spawn(run(self.clone(), named, sender));
        WaitMany { turns, results, waiting: 0 }
    }

    /// Ends of turns from now on.
    async fn ends(
        &self,
    ) -> Result<impl Stream<Item = Result<EndedTurn, ProducerError>> + use<>, ProducerError> {
        let keys = self.queue.keys(0);
        let place = self.connection.ask(|server| server.newest_event(&keys)).await?;
        let query = EventsQuery { scope: Scope::AllTenants, from: Some(place), ..EventsQuery::default() };
        let events = Operator::new(self.clone()).events(query);
        Ok(stream::unfold(events, async |mut events| Some((events.next().await.transpose()?, events))))
    }
}

/// Waits for turns from the first that is named on.
async fn run(producer: Producer, mut named: mpsc::UnboundedReceiver<TurnId>, results: mpsc::Sender<Waited>) {
    let Some(first) = named.recv().await else { return };
    let ends = producer.ends().await;
    let mut task = Task {
        producer,
        ends: stream::empty().boxed(),
        again: every(LOOK_AGAIN),
        waiting: HashSet::new(),
        look: VecDeque::new(),
    };
    match ends {
        Ok(ends) => task.ends = ends.boxed(),
        Err(error) => task.told(Err(error)),
    }
    task.add(first);
    task.run(named, results).await;
}

impl WaitMany {
    /// Waits for this turn, too.
    pub fn add(&mut self, turn: TurnId) {
        // The task lives as long as this does.
        self.waiting += usize::from(self.turns.send(turn).is_ok());
    }

    /// Waits for none of them any more.
    pub fn clear(&mut self) {
        self.waiting = 0;
        self.results.close();
    }

    /// How many turns have not ended.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// The next turn that ended, with its result or why that cannot be read. None: nothing is waited for. A turn that failed
    /// is a result, not an error. No end is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<(TurnId, Result<TurnResult, ProducerError>)> {
        if self.waiting == 0 {
            return None;
        }
        let waited = self.results.recv().await?;
        self.waiting -= 1;
        Some(waited)
    }
}

struct Task {
    producer: Producer,
    /// Ends that after an error.
    ends: BoxStream<'static, Result<EndedTurn, ProducerError>>,
    again: Interval,
    waiting: HashSet<TurnId>,
    /// Those of them to look at now.
    look: VecDeque<TurnId>,
}

impl Task {
    async fn run(mut self, mut named: mpsc::UnboundedReceiver<TurnId>, results: mpsc::Sender<Waited>) {
        loop {
            tokio::select! {
                () = results.closed() => return,
                Some(turn) = named.recv() => self.add(turn),
                Some(end) = self.ends.next() => self.told(end),
                _ = self.again.tick() => self.look.extend(&self.waiting),
            }
            // What else is there already goes the same way.
            while let Ok(turn) = named.try_recv() {
                self.add(turn);
            }
            while let Some(Some(end)) = self.ends.next().now_or_never() {
                self.told(end);
            }
            while !self.look.is_empty() {
                for waited in self.look_at_page().await {
                    if results.send(waited).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn add(&mut self, turn: TurnId) {
        self.waiting.insert(turn);
        self.look.push_back(turn);
    }

    fn told(&mut self, end: Result<EndedTurn, ProducerError>) {
        match end {
            Ok(ended) if self.waiting.contains(&ended.turn) => self.look.push_back(ended.turn),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!("{error}; turns that are waited for are looked at again and again");
                self.ends = stream::empty().boxed();
                self.again = every(LOOK_WITHOUT_EVENTS);
            }
        }
    }

    /// Looks at some turns; those that ended are not waited for any more.
    async fn look_at_page(&mut self) -> Vec<Waited> {
        let page = self.look.drain(..self.look.len().min(PAGE)).filter(|turn| self.waiting.contains(turn));
        let page: Vec<TurnId> = page.collect::<HashSet<_>>().into_iter().collect();
        match self.producer.results(&page).await {
            Ok(results) => {
                results.iter().for_each(|(turn, _)| {
                    self.waiting.remove(turn);
                });
                results
            }
            // Redis is away for longer than anybody wants to wait, or refuses.
            Err(error) => {
                self.look.clear();
                self.waiting.drain().map(|turn| (turn, Err(repeated(&error)))).collect()
            }
        }
    }
}

impl Producer {
    /// The results of those of `turns` that ended.
    async fn results(&self, turns: &[TurnId]) -> Result<Vec<Waited>, ProducerError> {
        let mut results = Vec::new();
        for keys in self.queue.all_keys() {
            let here: Vec<TurnId> =
                turns.iter().copied().filter(|turn| turn.shard() == keys.shard()).collect();
            let states = self.connection.ask(|server| server.turn_states(&keys, &here)).await?;
            let mut ended = Vec::new();
            for (turn, state) in here.into_iter().zip(states) {
                match state {
                    Ok(state) if state.end.is_some() => ended.push((turn, state)),
                    Ok(state) if state.agent.is_some() => {}
                    Ok(_) => results.push((turn, Err(self.unknown_turn(turn)))),
                    Err(fault) => results.push((turn, Err(fault.into()))),
                }
            }
            for some in pieces(&ended, REPLIES, |(_, state)| published(state)) {
                results.extend(self.results_of(&keys, some).await?);
            }
        }
        Ok(results)
    }

    /// The results of turns that ended.
    async fn results_of(
        &self,
        keys: &Keys,
        ended: &[(TurnId, TurnState)],
    ) -> Result<Vec<Waited>, ProducerError> {
        let read: Vec<ReadUpTo> =
            ended.iter().map(|(turn, _)| ReadUpTo { turn: *turn, last: StreamId::START }).collect();
        let streams = self.connection.ask(|server| server.results_after(keys, &read, ENTRIES)).await?;
        let result = |((turn, state), stream): (&(TurnId, TurnState), Result<Vec<ResultEntry>, Fault>)| {
            (
                *turn,
                stream.map_err(ProducerError::from).and_then(|stream| put_together(*turn, state, &stream)),
            )
        };
        Ok(ended.iter().zip(streams).map(result).collect())
    }

    fn unknown_turn(&self, turn: TurnId) -> ProducerError {
        ProducerError::UnknownTurn { turn, queue: self.queue.name.to_string() }
    }
}

/// Tokens in the turn's result stream.
fn published(state: &TurnState) -> usize {
    let top = state.top.as_ref().and_then(|top| top.id.parse::<StreamId>().ok());
    top.map_or(0, |top| usize::try_from(top.sequence).unwrap_or(usize::MAX))
}

/// The result out of the stream or, as far as that has expired, out of what the turn's hash keeps for longer.
fn put_together(
    turn: TurnId,
    state: &TurnState,
    stream: &[ResultEntry],
) -> Result<TurnResult, ProducerError> {
    let unreadable = |what: &str, reason: &dyn ToString| ProducerError::Unreadable {
        what: format!("the {what} of turn {turn}"),
        reason: reason.to_string(),
    };
    let agent = state.agent.as_ref().and_then(AgentId::agent);
    let stored = |what, bytes: &Option<Vec<u8>>| {
        let bytes = bytes.as_ref();
        bytes
            .map(|bytes| envelope::decode::<Event>(bytes).map_err(|error| unreadable(what, &error)))
            .transpose()
    };
    let mut passed_by = PassedBy::of_turn(turn);
    let events = stream.iter().filter_map(|entry| {
        let id: StreamId = entry.id.parse().ok()?;
        let event = event_of(entry).inspect_err(|reason| passed_by.note(id, reason)).ok()?;
        Some((Some(id), event))
    });
    let kept = [stored("stored reply", &state.reply)?, stored("stored outcome", &state.end)?];
    let (mut seen, mut reply) = (Seen::nothing(), Reply::default());
    let misfit = |misfit| match misfit {
        Misfit::Gap { expected, found } => ProducerError::Gap { turn, expected, found },
        Misfit::Uncut(error) => unreadable("result", &format!("tokens come again, and {error}")),
    };
    for (id, event) in events.chain(kept.into_iter().flatten().map(|event| (None, event))) {
        match event {
            Event::Begin(_) => {}
            Event::Delta(delta) => {
                seen.add(delta).map_err(misfit)?.into_iter().for_each(|delta| reply.push(delta));
            }
            Event::End(end) => {
                seen.finish(id.map_or(0, |id| id.sequence)).map_err(misfit)?;
                // A stream without its End holds nothing of ours any more, or only a part.
                return Ok(reply.ended(turn, agent, end, id.is_some() || state.reply.is_some()));
            }
        }
    }
    Err(unreadable("stored outcome", &"it is not an End"))
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The error, for one more turn.
fn repeated(error: &ProducerError) -> ProducerError {
    match error {
        ProducerError::Queue(fault) => ProducerError::Queue(fault.clone()),
        other => ProducerError::Unreadable { what: "the results".to_owned(), reason: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use turnmill_schema::{Delta, End, Outcome, Timing, Usage};

    use super::*;
    use crate::follow::foreign;

    fn entry(epoch: u64, sequence: u64, event: &Event) -> ResultEntry {
        let id = StreamId { epoch, sequence }.to_string();
        ResultEntry { id, event: envelope::encode(event).expect("encodes"), at_ms: None }
    }

    /// A result of so many tokens in a stream that holds the first `kept` of them; the entries are in epochs 10, 20, …
    fn ended(tokens: u32, kept: u32) -> (TurnState, Vec<ResultEntry>) {
        let delta =
            |index| Delta { index, tokens: vec![index], text: format!("{index} "), ..Delta::default() };
        let (outcome, usage, timing) = (Outcome::Completed, Usage::default(), Timing::default());
        let end = Event::End(End { outcome, finish: None, error: None, usage, timing, worker: None });
        let token =
            |index| entry(u64::from(index + 1) * 10, u64::from(index + 1), &Event::Delta(delta(index)));
        let mut stream: Vec<ResultEntry> = (0..kept).map(token).collect();
        stream.push(entry(u64::from(kept + 1) * 10, u64::from(tokens), &end));
        let end = Some(envelope::encode(&end).expect("encodes"));
        (TurnState { end, top: stream.last().cloned(), ..TurnState::default() }, stream)
    }

    #[test]
    fn foreign_entries_are_passed_by_as_a_follower_does() {
        for (tokens, kept) in [(2, 2), (3, 2)] {
            let (state, stream) = ended(tokens, kept);
            for place in 0..stream.len() {
                for foreign in foreign(StreamId { epoch: place as u64 * 10 + 5, sequence: 999 }) {
                    let mut stream = stream.clone();
                    stream.insert(place, foreign);
                    match put_together(TurnId::new(0), &state, &stream) {
                        Ok(result) => assert_eq!((result.text, tokens), (Some("0 1 ".to_owned()), kept)),
                        Err(ProducerError::Gap { expected, .. }) => {
                            assert_eq!((expected, tokens), (kept, kept + 1))
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_left_of_an_expired_stream_is_not_told_as_the_reply() {
        let (state, stream) = ended(2, 1);
        let part = stream[..1].to_vec();
        for left in [vec![], foreign(StreamId { epoch: 5, sequence: 999 }), part] {
            let result = put_together(TurnId::new(0), &state, &left).expect("its outcome is kept");
            assert_eq!((result.text, result.tokens, result.outcome), (None, vec![], Outcome::Completed));
        }
    }

    #[test]
    fn replies_are_gathered_by_their_tokens() {
        let (few, _) = ended(300, 0);
        let (many, _) = ended(5000, 0);
        let unknown = TurnState::default();
        for (states, expected) in [
            (vec![&few; 40], vec![13, 13, 13, 1]),
            (vec![&many; 3], vec![1, 1, 1]),
            (vec![&few, &many, &few], vec![1, 1, 1]),
            (vec![&unknown; 70], vec![32, 32, 6]),
        ] {
            let pieces = pieces(&states, REPLIES, |state| published(state));
            assert_eq!(pieces.iter().map(|piece| piece.len()).collect::<Vec<_>>(), expected);
        }
    }
}
