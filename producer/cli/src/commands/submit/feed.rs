//! The way of turns into the queue: lines are checked one by one and enqueued as many to a call as are there.
//!
//! Invariant: turns go in in the order of their lines. So at any time there is one line before which all are in the
//! queue, and after which none is.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use futures::stream::ReadyChunks;
use futures::{Stream, StreamExt, stream};
use serde::Serialize;
use turnmill_client::schema::{AgentName, TurnId};
use turnmill_client::{BATCH_TURNS, BatchError, Client, ClientError, Enqueued, Fate, PreparedTurn};

use crate::exit::Exit;
use crate::input::{Given, WrongLine};
use crate::traces::{Enqueueing, Traces};
use crate::words::words;

/// Longest pause between two tries while the queue is full. The queue's own advice is up to a minute, which is long if
/// the turns that are there end sooner.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A turn in the queue.
#[derive(Clone, Debug, Serialize)]
pub struct Submitted {
    pub turn: TurnId,
    pub agent: Option<AgentName>,
    /// Where it stood in the input.
    #[serde(skip)]
    pub line: Option<u64>,
}

/// Why nothing more is enqueued.
#[derive(Debug)]
pub struct Stopped {
    /// What is wrong.
    pub why: Exit,
    /// Turns that may be in the queue: Redis did not say.
    pub unsure: Vec<Submitted>,
    /// The first line that is not in the queue for certain.
    pub line: Option<u64>,
}

/// What is needed to enqueue, and what was read and is not in the queue yet.
pub struct Feed<'a, L: Stream> {
    client: &'a Client,
    traces: &'a Traces,
    /// If the queue is full, wait for room.
    wait_for_room: bool,
    /// How many turns the next call may hold: the queue has room for no more, or the turn behind them is not to be enqueued.
    room: usize,
    lines: Pin<Box<ReadyChunks<L>>>,
    /// What was written to the store for them stays there from one try to the next.
    turns: Vec<PreparedTurn>,
    /// One for each of `turns`.
    marks: VecDeque<Mark>,
    /// What ends the feed, once `turns` are in the queue.
    stopped: Option<Stopped>,
}

/// What goes with a turn on its way.
struct Mark {
    line: Option<u64>,
    span: Enqueueing,
}

impl<'a, L: Stream<Item = Result<Given, WrongLine>>> Feed<'a, L> {
    pub fn new(client: &'a Client, traces: &'a Traces, wait_for_room: bool, lines: L) -> Self {
        Self {
            client,
            traces,
            wait_for_room,
            room: BATCH_TURNS,
            lines: Box::pin(lines.ready_chunks(BATCH_TURNS)),
            turns: Vec::new(),
            marks: VecDeque::new(),
            stopped: None,
        }
    }

    /// Turns as they come to be in the queue. Ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Vec<Submitted>, Stopped>> {
        stream::try_unfold(self, async move |mut feed| {
            Ok(feed.next().await?.map(|submitted| (submitted, feed)))
        })
    }

    async fn next(&mut self) -> Result<Option<Vec<Submitted>>, Stopped> {
        while self.turns.is_empty() {
            if let Some(stopped) = self.stopped.take() {
                return Err(stopped);
            }
            let Some(batch) = self.lines.next().await else { return Ok(None) };
            self.take(batch);
        }
        loop {
            let tried = self.turns.len().min(self.room);
            let error = match self.client.enqueue_prepared(&mut self.turns[..tried]).await {
                Ok(enqueued) => {
                    self.room = BATCH_TURNS;
                    return Ok(Some(self.enqueued(&enqueued)));
                }
                Err(error) => error,
            };
            let (full, taken) = (room_in(&error).filter(|_| self.wait_for_room), taken_in(&error));
            // Large turns take several calls, and the first ones may have gone through.
            let enqueued = first_enqueued(&error.fates);
            if (full.is_some() || taken.is_some()) && !enqueued.is_empty() {
                return Ok(Some(self.enqueued(&enqueued)));
            }
            match (full, taken) {
                (Some((room, retry_after)), _) => self.make_room(room, tried, retry_after).await,
                // A conflict refuses the whole call; the turns in front of it have none.
                (None, Some(place @ 1..)) => self.room = place,
                (None, _) => return self.failed(error, tried).await,
            }
        }
    }

    /// `tried` turns were too many for `room` places: fewer go next time, after a pause if there was no place.
    async fn make_room(&mut self, room: u64, tried: usize, retry_after: Duration) {
        if room == 0 || tried == 1 {
            tokio::time::sleep(retry_after.min(LONGEST_PAUSE)).await;
        }
        let room = usize::try_from(room).unwrap_or(BATCH_TURNS);
        self.room = room.min(tried - 1).max(1);
    }

    /// Checks lines and gives them their ids, up to the first wrong one.
    fn take(&mut self, batch: Vec<Result<Given, WrongLine>>) {
        for given in batch {
            if let Err(stopped) = given.map_err(Stopped::from).and_then(|given| self.prepare(given)) {
                self.stopped = Some(stopped);
                return;
            }
        }
    }

    fn prepare(&mut self, given: Given) -> Result<(), Stopped> {
        let Given { line, turn } = given;
        let mut turn = self.client.prepare(turn);
        self.client.check(&turn).map_err(|error| match line {
            Some(line) => WrongLine { line, reason: words(&error) }.into(),
            None => Stopped { why: error.into(), unsure: Vec::new(), line },
        })?;
        let span = self.traces.enqueue(&mut turn);
        self.turns.push(turn);
        self.marks.push_back(Mark { line, span });
        Ok(())
    }

    /// The first turns are in the queue, as these.
    fn enqueued(&mut self, enqueued: &[Enqueued]) -> Vec<Submitted> {
        let marks = self.marks.drain(..enqueued.len());
        let turns = self.turns.drain(..enqueued.len()).zip(marks).zip(enqueued);
        let submitted = |((turn, Mark { line, span }), done): ((PreparedTurn, Mark), &Enqueued)| {
            span.enqueued(done.turn);
            Submitted { turn: done.turn, agent: turn.turn().agent.clone(), line }
        };
        turns.map(submitted).collect()
    }

    /// Ends the feed, after those of the turns tried that are in the queue all the same.
    async fn failed(&mut self, error: BatchError, tried: usize) -> Result<Option<Vec<Submitted>>, Stopped> {
        let enqueued = first_enqueued(&error.fates);
        let certain = error.fates.iter().rev().take_while(|fate| **fate == Fate::NotEnqueued).count();
        let submitted = self.enqueued(&enqueued);
        // Between those that are in and those that are not, none is taken for either.
        let unsure = tried - enqueued.len() - certain;
        let line = self.marks.get(unsure).and_then(|mark| mark.line);
        // A conflict is only told of the first turn.
        let wrong = taken_in(&error).and_then(|_| self.marks.front()).and_then(|mark| mark.line);
        let why = match wrong {
            Some(line) => Exit::bad_input(WrongLine { line, reason: words(&error.into()) }),
            None => error.into(),
        };
        let (rest, marks) = (std::mem::take(&mut self.turns), std::mem::take(&mut self.marks));
        let unsure = rest.iter().map(PreparedTurn::turn).zip(marks).take(unsure);
        let unsure = unsure.map(|(turn, mark)| Submitted {
            turn: turn.id,
            agent: turn.agent.clone(),
            line: mark.line,
        });
        let stopped = Stopped { why, unsure: unsure.collect(), line };
        self.client.discard(rest).await;
        if submitted.is_empty() {
            return Err(stopped);
        }
        self.stopped = Some(stopped);
        Ok(Some(submitted))
    }
}

/// The first turns, up to the first that is not in the queue.
fn first_enqueued(fates: &[Fate]) -> Vec<Enqueued> {
    fates.iter().map_while(Fate::enqueued).collect()
}

/// How much room there is and when to come again, if the queue is full and ever has room.
fn room_in(error: &BatchError) -> Option<(u64, Duration)> {
    match &*error.source {
        ClientError::QueueFull { open, limit: limit @ 1.., retry_after, .. } => {
            Some((limit.saturating_sub(*open), *retry_after))
        }
        _ => None,
    }
}

/// The place of the turn whose idempotency key is another turn's.
fn taken_in(error: &BatchError) -> Option<usize> {
    error.place.filter(|_| matches!(*error.source, ClientError::KeyTaken { .. }))
}

impl From<WrongLine> for Stopped {
    fn from(wrong: WrongLine) -> Self {
        let line = Some(wrong.line);
        Self { why: Exit::bad_input(wrong), unsure: Vec::new(), line }
    }
}
