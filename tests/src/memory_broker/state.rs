//! What one queue consists of, and the small steps that the others are made of. Time stands still within a step.
//!
//! Invariants, which [`State::check`] checks:
//! * an agent has a ticket just while it is ready or leased, and the ticket is its only one;
//! * the indexes (`open`, `delayed`, `tenants`) and counters say what agents and turns say.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::{Notify, broadcast};
use turnmill_schema::{
    AgentId, Delta, End, Event, Manifest, Outcome, Priority, TranscriptEntry, Turn, TurnId,
};

use super::Mutation;
use super::enqueue::Keyed;
use super::operate::DeadLetter;
use super::ready::{Ready, TicketKey};
use super::registry::Registry;

/// Ends that tell the pace of the queue.
pub(super) const PACE_ENDS: usize = 100;
/// Notices of cancelled turns that a worker may be behind; renewals find what it missed.
const NOTICES: usize = 256;

/// Where an agent is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing to do.
    #[default]
    Idle,
    /// Its ticket may be leased.
    Ready(TicketKey),
    /// A worker runs its head. `delivery`: the delivery of the ticket that was leased.
    Leased { ticket: TicketKey, worker: String, delivery: u32 },
    /// Its head is not due.
    Delayed { due_ms: u64 },
    /// Its tenant runs as many turns as it may.
    Parked { since_ms: u64 },
    /// It waits for an operator.
    Held(Hold),
}

/// Why an agent waits for an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    Paused,
    Halted,
}

/// One conversation.
#[derive(Clone, Debug, Default)]
pub(super) struct Agent {
    pub(super) place: Place,
    /// Of the newest lease; grows.
    pub(super) epoch: u64,
    /// Turns that have not ended, in order.
    pub(super) backlog: VecDeque<TurnId>,
    pub(super) transcript: Vec<TranscriptEntry>,
    /// Where it goes when the worker that has it is done.
    pub(super) hold: Option<Hold>,
    pub(super) halts_on_dead: bool,
    /// Turns in a row that went to the same worker.
    pub(super) continues: u32,
    /// It waited for the place that its ticket stands for: nobody who came later takes it.
    pub(super) waited_for_place: bool,
    /// What is stored of its K and V.
    pub(super) manifest: Option<Manifest>,
    /// Manifests of leases below are ignored.
    pub(super) manifest_epoch: u64,
}

impl Agent {
    /// Takes a manifest that the lease of `epoch` said, or forgets the one there was.
    pub(super) fn set_manifest(&mut self, manifest: Option<Manifest>, epoch: u64) {
        self.manifest = manifest;
        self.manifest_epoch = epoch;
    }
}

/// An entry of a result stream, and where it stands: entries of lower epochs do not follow higher ones.
#[derive(Clone, Debug)]
pub(super) struct Published {
    pub(super) epoch: u64,
    /// Tokens of the reply that are published with it.
    pub(super) tokens: u32,
    pub(super) at_ms: u64,
    pub(super) event: Event,
}

/// How a turn ended.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) end: End,
    pub(super) reply: Option<Delta>,
    pub(super) results_until_ms: u64,
    pub(super) forget_ms: u64,
    pub(super) bytes: u64,
}

/// One turn.
#[derive(Clone, Debug)]
pub(super) struct TurnRecord {
    pub(super) agent: AgentId,
    pub(super) priority: Priority,
    pub(super) enqueued_ms: u64,
    pub(super) not_before_ms: u64,
    pub(super) deadline_ms: Option<u64>,
    pub(super) new_session: bool,
    pub(super) idempotency: Option<String>,
    /// Absent once it ended, but for dead letters.
    pub(super) turn: Option<Turn>,
    pub(super) attempts: u32,
    /// Attempts in a row that published nothing.
    pub(super) barren: u32,
    /// Tokens published before the newest attempt.
    pub(super) progress: u32,
    /// Of its newest lease or its end.
    pub(super) epoch: u64,
    /// The epoch of the lease that was requeued last.
    pub(super) requeued: Option<u64>,
    pub(super) results: Vec<Published>,
    pub(super) ended: Option<Ended>,
}

impl TurnRecord {
    /// The epoch that wrote last, and the tokens published by then.
    pub(super) fn top(&self) -> (u64, u32) {
        self.results.last().map_or((0, 0), |last| (last.epoch, last.tokens))
    }

    /// Attempts in a row, up to the last one, that published nothing.
    pub(super) fn barren_now(&self) -> u32 {
        if self.top().1 > self.progress { 0 } else { self.barren }
    }

    pub(super) fn publish(&mut self, epoch: u64, tokens: u32, at_ms: u64, event: Event) {
        self.results.push(Published { epoch, tokens, at_ms, event });
    }

    pub(super) fn outcome(&self) -> Option<Outcome> {
        self.ended.as_ref().map(|ended| ended.end.outcome)
    }
}

/// What is counted of a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tenant {
    pub(super) open: u64,
    pub(super) leased: u64,
    /// In the order in which they came.
    pub(super) parked: BTreeSet<(u64, AgentId)>,
}

/// One queue.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// Of the step under way.
    pub(super) now_ms: u64,
    pub(super) mutation: Mutation,
    pub(super) agents: BTreeMap<AgentId, Agent>,
    pub(super) turns: BTreeMap<TurnId, TurnRecord>,
    pub(super) idempotency: HashMap<String, Keyed>,
    ready: [Ready; 2],
    last_ticket: u64,
    /// Agents with work, by when their heads were enqueued.
    pub(super) open: BTreeSet<(u64, AgentId)>,
    pub(super) delayed: BTreeSet<(u64, AgentId)>,
    pub(super) tenants: BTreeMap<String, Tenant>,
    pub(super) open_turns: [u64; 2],
    /// Turns ever enqueued.
    pub(super) enqueued: u64,
    /// Turns ever ended, by outcome.
    pub(super) ended_turns: [u64; 4],
    pub(super) dead: Vec<DeadLetter>,
    /// Ended turns that are no dead letters, oldest first.
    pub(super) ended: VecDeque<TurnId>,
    pub(super) retained_bytes: u64,
    /// When the newest turns ended.
    pub(super) ends_ms: VecDeque<u64>,
    pub(super) paused: bool,
    pub(super) registry: Registry,
    pub(super) notices: broadcast::Sender<TurnId>,
    /// A ticket may be read, or the queue was resumed.
    pub(super) readable: Arc<Notify>,
}

impl State {
    pub(super) fn new(mutation: Mutation) -> Self {
        Self {
            now_ms: 0,
            mutation,
            agents: BTreeMap::new(),
            turns: BTreeMap::new(),
            idempotency: HashMap::new(),
            ready: Default::default(),
            last_ticket: 0,
            open: BTreeSet::new(),
            delayed: BTreeSet::new(),
            tenants: BTreeMap::new(),
            open_turns: [0; 2],
            enqueued: 0,
            ended_turns: [0; 4],
            dead: Vec::new(),
            ended: VecDeque::new(),
            retained_bytes: 0,
            ends_ms: VecDeque::new(),
            paused: false,
            registry: Registry::default(),
            notices: broadcast::Sender::new(NOTICES),
            readable: Arc::default(),
        }
    }

    /// The number of the newest ticket there ever was.
    pub(super) fn last_ticket(&self) -> u64 {
        self.last_ticket
    }

    /// The next ticket's number is above this one.
    pub(super) fn skip_tickets(&mut self, last_ticket: u64) {
        self.last_ticket = self.last_ticket.max(last_ticket);
    }

    pub(super) fn ready(&self, priority: Priority) -> &Ready {
        &self.ready[priority as usize]
    }

    pub(super) fn ready_mut(&mut self, priority: Priority) -> &mut Ready {
        &mut self.ready[priority as usize]
    }

    /// An agent that has work or a place.
    pub(super) fn agent_mut(&mut self, id: &AgentId) -> &mut Agent {
        self.agents.get_mut(id).expect("agents with turns are known")
    }

    /// A turn of a backlog.
    pub(super) fn turn_mut(&mut self, id: TurnId) -> &mut TurnRecord {
        self.turns.get_mut(&id).expect("turns of backlogs are known")
    }

    /// The first turn of an agent's backlog.
    pub(super) fn head(&self, id: &AgentId) -> Option<TurnId> {
        self.agents.get(id)?.backlog.front().copied()
    }

    /// The agent's next place, when no worker has it any more: a ticket for its head, waiting until the head is due, held, or
    /// nothing to do.
    pub(super) fn make_runnable(&mut self, id: &AgentId) {
        let due_ms = self.head(id).map_or(0, |head| self.turns[&head].not_before_ms);
        self.make_runnable_at(id, due_ms);
    }

    /// The same for a head that is due at `due_ms`.
    pub(super) fn make_runnable_at(&mut self, id: &AgentId, due_ms: u64) {
        let now_ms = self.now_ms;
        let agent = self.agent_mut(id);
        if agent.backlog.is_empty() && id.is_lone() {
            self.agents.remove(id);
        } else if let Some(hold) = agent.hold.take() {
            agent.place = Place::Held(hold);
        } else if agent.backlog.is_empty() {
            agent.place = Place::Idle;
        } else if due_ms > now_ms {
            agent.place = Place::Delayed { due_ms };
            self.delayed.insert((due_ms, id.clone()));
        } else {
            self.add_ticket(id);
        }
    }

    /// Makes the agent readable by any worker.
    pub(super) fn add_ticket(&mut self, id: &AgentId) {
        let head = self.head(id).expect("an agent with a ticket has work");
        let priority = self.turns[&head].priority;
        self.last_ticket += 1;
        let ticket = TicketKey { priority, number: self.last_ticket };
        self.ready_mut(priority).add(ticket.number, id.clone());
        let agent = self.agent_mut(id);
        agent.place = Place::Ready(ticket);
        agent.continues = 0;
        self.readable.notify_waiters();
    }

    pub(super) fn drop_ticket(&mut self, ticket: TicketKey) {
        self.ready_mut(ticket.priority).remove(ticket.number);
    }

    /// Takes the agent out of the indexes of those that wait for a time or a place.
    pub(super) fn stop_waiting(&mut self, id: &AgentId) {
        match self.agent_mut(id).place {
            Place::Delayed { due_ms } => {
                self.delayed.remove(&(due_ms, id.clone()));
            }
            Place::Parked { since_ms } => self.tenant(id, |tenant| {
                tenant.parked.remove(&(since_ms, id.clone()));
            }),
            _ => {}
        }
    }

    /// No worker has the agent any more: its place among those of its tenant is free.
    pub(super) fn unlease(&mut self, id: &AgentId) {
        if matches!(self.agent_mut(id).place, Place::Leased { .. }) {
            self.tenant(id, |tenant| tenant.leased -= 1);
        }
    }

    /// Changes what is counted of the agent's tenant.
    pub(super) fn tenant(&mut self, id: &AgentId, change: impl FnOnce(&mut Tenant)) {
        let tenant = self.tenants.entry(id.tenant().to_owned()).or_default();
        change(tenant);
        if *tenant == Tenant::default() {
            self.tenants.remove(id.tenant());
        }
    }
}
