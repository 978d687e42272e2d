//! Which leases and tickets this worker holds; renewals read it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use turnmill_schema::TurnId;

use crate::broker::{Lease, Ticket};
use crate::observe::metrics;

/// Everything held, shared by intake, runners and renewal.
#[derive(Clone, Default)]
pub struct Held(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    tickets: HashSet<Ticket>,
    leases: HashMap<TurnId, (Lease, CancellationToken)>,
}

/// A ticket read and not leased yet; gone from the list when dropped.
pub struct HeldTicket {
    held: Held,
    ticket: Ticket,
}

/// A lease; gone from the list when dropped.
pub struct HeldLease {
    held: Held,
    turn: TurnId,
    /// Cancelled when a renewal says that the lease is lost.
    pub lost: CancellationToken,
}

impl Held {
    /// Adds a ticket.
    pub fn add_ticket(&self, ticket: Ticket) -> HeldTicket {
        self.lock().tickets.insert(ticket.clone());
        HeldTicket { held: self.clone(), ticket }
    }

    /// Adds a lease.
    pub fn add_lease(&self, lease: Lease) -> HeldLease {
        let lost = CancellationToken::new();
        let turn = lease.turn;
        let mut inner = self.lock();
        inner.leases.insert(turn, (lease, lost.clone()));
        metrics::turns_held(inner.leases.len());
        drop(inner);
        HeldLease { held: self.clone(), turn, lost }
    }

    /// Says that the lease of `turn` is lost.
    pub fn lose(&self, turn: TurnId) {
        if let Some((_, lost)) = self.lock().leases.get(&turn) {
            lost.cancel();
        }
    }

    /// How many turns are leased.
    pub fn leases(&self) -> usize {
        self.lock().leases.len()
    }

    /// Leases and tickets, as they are now.
    pub fn snapshot(&self) -> (Vec<Lease>, Vec<Ticket>) {
        let inner = self.lock();
        let leases = inner.leases.values().map(|(lease, _)| lease.clone()).collect();
        (leases, inner.tickets.iter().cloned().collect())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is a single insert or remove, so a panic elsewhere left nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldTicket {
    /// The ticket.
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }
}

impl Drop for HeldTicket {
    fn drop(&mut self) {
        self.held.lock().tickets.remove(&self.ticket);
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        let mut inner = self.held.lock();
        inner.leases.remove(&self.turn);
        metrics::turns_held(inner.leases.len());
    }
}
