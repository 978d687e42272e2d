//! What this worker holds, and what it knows of the server.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use turnmill_schema::TurnId;
use turnmill_schema::keys::BacklogEntry;

use super::{Lease, Ticket};

/// Tickets in this worker's hands, the streams whose end it knows, and the server's clock.
#[derive(Debug)]
pub(super) struct Held {
    inner: Mutex<Inner>,
    clock: ServerClock,
}

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

/// A ticket in our hands.
#[derive(Debug)]
struct Holding {
    held_for: For,
    /// The head its agent's backlog had when last heard of: scripts declare the keys they touch.
    head: Option<BacklogEntry>,
}

#[derive(Debug, Default)]
struct Inner {
    tickets: HashMap<Ticket, Holding>,
    /// Idempotency keys of leased turns.
    idempotency: HashMap<TurnId, String>,
    /// Turns whose last append is known to be the top of their stream, by the generation of connections
    /// that told so.
    known_tops: HashMap<TurnId, u64>,
}

impl Default for Held {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            clock: ServerClock { started: Instant::now(), offset_ms: AtomicI64::new(0) },
        }
    }
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes tickets into our hands, with what they say is their agent's head; returns those that were not there before.
    pub(super) fn take(&self, tickets: Vec<(Ticket, Option<BacklogEntry>)>) -> Vec<Ticket> {
        let mut inner = self.lock();
        let new =
            tickets.into_iter().filter_map(|(ticket, head)| match inner.tickets.entry(ticket.clone()) {
                Entry::Occupied(_) => None,
                Entry::Vacant(vacant) => {
                    vacant.insert(Holding { held_for: For::Delivery, head });
                    Some(ticket)
                }
            });
        new.collect()
    }

    /// What is known of the head of the ticket's agent.
    pub(super) fn head(&self, ticket: &Ticket) -> Option<BacklogEntry> {
        self.lock().tickets.get(ticket).and_then(|holding| holding.head.clone())
    }

    /// The head of the ticket's agent is leased.
    pub(super) fn lease(&self, lease: &Lease, entry: &BacklogEntry) {
        let mut inner = self.lock();
        let holding = Holding { held_for: For::Lease(lease.epoch), head: Some(entry.clone()) };
        inner.tickets.insert(lease.ticket.clone(), holding);
        if let Some(name) = &entry.idempotency {
            inner.idempotency.insert(entry.turn, name.clone());
        }
    }

    /// The idempotency key of a leased turn.
    pub(super) fn idempotency(&self, turn: TurnId) -> Option<String> {
        self.lock().idempotency.get(&turn).cloned()
    }

    /// The lease has ended, and its ticket stands for the agent's next turn. False where the ticket came to us another way
    /// meanwhile: a renewal may find the lease gone before we hear why, and then the ticket is anybody's to claim.
    pub(super) fn continue_with_next(&self, lease: &Lease, head: Option<BacklogEntry>) -> bool {
        self.forget(lease);
        let mut inner = self.lock();
        let held_for = inner.tickets.get(&lease.ticket).map(|holding| holding.held_for);
        let is_free = held_for.is_none_or(|held_for| held_for == For::Continue(lease.epoch));
        if is_free {
            let holding = Holding { held_for: For::Continue(lease.epoch), head };
            inner.tickets.insert(lease.ticket.clone(), holding);
        }
        is_free
    }

    /// How many tickets we hold.
    pub(super) fn len(&self) -> usize {
        self.lock().tickets.len()
    }

    /// The entry ids we hold of one ready stream.
    pub(super) fn entries(&self, shard: u16, priority: turnmill_schema::Priority) -> HashSet<String> {
        let inner = self.lock();
        let of_stream =
            inner.tickets.keys().filter(|ticket| ticket.shard == shard && ticket.priority == priority);
        of_stream.map(|ticket| ticket.entry.clone()).collect()
    }

    /// The ticket is not ours any more.
    pub(super) fn drop_ticket(&self, ticket: &Ticket) {
        self.lock().tickets.remove(ticket);
    }

    /// The lease is not ours any more. A newer one under the same ticket stays.
    pub(super) fn forget(&self, lease: &Lease) {
        let mut inner = self.lock();
        let held_for = inner.tickets.get(&lease.ticket).map(|holding| holding.held_for);
        if held_for == Some(For::Lease(lease.epoch)) {
            inner.tickets.remove(&lease.ticket);
            inner.idempotency.remove(&lease.turn);
            inner.known_tops.remove(&lease.turn);
        }
    }

    /// Whether the turn's top was known in `generation`; it is not again until [`Held::know_top`].
    pub(super) fn forget_top(&self, turn: TurnId, generation: u64) -> bool {
        self.lock().known_tops.remove(&turn) == Some(generation)
    }

    /// The turn's last append landed.
    pub(super) fn know_top(&self, turn: TurnId, generation: u64) {
        self.lock().known_tops.insert(turn, generation);
    }

    /// The server's clock.
    pub(super) fn clock(&self) -> &ServerClock {
        &self.clock
    }
}

/// An estimate of the server's clock: its last answer plus what passed here since.
#[derive(Debug)]
pub(super) struct ServerClock {
    started: Instant,
    offset_ms: AtomicI64,
}

impl ServerClock {
    /// The server just said that it is `now_ms`.
    pub(super) fn set(&self, now_ms: u64) {
        self.offset_ms.store(now_ms as i64 - self.local_ms(), Ordering::Relaxed);
    }

    /// The same, as `TIME` answers: seconds and microseconds.
    pub(super) fn set_time(&self, (seconds, micros): (u64, u64)) {
        self.set(seconds * 1000 + micros / 1000);
    }

    /// Unix milliseconds by the server's clock.
    pub(super) fn now_ms(&self) -> i64 {
        self.offset_ms.load(Ordering::Relaxed) + self.local_ms()
    }

    fn local_ms(&self) -> i64 {
        self.started.elapsed().as_millis() as i64
    }
}
