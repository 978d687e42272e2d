//! Tickets between the queue and its workers: reading, keeping alive, taking over, returning; and agents that waited
//! for a time or a place.

use std::collections::BTreeMap;

use turnmill_schema::{AgentId, Priority};

use super::ready::TicketKey;
use super::state::{Place, State};
use super::{MemorySettings, Mutation};
use crate::broker::{Lease, Ticket};

/// After so many tickets of interactive agents one of a batch agent comes first, where one waits: so neither starves.
const INTERACTIVE_A_BATCH: usize = 3;

impl State {
    /// At most `room` tickets; `since_batch` counts the interactive ones since the last one of a batch agent.
    pub(super) fn read(&mut self, worker: &str, room: usize, since_batch: &mut usize) -> Vec<Ticket> {
        let now_ms = self.now_ms;
        let share = (*since_batch + room) / (INTERACTIVE_A_BATCH + 1);
        let turns = [(Priority::Batch, share), (Priority::Interactive, room), (Priority::Batch, room)];
        let mut tickets = Vec::new();
        for (priority, most) in turns {
            while tickets.len() < most
                && let Some((number, agent)) = self.ready_mut(priority).deliver(worker, now_ms)
            {
                tickets.push(ready_ticket(agent, TicketKey { priority, number }));
            }
        }
        let has_batch = tickets.iter().any(|ticket: &Ticket| ticket.priority == Priority::Batch);
        let since = if has_batch { 0 } else { *since_batch + tickets.len() };
        *since_batch = since.min(INTERACTIVE_A_BATCH);
        tickets
    }

    /// Delivers pending tickets again, to `worker`: at most `room` of those that `is_free` picks, which is told whose
    /// they are and for how many milliseconds nobody kept them.
    pub(super) fn claim_pending(
        &mut self,
        worker: &str,
        room: usize,
        is_free: impl Fn(TicketKey, &str, u64) -> bool,
    ) -> Vec<Ticket> {
        let now_ms = self.now_ms;
        let mut tickets = Vec::new();
        for priority in Priority::ALL {
            let pending = self.ready(priority).all_pending();
            let free = pending.filter(|(number, held)| {
                let idle_ms = now_ms.saturating_sub(held.since_ms);
                is_free(TicketKey { priority, number: *number }, &held.worker, idle_ms)
            });
            let free = free.map(|(number, held)| (held.agent.clone(), TicketKey { priority, number }));
            let free: Vec<(AgentId, TicketKey)> = free.take(room - tickets.len()).collect();
            for (agent, ticket) in free {
                self.ready_mut(priority).claim(ticket.number, worker, now_ms);
                tickets.push(ready_ticket(agent, ticket));
            }
        }
        tickets
    }

    /// Which of the leases are lost. An unleased ticket that is lost shows when it is leased.
    pub(super) fn renew(&mut self, worker: &str, held: &[Lease], unleased: &[Ticket]) -> Vec<Lease> {
        if self.mutation == Mutation::NoRenewal {
            return Vec::new();
        }
        let now_ms = self.now_ms;
        let mut lost = Vec::new();
        for lease in held {
            let ticket = TicketKey::from(&lease.ticket);
            if self.leases(worker, lease) {
                self.ready_mut(ticket.priority).keep(ticket.number, worker, now_ms);
            } else {
                lost.push(lease.clone());
            }
        }
        for ready in unleased {
            let ticket = TicketKey::from(ready);
            let of_priority = self.ready_mut(ticket.priority);
            if of_priority.pending(ticket.number).is_some_and(|pending| pending.worker == worker) {
                of_priority.keep(ticket.number, worker, now_ms);
            }
        }
        lost
    }

    fn leases(&self, worker: &str, lease: &Lease) -> bool {
        self.agents.get(&lease.ticket.agent).is_some_and(|agent| {
            let is_ours = matches!(&agent.place, Place::Leased { worker: owner, .. } if owner == worker);
            is_ours && agent.epoch == lease.epoch
        })
    }

    /// Makes a ticket that was read but not leased readable by others.
    pub(super) fn return_ticket(&mut self, worker: &str, ticket: &Ticket) {
        let number = TicketKey::from(ticket);
        let pending = self.ready(number.priority).pending(number.number);
        if pending.is_none_or(|pending| pending.worker != worker) {
            return;
        }
        self.drop_ticket(number);
        let is_agents = self.agents.get(&ticket.agent).is_some_and(|agent| match agent.place {
            // Leased: the ticket was taken over from a silent worker, whose lease ends here.
            Place::Ready(held) | Place::Leased { ticket: held, .. } => held == number,
            _ => false,
        });
        if is_agents {
            self.unlease(&ticket.agent);
            self.make_runnable(&ticket.agent);
        }
    }

    /// Gives agents a ticket whose head is due, or whose tenant has a place.
    pub(super) fn promote(&mut self, worker: &MemorySettings) {
        while let Some((due_ms, id)) = self.delayed.first().cloned()
            && due_ms <= self.now_ms
        {
            self.stop_waiting(&id);
            self.add_ticket(&id);
        }
        // More tickets than there are places would only be parked again.
        let mut given: BTreeMap<&str, u64> = BTreeMap::new();
        let parked: Vec<AgentId> =
            self.tenants.values().flat_map(|tenant| tenant.parked.iter()).map(|(_, id)| id.clone()).collect();
        for id in &parked {
            let more = given.entry(id.tenant()).or_default();
            if self.has_place(id.tenant(), *more, worker.tenant_max_running) {
                *more += 1;
                self.stop_waiting(id);
                self.add_ticket(id);
            }
        }
    }
}

fn ready_ticket(agent: AgentId, ticket: TicketKey) -> Ticket {
    Ticket { agent, priority: ticket.priority, shard: 0, entry: ticket.number.to_string() }
}

impl From<&Ticket> for TicketKey {
    /// What is no number is the ticket of another queue: none has number 0.
    fn from(ticket: &Ticket) -> Self {
        Self { priority: ticket.priority, number: ticket.entry.parse().unwrap_or(0) }
    }
}
