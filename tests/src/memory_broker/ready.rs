//! The tickets of one priority: those that wait, in order, and those that workers hold.
//!
//! Invariant: a ticket is in one of the two, and gone once it is dropped.

use std::collections::BTreeMap;

use turnmill_schema::{AgentId, Priority, TurnId};
use turnmill_worker::broker::{Lease, Ticket, TicketId};

/// A ticket: "this agent is runnable".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TicketKey {
    pub(super) priority: Priority,
    /// Grows with every ticket of the queue.
    pub(super) number: u64,
}

impl From<&TicketId> for TicketKey {
    /// What is no number is the ticket of another queue: none has number 0.
    fn from(ticket: &TicketId) -> Self {
        Self { priority: ticket.priority, number: ticket.entry.parse().unwrap_or(0) }
    }
}

impl From<&Ticket> for TicketKey {
    fn from(ticket: &Ticket) -> Self {
        Self::from(&ticket.id)
    }
}

impl From<TicketKey> for TicketId {
    fn from(ticket: TicketKey) -> Self {
        Self { shard: 0, priority: ticket.priority, entry: ticket.number.to_string() }
    }
}

/// A lease as its holder names it.
#[derive(Clone, Debug)]
pub(super) struct LeaseKey {
    pub(super) turn: TurnId,
    pub(super) agent: AgentId,
    pub(super) epoch: u64,
    pub(super) ticket: TicketKey,
}

impl From<&Lease> for LeaseKey {
    fn from(lease: &Lease) -> Self {
        Self {
            turn: lease.turn,
            agent: lease.agent.clone(),
            epoch: lease.epoch,
            ticket: TicketKey::from(lease.ticket()),
        }
    }
}

/// A ticket in a worker's hands.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) agent: AgentId,
    pub(super) worker: String,
    /// When it was last delivered or kept alive.
    pub(super) since_ms: u64,
    /// How often it was delivered.
    pub(super) deliveries: u32,
}

/// The tickets of one priority.
#[derive(Clone, Debug, Default)]
pub(super) struct Ready {
    waiting: BTreeMap<u64, AgentId>,
    pending: BTreeMap<u64, Pending>,
}

impl Ready {
    pub(super) fn add(&mut self, number: u64, agent: AgentId) {
        self.waiting.insert(number, agent);
    }

    /// Delivers the first waiting ticket to `worker`.
    pub(super) fn deliver(&mut self, worker: &str, now_ms: u64) -> Option<(u64, AgentId)> {
        let (number, agent) = self.waiting.pop_first()?;
        let pending =
            Pending { agent: agent.clone(), worker: worker.to_owned(), since_ms: now_ms, deliveries: 1 };
        self.pending.insert(number, pending);
        Some((number, agent))
    }

    /// Delivers a pending ticket again, to `worker`.
    pub(super) fn claim(&mut self, number: u64, worker: &str, now_ms: u64) {
        if let Some(pending) = self.pending.get_mut(&number) {
            worker.clone_into(&mut pending.worker);
            pending.since_ms = now_ms;
            pending.deliveries += 1;
        }
    }

    /// Keeps a pending ticket for `worker`, whichever worker had it.
    pub(super) fn keep(&mut self, number: u64, worker: &str, now_ms: u64) {
        if let Some(pending) = self.pending.get_mut(&number) {
            worker.clone_into(&mut pending.worker);
            pending.since_ms = now_ms;
        }
    }

    pub(super) fn pending(&self, number: u64) -> Option<&Pending> {
        self.pending.get(&number)
    }

    /// All that workers hold, oldest ticket first.
    pub(super) fn all_pending(&self) -> impl Iterator<Item = (u64, &Pending)> {
        self.pending.iter().map(|(number, pending)| (*number, pending))
    }

    pub(super) fn remove(&mut self, number: u64) {
        self.waiting.remove(&number);
        self.pending.remove(&number);
    }

    pub(super) fn waiting_len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn pending_len(&self) -> usize {
        self.pending.len()
    }

    /// Whether the ticket is here.
    pub(super) fn has(&self, number: u64) -> bool {
        self.waiting.contains_key(&number) || self.pending.contains_key(&number)
    }
}
