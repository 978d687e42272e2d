//! Waiting for many turns over two connections, however many turns there are.
//!
//! The queue's stream of events has an entry for every turn that ends. One reader of it says which turns to look at, and
//! they are looked at in pages over the shared connection.
//!
//! Invariants: the reader has its place in the stream before a turn is looked at, and all turns are looked at again once it has
//! another place, so that no end falls between; turns are looked at again now and then, since events can be trimmed or lost.
//! Commands are awaited by a task that does nothing else meanwhile: the caller, who takes the results, may await anything.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use turnmill_redis::steps::ResultEntry;
use turnmill_redis::{Fault, ReadUpTo, TurnState};
use turnmill_schema::keys::Keys;
use turnmill_schema::{StreamId, TurnId};

use crate::client::Client;
use crate::connection::{Pauses, unless_passing};
use crate::error::ClientError;
use crate::events::{Events, EventsQuery};
use crate::follow::{Assembly, Followed};
use crate::operate::Scope;
use crate::pieces::{Bounds, pieces};
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
/// How often turns are looked at that no event told of, if there are few.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The same if events cannot be read.
const LOOK_WITHOUT_EVENTS: Duration = Duration::from_millis(500);
/// Turns that are looked at in a second without an event, at most.
const LOOKS_A_SECOND: usize = 1000;
/// The first pause before events are read again that could not be read, and the longest.
const REOPEN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));

/// The ends of many turns, in the order in which they come; see [`Client::wait_many`].
#[derive(Debug)]
pub struct WaitMany {
    turns: mpsc::UnboundedSender<TurnId>,
    results: mpsc::Receiver<Waited>,
    /// Each has one result to come.
    waiting: HashSet<TurnId>,
}

/// A turn and its result, or why that cannot be read.
type Waited = (TurnId, Result<TurnResult, ClientError>);

impl Client {
    /// Waits for the ends of many turns, which [`WaitMany::add`] names, over one connection besides the shared one. Runs a
    /// task of its own, which ends when what is returned is dropped.
    ///
    /// ```no_run
    /// use turnmill_client::{Client, NewTurn};
    ///
    /// # async fn example(client: Client, turns: Vec<NewTurn>) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut ends = client.wait_many();
    /// for enqueued in client.enqueue_batch(turns).await? {
    ///     ends.add(enqueued.turn);
    /// }
    /// while let Some((turn, result)) = ends.next().await {
    ///     println!("{turn}: {:?}", result?.text);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn wait_many(&self) -> WaitMany {
        let (turns, named) = mpsc::unbounded_channel();
        let (sender, results) = mpsc::channel(RESULTS);
        tokio::spawn(run(self.clone(), named, sender));
        WaitMany { turns, results, waiting: HashSet::new() }
    }
}

/// Waits for turns from the first that is named on.
async fn run(client: Client, mut named: mpsc::UnboundedReceiver<TurnId>, results: mpsc::Sender<Waited>) {
    let Some(first) = named.recv().await else { return };
    let mut ends = Ends::of(client.clone()).into_stream().boxed();
    let told = ends.next().await;
    let (waiting, look) = (HashSet::new(), VecDeque::new());
    let mut task = Task { client, ends, is_told: true, again: Instant::now(), waiting, look };
    task.add(first);
    told.into_iter().for_each(|told| task.hear(told));
    task.run(named, results).await;
}

impl WaitMany {
    /// Waits for this turn, too. A turn that is waited for already has one result all the same.
    pub fn add(&mut self, turn: TurnId) {
        // The task lives as long as this does, unless its runtime ended.
        if !self.waiting.contains(&turn) && self.turns.send(turn).is_ok() {
            self.waiting.insert(turn);
        }
    }

    /// How many turns have not ended.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The next turn that ended, with its result or why that cannot be read. None: nothing is waited for. A turn that failed
    /// is a result, not an error. No end is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<(TurnId, Result<TurnResult, ClientError>)> {
        if self.waiting.is_empty() {
            return None;
        }
        let (turn, result) = self.results.recv().await?;
        self.waiting.remove(&turn);
        Some((turn, result))
    }
}

/// What is heard of the ends of turns.
enum Told {
    /// Ends from now on are told.
    Open,
    /// A turn ended.
    Ended(TurnId),
    /// No end is told until they can be read again.
    Lost(ClientError),
}

/// Reads the stream of events, whatever happens to it.
struct Ends {
    client: Client,
    /// None: they are not read.
    events: Option<Events>,
    /// Set if reading failed, until an end is told.
    lost: Option<Pauses>,
}

impl Ends {
    fn of(client: Client) -> Self {
        Self { client, events: None, lost: None }
    }

    fn into_stream(self) -> impl Stream<Item = Told> {
        stream::unfold(self, async |mut ends| {
            let told = ends.next().await.unwrap_or_else(|error| {
                ends.events = None;
                ends.lost.get_or_insert_with(|| Pauses::between(REOPEN.0, REOPEN.1));
                Told::Lost(error)
            });
            Some((told, ends))
        })
    }

    async fn next(&mut self) -> Result<Told, ClientError> {
        if let Some(events) = &mut self.events
            && let Some(ended) = events.next().await?
        {
            self.lost = None;
            return Ok(Told::Ended(ended.turn));
        }
        if let Some(pauses) = &mut self.lost {
            sleep(pauses.next()).await;
        }
        let keys = self.client.queue.keys(0);
        let place = self.client.connection.ask(|server| server.newest_event(&keys)).await?;
        let query = EventsQuery { scope: Scope::AllTenants, from: Some(place), ..EventsQuery::default() };
        self.events = Some(self.client.events(query));
        Ok(Told::Open)
    }
}

struct Task {
    client: Client,
    ends: BoxStream<'static, Told>,
    /// Whether ends are told.
    is_told: bool,
    /// When turns are looked at that no event told of.
    again: Instant,
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
                Some(told) = self.ends.next() => self.hear(told),
                () = sleep_until(self.again) => self.look_at_all(),
            }
            // What else is there already goes the same way.
            while let Ok(turn) = named.try_recv() {
                self.add(turn);
            }
            while let Some(Some(told)) = self.ends.next().now_or_never() {
                self.hear(told);
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

    fn hear(&mut self, told: Told) {
        match told {
            Told::Ended(turn) if self.waiting.contains(&turn) => self.look.push_back(turn),
            Told::Ended(_) => {}
            Told::Open => {
                if !self.is_told {
                    tracing::info!("events are read again");
                }
                self.is_told = true;
                self.look_at_all();
            }
            Told::Lost(error) => {
                tracing::warn!(
                    "{error}; until events can be read, turns that are waited for are looked at again and again"
                );
                self.is_told = false;
                self.again = self.again.min(Instant::now() + pace(self.waiting.len(), false));
            }
        }
    }

    fn look_at_all(&mut self) {
        self.look = self.waiting.iter().copied().collect();
        self.again = Instant::now() + pace(self.waiting.len(), self.is_told);
    }

    /// Looks at some turns; those that ended are not waited for any more.
    async fn look_at_page(&mut self) -> Vec<Waited> {
        let page = self.look.drain(..self.look.len().min(PAGE)).filter(|turn| self.waiting.contains(turn));
        let page: Vec<TurnId> = page.collect::<HashSet<_>>().into_iter().collect();
        match self.client.results(&page).await {
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

/// How long turns that no event told of are left alone, if this many are waited for and ends are told, or are not.
fn pace(turns: usize, is_told: bool) -> Duration {
    let least = if is_told { LOOK_AGAIN } else { LOOK_WITHOUT_EVENTS };
    least.max(Duration::from_millis((turns * 1000 / LOOKS_A_SECOND) as u64))
}

impl Client {
    /// The results of those of `turns` that ended.
    async fn results(&self, turns: &[TurnId]) -> Result<Vec<Waited>, ClientError> {
        let mut results = Vec::new();
        for keys in self.queue.all_keys() {
            let here: Vec<TurnId> =
                turns.iter().copied().filter(|turn| turn.shard() == keys.shard()).collect();
            let states = self
                .connection
                .ask(async |server| unless_passing(server.turn_states(&keys, &here).await?))
                .await?;
            self.connection.end_overdue(&keys, states.iter().flatten()).await;
            let mut ended = Vec::new();
            for (turn, state) in here.iter().zip(states) {
                match state {
                    Ok(state) if state.end.is_some() => ended.push((*turn, state)),
                    Ok(state) if state.agent.is_some() => {}
                    Ok(_) => results.push((*turn, Err(self.unknown_turn(*turn)))),
                    Err(fault) => results.push((*turn, Err(fault.into()))),
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
    ) -> Result<Vec<Waited>, ClientError> {
        let read: Vec<ReadUpTo> =
            ended.iter().map(|(turn, _)| ReadUpTo { turn: *turn, last: StreamId::START }).collect();
        let streams = self
            .connection
            .ask(async |server| unless_passing(server.results_after(keys, &read, ENTRIES).await?))
            .await?;
        let result = |((turn, state), stream): (&(TurnId, TurnState), Result<Vec<ResultEntry>, Fault>)| {
            (*turn, stream.map_err(ClientError::from).and_then(|stream| put_together(*turn, state, &stream)))
        };
        Ok(ended.iter().zip(streams).map(result).collect())
    }
}

/// Tokens in the turn's result stream.
fn published(state: &TurnState) -> usize {
    let top = state.top.as_ref().and_then(|top| top.id.parse::<StreamId>().ok());
    top.map_or(0, |top| usize::try_from(top.sequence).unwrap_or(usize::MAX))
}

/// The result out of the stream or, as far as that has expired, out of what the turn's hash keeps for longer.
fn put_together(turn: TurnId, state: &TurnState, stream: &[ResultEntry]) -> Result<TurnResult, ClientError> {
    let (mut assembly, mut reply) = (Assembly::after(turn, StreamId::START), Reply::default());
    for entry in stream {
        let (id, added) = assembly.take(entry)?;
        let end = added.and_then(|event| reply.take(Followed { id: Some(id), event }));
        if let Some(end) = end {
            return Ok(reply.ended(turn, state.agent.as_ref(), end));
        }
    }
    let kept = state.end.as_ref().map(|end| assembly.take_stored(end, state)).transpose()?;
    let end = kept.into_iter().flatten().find_map(|followed| reply.take(followed));
    let end = end.ok_or_else(|| assembly.unreadable("stored outcome", "there is none".to_owned()))?;
    Ok(reply.ended(turn, state.agent.as_ref(), end))
}

/// The error, for one more turn.
fn repeated(error: &ClientError) -> ClientError {
    match error {
        ClientError::Queue(fault) => ClientError::Queue(fault.clone()),
        other => ClientError::Unreadable { what: "the results".to_owned(), reason: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use turnmill_schema::{Delta, End, Event, Outcome, Timing, Usage, envelope};

    use super::*;
    use crate::follow::foreign;

    fn entry(epoch: u64, sequence: u64, event: &Event) -> ResultEntry {
        let id = StreamId { epoch, sequence }.to_string();
        ResultEntry { id, event: envelope::encode(event).expect("encodes"), at_ms: None }
    }

    /// A result of `tokens` tokens in a stream that holds the first `kept` of them; the entries are in epochs 10, 20, …
    fn ended(tokens: u32, kept: u32) -> (TurnState, Vec<ResultEntry>) {
        let delta =
            |index| Delta { index, tokens: vec![index], text: format!("{index} "), ..Delta::default() };
        let (outcome, usage, timing) = (Outcome::Completed, Usage::default(), Timing::default());
        let end =
            Event::End(End { outcome, finish: None, stop: None, error: None, usage, timing, worker: None });
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
                        Err(ClientError::Gap { expected, .. }) => {
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
    fn many_turns_are_looked_at_less_often() {
        for (turns, is_told, expected_ms) in [
            (0, true, 5_000),
            (5_000, true, 5_000),
            (100_000, true, 100_000),
            (1, false, 500),
            (500, false, 500),
            (4_096, false, 4_096),
        ] {
            assert_eq!(pace(turns, is_told), Duration::from_millis(expected_ms), "{turns} {is_told}");
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
