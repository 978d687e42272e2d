//! The port to the queue: claiming turns, keeping leases alive, publishing tokens, ending turns.
//!
//! Invariants every adapter keeps (the conformance suite in `turnmill-tests` checks them):
//! * turns of one agent are leased one at a time, in the order they were enqueued;
//! * nothing is written for a turn by a worker whose lease was taken over ([`BrokerError::Fenced`]);
//! * every call may be repeated after a lost reply and then answers the same.

mod error;
pub mod redis;

use std::future::Future;

use turnmill_schema::envelope::EnvelopeError;
use turnmill_schema::{AgentId, Delta, End, History, Priority, TranscriptEntry, Turn, TurnId};

pub use error::{Advice, BrokerError};

/// A delivered ready-stream entry: "this agent is runnable". It means the agent, not a turn.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReadyToken {
    /// Whose head of backlog may be leased.
    pub agent: AgentId,
    /// The ready stream it came from.
    pub priority: Priority,
    /// The shard whose keys hold it.
    pub shard: u16,
    /// Its entry id in that stream.
    pub entry: String,
}

/// The right to run one turn, until another worker takes it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The turn.
    pub turn: TurnId,
    /// The token held for it.
    pub token: ReadyToken,
    /// Grows with every lease of the agent; the fence.
    pub epoch: u64,
    /// Which attempt this is, from 1.
    pub attempt: u32,
}

/// A leased turn with everything needed to run it.
#[derive(Debug)]
pub struct Claim {
    /// The right to run it.
    pub lease: Lease,
    /// The turn; an error where its envelope cannot be read, which ends the turn.
    pub turn: Result<Turn, EnvelopeError>,
    /// The agent's finished conversation.
    pub history: History,
    /// What earlier attempts published, in order, from token 0 on.
    pub published: Vec<Delta>,
    /// Milliseconds from enqueue to this lease, by the queue's clock.
    pub queued_ms: u64,
    /// Milliseconds from enqueue to the first published token of earlier attempts, where there was one.
    pub first_token_ms: Option<u64>,
    /// The last two attempts made no token: run it alone in its steps, so that it takes no neighbours down.
    pub alone: bool,
}

/// What became of leases in a heartbeat.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// Turns whose lease is gone (taken over, cancelled or ended): stop them, publish nothing more.
    pub lost: Vec<TurnId>,
}

/// Queue counts, read in one atomic step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Agents with a token that no worker holds.
    pub runnable: u64,
    /// Agents held by workers.
    pub leased: u64,
    /// Turns that have not ended, waiting behind others of their agent included.
    pub turns: u64,
    /// Milliseconds since the oldest head (waiting or running) was enqueued; none when there is no work.
    pub oldest_ms: Option<u64>,
}

/// The queue, as one worker sees it.
pub trait Broker: Send + Sync + 'static {
    /// Waits up to about two seconds for tokens; at most `room` of them. After an error it first hands out
    /// tokens that were delivered to this worker and whose reply was lost.
    fn read(&self, room: usize) -> impl Future<Output = Result<Vec<ReadyToken>, BrokerError>> + Send;

    /// Takes over tokens whose holders were silent for a whole lease; at most `room` of them.
    fn reclaim(&self, room: usize) -> impl Future<Output = Result<Vec<ReadyToken>, BrokerError>> + Send;

    /// Leases the head of the token's agent. None: the token was not ours any more, or nothing was left
    /// to run; it is then dealt with.
    fn lease(&self, token: &ReadyToken) -> impl Future<Output = Result<Option<Claim>, BrokerError>> + Send;

    /// Keeps leases and read-but-unleased tokens alive.
    fn heartbeat(
        &self,
        held: &[Lease],
        unleased: &[ReadyToken],
    ) -> impl Future<Output = Result<Beat, BrokerError>> + Send;

    /// Publishes tokens, at least one. Deltas of one turn are appended in order by one task.
    fn append(&self, lease: &Lease, delta: &Delta) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Ends the turn: publishes `end`, commits `entry` to the transcript (completed turns of agents only),
    /// frees the agent's next turn. `published` is how many tokens of the reply the result stream must hold.
    fn finish(
        &self,
        lease: &Lease,
        published: u32,
        end: &End,
        entry: Option<&TranscriptEntry>,
    ) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Gives the turn back at the head of its agent's backlog, not counting the attempt.
    fn release(&self, lease: &Lease) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Hands an unleased token back, so that another worker reads it.
    fn put_back(&self, token: &ReadyToken) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Work that keeps the queue whole: lost tokens, consumers that are gone.
    fn sweep(&self) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// How much work there is.
    fn counts(&self) -> impl Future<Output = Result<QueueCounts, BrokerError>> + Send;
}
