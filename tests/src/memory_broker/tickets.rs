//! Tickets between the queue and its workers: reading, keeping alive, taking over, returning; and agents that waited
//! for a time or a place.

use std::collections::BTreeMap;

use turnmill_schema::{AgentId, Outcome, Priority, TurnId};
use turnmill_worker::broker::Fairness;

use super::conclude::Retention;
use super::ready::TicketKey;
use super::state::{Place, State};
use super::{MemorySettings, Mutation};

impl State {
    /// At most `room` tickets, in the order that `fairness` asks for.
    pub(super) fn read(
        &mut self,
        worker: &str,
        room: usize,
        fairness: &mut Fairness,
    ) -> Vec<(TicketKey, AgentId)> {
        let now_ms = self.now_ms;
        let share = fairness.batch_share(room);
        let turns = [(Priority::Batch, share), (Priority::Interactive, room), (Priority::Batch, room)];
        let mut tickets = Vec::new();
        for (priority, most) in turns {
            while tickets.len() < most
                && let Some((number, agent)) = self.ready_mut(priority).deliver(worker, now_ms)
            {
                tickets.push((TicketKey { priority, number }, agent));
            }
        }
        fairness.note(tickets.iter().map(|(ticket, _)| ticket.priority));
        tickets
    }

    /// Delivers tickets again that are pending to `worker`, which did not hear of them: at most `room` of those that `is_free`
    /// picks and whose numbers are above `after`, lowest first.
    pub(super) fn recover(
        &mut self,
        worker: &str,
        room: usize,
        after: u64,
        is_free: impl Fn(TicketKey) -> bool,
    ) -> Vec<(TicketKey, AgentId)> {
        let now_ms = self.now_ms;
        let of_priority = |priority: &Priority| {
            let priority = *priority;
            let pending = self.ready(priority).all_pending();
            let ours = pending.filter(|(number, held)| held.worker == worker && *number > after);
            ours.map(move |(number, held)| (TicketKey { priority, number }, held.agent.clone()))
                .collect::<Vec<_>>()
        };
        let mut tickets: Vec<_> = Priority::ALL.iter().flat_map(of_priority).collect();
        tickets.retain(|(ticket, _)| is_free(*ticket));
        tickets.sort_by_key(|(ticket, _)| ticket.number);
        tickets.truncate(room);
        for (ticket, _) in &tickets {
            self.ready_mut(ticket.priority).claim(ticket.number, worker, now_ms);
        }
        tickets
    }

    /// Tickets whose workers were silent for a whole lease.
    pub(super) fn silent(&self, worker: &MemorySettings) -> Vec<(TicketKey, AgentId)> {
        let is_silent = |since_ms: u64| self.now_ms.saturating_sub(since_ms) >= worker.lease_ms;
        let of_priority = |priority: &Priority| {
            let priority = *priority;
            let pending = self.ready(priority).all_pending().filter(|(_, held)| is_silent(held.since_ms));
            pending
                .map(move |(number, held)| (TicketKey { priority, number }, held.agent.clone()))
                .collect::<Vec<_>>()
        };
        Priority::ALL.iter().flat_map(of_priority).collect()
    }

    /// Agents whose tickets are in workers' hands and not leased, each with its ticket's number.
    pub(super) fn unleased(&self) -> Vec<(AgentId, u64)> {
        let unleased = self.agents.iter().filter_map(|(id, agent)| match agent.place {
            Place::Ready(ticket) => {
                self.ready(ticket.priority).pending(ticket.number).map(|_| (id.clone(), ticket.number))
            }
            _ => None,
        });
        unleased.collect()
    }

    /// Makes agents of silent workers runnable again; how many.
    pub(super) fn reclaim(&mut self, worker: &MemorySettings) -> u64 {
        if self.mutation == Mutation::NoReclaim {
            return 0;
        }
        let silent = self.silent(worker);
        for (ticket, id) in &silent {
            self.free_ticket(*ticket, id);
        }
        silent.len() as u64
    }

    /// Turns that wait and whose deadline has passed, each with how long ago.
    fn overdue(&self) -> Vec<(TurnId, u64)> {
        let waiting = self.agents.values().flat_map(|agent| {
            // Its worker ends the one that runs.
            let running = usize::from(matches!(agent.place, Place::Leased { .. }));
            agent.backlog.iter().skip(running)
        });
        let late = |id: &TurnId| {
            let late_ms =
                self.turns[id].deadline_ms.and_then(|deadline_ms| self.now_ms.checked_sub(deadline_ms));
            late_ms.map(|late_ms| (*id, late_ms))
        };
        waiting.filter_map(late).collect()
    }

    /// Which of the tickets, each with the epoch of its lease, the worker still has. An unleased ticket that is lost shows when
    /// it is leased.
    pub(super) fn renew(&mut self, worker: &str, held: &[(TicketKey, AgentId, Option<u64>)]) -> Vec<bool> {
        let now_ms = self.now_ms;
        let keeps = self.mutation != Mutation::NoRenewal;
        let renew = |(ticket, agent, epoch): &(TicketKey, AgentId, Option<u64>)| {
            let is_kept = match epoch {
                Some(epoch) => self.leases(worker, agent, *epoch),
                None => self
                    .ready(ticket.priority)
                    .pending(ticket.number)
                    .is_some_and(|held| held.worker == worker),
            };
            if is_kept && keeps {
                self.ready_mut(ticket.priority).keep(ticket.number, worker, now_ms);
            }
            is_kept || !keeps
        };
        held.iter().map(renew).collect()
    }

    fn leases(&self, worker: &str, id: &AgentId, epoch: u64) -> bool {
        self.agents.get(id).is_some_and(|agent| {
            let is_ours = matches!(&agent.place, Place::Leased { worker: owner, .. } if owner == worker);
            is_ours && agent.epoch == epoch
        })
    }

    /// Makes a ticket that was read but not leased readable by others.
    pub(super) fn return_ticket(&mut self, worker: &str, ticket: TicketKey, id: &AgentId) {
        let pending = self.ready(ticket.priority).pending(ticket.number);
        if pending.is_some_and(|pending| pending.worker == worker) {
            self.free_ticket(ticket, id);
        }
    }

    /// The ticket goes; its agent gets another, or waits, or has nothing to do.
    fn free_ticket(&mut self, ticket: TicketKey, id: &AgentId) {
        self.drop_ticket(ticket);
        let is_agents = self.agents.get(id).is_some_and(|agent| match agent.place {
            // Leased: the lease ends here, with its worker's silence.
            Place::Ready(held) | Place::Leased { ticket: held, .. } => held == ticket,
            _ => false,
        });
        if is_agents {
            self.unlease(id);
            self.make_runnable(id);
        }
    }

    /// Gives agents a ticket whose head is due, or whose tenant has a place. Before that it ends turns whose deadline passed
    /// while they waited.
    pub(super) fn promote(&mut self, worker: &MemorySettings) {
        for (id, late_ms) in self.overdue() {
            let error =
                format!("the deadline passed {late_ms} ms ago while the turn waited; allow more time");
            self.end_unrun(id, (Outcome::Expired, error), Retention::from(worker));
        }
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
                self.agent_mut(id).waited_for_place = true;
            }
        }
    }
}
