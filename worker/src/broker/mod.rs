//! The port to the queue: claiming turns, keeping leases alive, publishing tokens, ending turns.
//!
//! Invariants every adapter keeps (the conformance suite in `turnmill-tests` checks them):
//! * turns of one agent are leased one at a time, in the order they were enqueued;
//! * nothing is written for a turn by a worker whose lease was taken over ([`BrokerError::Fenced`]);
//! * every call may be repeated after a lost reply and then answers the same.

#[cfg(test)]
pub(crate) mod double;
mod error;
mod fairness;
mod held;
pub mod redis;
mod references;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use turnmill_schema::envelope::EnvelopeError;
use turnmill_schema::{
    DeadReason, Delta, End, History, Manifest, StoredTurn, TranscriptEntry, TurnId, WorkerStatus,
};

pub use error::{Advice, BrokerError};
pub use fairness::Fairness;
pub use held::{Fence, Holdings, Lease, Renewable, Ticket, TicketId};
pub use references::{Manifests, PayloadsInUse, References, Root};

/// A worker that was silent for this many leases is not listed any more.
pub const LISTED_LEASES: u64 = 3;

/// A leased turn with everything needed to run it.
#[derive(Debug)]
pub struct Claim {
    /// The right to run it; shared by everything that publishes and ends the turn.
    pub lease: Arc<Lease>,
    /// The turn, or where it is. An error if it, its agent's history or what was published of it cannot be read: the attempt
    /// fails, and the last one ends the turn.
    pub turn: Result<StoredTurn, EnvelopeError>,
    /// The agent's finished conversation; shared with an adapter that keeps it for the agent's next turn.
    pub history: Arc<History>,
    /// What is stored of the agent's K and V, as far as anybody said; a hint, of which nothing needs to be there.
    pub manifest: Option<Manifest>,
    /// What earlier attempts published, in order, from token 0 on.
    pub published: Vec<Delta>,
    /// Milliseconds from enqueue to this lease, by the queue's clock.
    pub queued_ms: u64,
    /// Time left until the turn's deadline, if it has one.
    pub expires_in: Option<Duration>,
    /// Milliseconds from enqueue to the first published token of earlier attempts, if there was one.
    pub first_token_ms: Option<u64>,
    /// The epoch of the attempt before this one, if there was one.
    pub earlier_epoch: Option<u64>,
    /// The last two attempts made no token: run it alone in its steps, so that it takes no neighbours down.
    pub alone: bool,
}

/// How a turn ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Ending {
    /// How many tokens of the reply the result stream must hold.
    pub published: u32,
    /// The terminal result.
    pub end: End,
    /// What a completed turn of an agent adds to its history.
    pub entry: Option<TranscriptEntry>,
    /// The whole reply, if it is short: kept with the outcome, so that the result stream may go soon.
    pub reply: Option<Delta>,
    /// Why it is a dead letter; for failed turns.
    pub reason: Option<DeadReason>,
    /// Whether this worker would continue with the agent's next turn.
    pub continues: bool,
    /// What is stored of the agent's K and V now, whatever the outcome. None: what was said before stands, unless the turn
    /// replaced the history it was about. Turns that stand alone leave none.
    pub manifest: Option<Manifest>,
}

/// What becomes of a turn whose attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It runs again, after the delay.
    Later,
    /// That was its last attempt: it has ended as failed.
    Dead,
}

/// What a worker is told by an operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// Finish what runs and stop.
    pub drain: bool,
}

/// Agents and turns of one priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PriorityCounts {
    /// Agents with a ticket that no worker holds.
    pub runnable: u64,
    /// Agents held by workers.
    pub leased: u64,
    /// Turns that have not ended, those waiting behind others of their agent included.
    pub open: u64,
}

/// Queue counts, read in one atomic step for each shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// By priority, in the order of [`turnmill_schema::Priority::ALL`].
    pub priorities: [PriorityCounts; 2],
    /// Agents that wait for a retry or a scheduled turn.
    pub delayed: u64,
    /// Dead letters.
    pub dead: u64,
    /// What ended turns take, roughly, in bytes.
    pub retained_bytes: u64,
    /// Turns ever enqueued.
    pub enqueued: u64,
    /// Turns ever ended, by outcome, in the order of [`turnmill_schema::Outcome::ALL`].
    pub ended: [u64; 4],
    /// Redis's own count of the runnable, a cross-check; none if it does not know.
    pub lag: Option<u64>,
    /// No turn is leased until somebody resumes the queue.
    pub paused: bool,
    /// Milliseconds since the oldest head (waiting or running) was enqueued; none when there is no work.
    pub oldest_ms: Option<u64>,
}

impl QueueCounts {
    /// Agents with a ticket that no worker holds.
    pub fn runnable(&self) -> u64 {
        self.priorities.iter().map(|counts| counts.runnable).sum()
    }

    /// Agents held by workers.
    pub fn leased(&self) -> u64 {
        self.priorities.iter().map(|counts| counts.leased).sum()
    }

    /// Turns that have not ended.
    pub fn open(&self) -> u64 {
        self.priorities.iter().map(|counts| counts.open).sum()
    }
}

/// The queue, as one worker sees it. What the worker has in its hands are values ([`Ticket`], [`Lease`]): an adapter renews
/// them for as long as they live, and leaves them to others when they are dropped.
///
/// The calls of the second half are to be made on timers of their own, whether the worker has room for turns or not: while one
/// worker makes them, nobody in the queue is forgotten.
pub trait Broker: Send + Sync + 'static {
    /// Waits up to about two seconds for tickets; at most `room` of them. Of every four tickets one is of batch priority, if
    /// both kinds wait. After an error it first hands out tickets that were delivered to this worker and whose reply was lost.
    fn read(&self, room: usize) -> impl Future<Output = Result<Vec<Ticket>, BrokerError>> + Send;

    /// Leases the head of the ticket's agent. None: the ticket was not ours any more, or nothing was left to run, or its tenant
    /// runs as many turns as it may, or the queue is paused; it is then dealt with.
    fn lease(&self, ticket: &Ticket) -> impl Future<Output = Result<Option<Claim>, BrokerError>> + Send;

    /// Publishes tokens, at least one. Deltas of one turn are appended in order by one task.
    fn append(&self, lease: &Lease, delta: &Delta) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Ends the turn: publishes its End, commits its entry to the transcript (completed turns of agents only), frees the
    /// agent's next turn. Some: this worker continues with the agent's next turn; lease the ticket, or return it.
    ///
    /// From its first call on the lease is not called lost: repeat the call until it is answered.
    fn finish(
        &self,
        lease: &Lease,
        ending: &Ending,
    ) -> impl Future<Output = Result<Option<Ticket>, BrokerError>> + Send;

    /// Gives the turn back at the head of its agent's backlog, not counting the attempt. `manifest`: what is stored of
    /// its K and V now; none: what was said before stands.
    fn requeue(
        &self,
        lease: &Lease,
        manifest: Option<&Manifest>,
    ) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Says that the attempt failed, and why in one word and in one sentence. The turn stays the head of its agent's
    /// backlog and runs again after `delay`, or ends as a dead letter if it was its last attempt.
    fn retry(
        &self,
        lease: &Lease,
        delay: Duration,
        reason: DeadReason,
        text: &str,
    ) -> impl Future<Output = Result<Retry, BrokerError>> + Send;

    /// Says what is stored of the agent's K and V now, during or after the lease: what the store acknowledged later than
    /// the turn ended. Only a hint, so it is ignored if it comes too late: a later lease said something since, the
    /// history was forgotten, or the agent is gone.
    fn advance(
        &self,
        lease: &Fence,
        manifest: &Manifest,
    ) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Returns an unleased ticket, so that another worker reads it at once.
    fn return_ticket(&self, ticket: &Ticket) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// How many turns this worker has leased.
    fn leases(&self) -> usize;

    /// How much work there is.
    fn counts(&self) -> impl Future<Output = Result<QueueCounts, BrokerError>> + Send;

    /// Turns that other workers completed lately: those among the `newest` last turns of each shard that ended.
    fn completed_by_others(
        &self,
        newest: usize,
    ) -> impl Future<Output = Result<Vec<TurnId>, BrokerError>> + Send;

    /// Enters this worker into the registry, and asks what it is told.
    fn register(&self, status: &WorkerStatus) -> impl Future<Output = Result<Orders, BrokerError>> + Send;

    /// Takes this worker out of the registry.
    fn leave(&self) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Renews every lease and ticket in this worker's hands, and marks those that are lost. To be called three times a lease,
    /// unless the engine hangs: its turns must go elsewhere.
    fn renew(&self) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Waits for the next running turn that somebody cancelled, and marks its lease as lost if it is this worker's. Notices get
    /// lost with a connection; renewals find what they missed.
    fn hear(&self) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Makes agents runnable that waited for a time or for a place among their tenant's turns. When to look again at the latest.
    fn promote(&self) -> impl Future<Output = Result<Duration, BrokerError>> + Send;

    /// Makes agents runnable again whose worker was silent for a whole lease; how many.
    fn reclaim(&self) -> impl Future<Output = Result<u64, BrokerError>> + Send;

    /// Work that keeps the queue whole and small: lost tickets, consumers that are gone, results past their time.
    fn sweep(&self) -> impl Future<Output = Result<(), BrokerError>> + Send;
}
