//! A queue in the memory of one process: the same port and the same promises as the one in Redis, and nothing kept
//! when the process ends. For the simulation, which injects the clock ([`Clock`]) and what happens to calls on their way
//! ([`Link`]), and for the conformance suite and the traces, which hold it against the one in Redis.
//!
//! Invariants:
//! * a call is one step: it holds the queue's only lock, never across an await, and time stands still meanwhile;
//! * what a call answers is a function of the queue, the clock and the call: the simulation replays by its seed.
//!
//! | file | owns |
//! |---|---|
//! | `state` | what a queue consists of, where agents are |
//! | `ready` | tickets, waiting and in workers' hands |
//! | `enqueue` | turns come in |
//! | `tickets` | reading, renewals, reclaiming, promotion |
//! | `lease`, `run`, `conclude` | a turn's way from its lease to its end |
//! | `operate` | cancelling, pausing |
//! | `broker` | a worker's handle: the [`Broker`](turnmill_worker::broker::Broker) |

mod broker;
mod clock;
mod conclude;
mod enqueue;
mod lease;
mod link;
mod operate;
mod ready;
mod registry;
mod run;
mod state;
mod sweep;
mod tickets;

use std::sync::{Arc, Mutex, PoisonError};

use turnmill_redis::steps::{AgentAction, DepthLimits};
use turnmill_schema::{AgentId, Delta, Event, TranscriptEntry, Turn, TurnId, WorkerStatus};
use turnmill_worker::broker::QueueCounts;

pub use broker::MemoryBroker;
pub use clock::{Clock, TokioClock};
pub use enqueue::{AfterTurn, NotEnqueued, QueueFull};
pub use link::{Direct, Link, Passage};
pub use operate::{Acted, AgentState, Cancelled, DeadLetter};

use conclude::Retention;
use state::State;

/// What a worker of a [`MemoryQueue`] must know.
#[derive(Clone, Debug)]
pub struct MemorySettings {
    /// This worker's name, unlike that of any other worker.
    pub worker: String,
    /// A worker silent for this long loses its turns.
    pub lease_ms: u64,
    /// Attempts in a row without a new token after which a turn fails.
    pub max_attempts: u32,
    /// How long an ended turn's results are kept.
    pub result_ttl_ms: u64,
    /// How long an ended turn's outcome and its idempotency key are kept.
    pub outcome_ttl_ms: u64,
    /// How long the results of an ended turn stay whose whole reply is kept with its outcome.
    pub keep_stream_ms: u64,
    /// What ended turns may take, roughly, in bytes; beyond it the oldest are forgotten early.
    pub retained_bytes: u64,
    /// Turns of one tenant that may run at once; 0: no limit.
    pub tenant_max_running: u64,
    /// Turns in a row that a worker may take of an agent while other agents wait.
    pub max_continues: u32,
    /// Time to the next look for agents that wait, if nobody is due: ends of turns and other workers wake nobody.
    pub look_every_ms: u64,
}

impl From<&MemorySettings> for Retention {
    fn from(settings: &MemorySettings) -> Self {
        Self { result_ttl_ms: settings.result_ttl_ms, outcome_ttl_ms: settings.outcome_ttl_ms }
    }
}

/// A check that a queue leaves out, to show that the simulation misses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutation {
    /// Every check is made.
    #[default]
    None,
    /// Turns are published and ended whatever the epoch.
    NoFence,
    /// Renewals keep nothing.
    NoRenewal,
    /// Agents of silent workers are not made runnable again.
    NoReclaim,
    /// A ticket is leased whichever worker has it, and though its agent has another by now.
    NoTicketCheck,
    /// Manifests are taken however late they come.
    NoManifestFence,
    /// A worker that continues with an agent counts undelivered tickets alone as others that wait.
    BlindContinues,
    /// A worker recovers tickets whenever it reads, and not once after a lost answer.
    AlwaysRecovers,
    /// A renewal that is answered while a turn is being ended calls its lease lost.
    LateRenewalLoses,
}

/// A queue as it was.
#[derive(Debug)]
pub struct Snapshot(Box<State>);

/// The queue. Clones are the same queue.
#[derive(Clone, Debug)]
pub struct MemoryQueue {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Clock>,
}

impl MemoryQueue {
    /// An empty queue by `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self::mutated(clock, Mutation::None)
    }

    /// One without a check, to show what it is for.
    pub fn mutated(clock: Arc<dyn Clock>, mutation: Mutation) -> Self {
        Self { state: Arc::new(Mutex::new(State::new(mutation))), clock }
    }

    /// A worker's handle.
    pub fn worker(&self, settings: MemorySettings) -> MemoryBroker {
        self.worker_over(settings, Arc::new(Direct))
    }

    /// The same, whose calls go over `link`.
    pub fn worker_over(&self, settings: MemorySettings, link: Arc<dyn Link>) -> MemoryBroker {
        MemoryBroker::new(self.clone(), settings, link)
    }

    /// Enqueues turns, all or none: the ids they run under. Those enqueued before, under the same idempotency key or
    /// id, need no room.
    pub fn enqueue(&self, turns: &[Turn], limits: DepthLimits) -> Result<Vec<TurnId>, NotEnqueued> {
        self.enqueue_after(&turns.iter().map(|turn| (turn, None)).collect::<Vec<_>>(), limits)
    }

    /// The same of turns that must follow others.
    pub fn enqueue_after(
        &self,
        turns: &[AfterTurn<'_>],
        limits: DepthLimits,
    ) -> Result<Vec<TurnId>, NotEnqueued> {
        self.step(|state| state.enqueue(turns, limits))
    }

    /// Cancels a turn, waiting or running; what is left of it is kept as long as `settings` say.
    pub fn cancel(&self, turn: TurnId, settings: &MemorySettings) -> Cancelled {
        self.step(|state| state.cancel(turn, Retention::from(settings)))
    }

    /// Acts on an agent.
    pub fn act(&self, agent: &AgentId, action: AgentAction) -> Acted {
        self.step(|state| state.act(agent, action))
    }

    /// Leases nothing more, or goes on.
    pub fn pause(&self, paused: bool) {
        self.step(|state| {
            state.paused = paused;
            state.readable.notify_waiters();
        });
    }

    /// Tells a worker to finish what runs and stop.
    pub fn drain(&self, worker: &str) {
        self.step(|state| state.registry.drain(worker));
    }

    /// What the workers that were heard of lately say of themselves.
    pub fn workers(&self) -> Vec<(String, WorkerStatus)> {
        self.step(|state| state.registry.list(state.now_ms))
    }

    /// What a reader of the turn's results sees.
    pub fn events(&self, turn: TurnId) -> Vec<Event> {
        self.stamped_events(turn).into_iter().map(|(_, event)| event).collect()
    }

    /// The same, each with when it was published, in Unix milliseconds.
    pub fn stamped_events(&self, turn: TurnId) -> Vec<(u64, Event)> {
        self.step(|state| {
            let results = state.turns.get(&turn).map_or(&[][..], |turn| &turn.results);
            results.iter().map(|entry| (entry.at_ms, entry.event.clone())).collect()
        })
    }

    /// The whole reply that is kept with the outcome of a turn, if it was short.
    pub fn short_reply(&self, turn: TurnId) -> Option<Delta> {
        self.step(|state| state.turns.get(&turn)?.ended.as_ref()?.reply.clone())
    }

    /// Every dead letter, oldest first.
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        self.step(|state| state.dead.clone())
    }

    /// What the agent's completed turns added to its history, in order.
    pub fn transcript(&self, agent: &AgentId) -> Vec<TranscriptEntry> {
        self.step(|state| state.agents.get(agent).map(|agent| agent.transcript.clone()).unwrap_or_default())
    }

    /// Every agent that is known, and where it is.
    pub fn agents(&self) -> Vec<(AgentId, AgentState)> {
        self.step(|state| state.agents.iter().map(|(id, agent)| (id.clone(), agent.place.state())).collect())
    }

    /// The agent's turns that have not ended, in order.
    pub fn backlog(&self, agent: &AgentId) -> Vec<TurnId> {
        let backlog =
            |state: &mut State| state.agents.get(agent).map(|agent| agent.backlog.iter().copied().collect());
        self.step(backlog).unwrap_or_default()
    }

    /// Whether the turn is known, ended or not.
    pub fn knows(&self, turn: TurnId) -> bool {
        self.step(|state| state.turns.contains_key(&turn))
    }

    /// Agents whose tickets are in workers' hands and not leased, each with its ticket's number.
    pub fn unleased(&self) -> Vec<(AgentId, u64)> {
        self.step(|state| state.unleased())
    }

    /// Everything as it is now, for a replica that lags behind.
    pub fn snapshot(&self) -> Snapshot {
        self.step(|state| Snapshot(Box::new(state.clone())))
    }

    /// The replica becomes the primary: whatever was done since the snapshot is lost.
    pub fn restore(&self, snapshot: Snapshot) {
        self.step(|state| {
            // Redis names entries by the time, so that no name comes again.
            let last_ticket = state.last_ticket();
            *state = *snapshot.0;
            state.skip_tickets(last_ticket);
            state.readable.notify_waiters();
        });
    }

    fn mutation(&self) -> Mutation {
        self.step(|state| state.mutation)
    }

    /// How much work there is.
    pub fn counts(&self) -> QueueCounts {
        self.step(|state| state.counts())
    }

    /// Panics if the queue's indexes and counters do not add up.
    pub fn check_integrity(&self) {
        self.step(|state| state.check());
    }

    /// Takes one step.
    fn step<T>(&self, take: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.now_ms = self.clock.now_ms();
        take(&mut state)
    }
}
