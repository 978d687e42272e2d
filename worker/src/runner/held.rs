//! Which leases and tokens this worker holds; heartbeats read it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use turnmill_schema::TurnId;

use crate::broker::{Lease, ReadyToken};
use crate::observe::metrics;

/// Everything held, shared by intake, runners and heartbeat.
#[derive(Clone, Default)]
pub struct Held(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    tokens: HashSet<ReadyToken>,
    leases: HashMap<TurnId, (Lease, CancellationToken)>,
}

/// A token read and not leased yet; gone from the list when dropped.
pub struct HeldToken {
    held: Held,
    token: ReadyToken,
}

/// A lease; gone from the list when dropped.
pub struct HeldLease {
    held: Held,
    turn: TurnId,
    /// Cancelled when a heartbeat says that the lease is lost.
    pub lost: CancellationToken,
}

impl Held {
    /// Adds a token.
    pub fn add_token(&self, token: ReadyToken) -> HeldToken {
        self.lock().tokens.insert(token.clone());
        HeldToken { held: self.clone(), token }
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

    /// Leases and tokens, as they are now.
    pub fn snapshot(&self) -> (Vec<Lease>, Vec<ReadyToken>) {
        let inner = self.lock();
        let leases = inner.leases.values().map(|(lease, _)| lease.clone()).collect();
        (leases, inner.tokens.iter().cloned().collect())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is a single insert or remove, so a panic elsewhere left nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldToken {
    /// The token.
    pub fn token(&self) -> &ReadyToken {
        &self.token
    }
}

impl Drop for HeldToken {
    fn drop(&mut self) {
        self.held.lock().tokens.remove(&self.token);
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        let mut inner = self.held.lock();
        inner.leases.remove(&self.turn);
        metrics::turns_held(inner.leases.len());
    }
}
