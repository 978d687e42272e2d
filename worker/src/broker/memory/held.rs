//! What a worker's handle has in its hands: tickets pending to the worker that are not here are those whose delivery
//! it did not hear of.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ready::TicketKey;
use crate::broker::{Lease, Ticket};

/// What a ticket is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    /// To be leased.
    Delivery,
    /// To be leased: the worker continues after the lease of this epoch.
    Continue(u64),
    /// The lease of this epoch.
    Lease(u64),
}

/// The tickets in our hands.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<HashMap<TicketKey, For>>);

impl Held {
    fn lock(&self) -> MutexGuard<'_, HashMap<TicketKey, For>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes tickets into our hands; returns those that were not there before.
    pub(super) fn take(&self, tickets: Vec<Ticket>) -> Vec<Ticket> {
        let mut held = self.lock();
        let is_new = |ticket: &Ticket| held.insert(TicketKey::from(ticket), For::Delivery).is_none();
        tickets.into_iter().filter(is_new).collect()
    }

    pub(super) fn has(&self, ticket: TicketKey) -> bool {
        self.lock().contains_key(&ticket)
    }

    pub(super) fn lease(&self, lease: &Lease) {
        self.lock().insert(TicketKey::from(&lease.ticket), For::Lease(lease.epoch));
    }

    /// The lease is not ours any more. A newer one under the same ticket stays.
    pub(super) fn end_lease(&self, lease: &Lease) {
        let mut held = self.lock();
        let ticket = TicketKey::from(&lease.ticket);
        if held.get(&ticket) == Some(&For::Lease(lease.epoch)) {
            held.remove(&ticket);
        }
    }

    /// The lease has ended, and its ticket stands for the agent's next turn. False where the ticket came to us another way
    /// meanwhile: a renewal may find the lease gone before we hear why, and then the ticket is anybody's to claim.
    pub(super) fn continue_with_next(&self, lease: &Lease) -> bool {
        let mut held = self.lock();
        let ticket = TicketKey::from(&lease.ticket);
        let is_free = held
            .get(&ticket)
            .is_none_or(|held_for| [For::Lease(lease.epoch), For::Continue(lease.epoch)].contains(held_for));
        if is_free {
            held.insert(ticket, For::Continue(lease.epoch));
        }
        is_free
    }

    /// The ticket, which no lease of ours is under, is not ours any more.
    pub(super) fn drop_ticket(&self, ticket: &Ticket) {
        self.lock().remove(&TicketKey::from(ticket));
    }
}
