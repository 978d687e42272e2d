//! What a worker's handle has in its hands: tokens pending to the worker that are not here are those whose delivery
//! it did not hear of.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ready::Token;
use crate::broker::{Lease, ReadyToken};

/// What a token is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    /// To be leased.
    Delivery,
    /// To be leased, handed over at the end of the lease of this epoch.
    HandOver(u64),
    /// The lease of this epoch.
    Lease(u64),
}

/// The tokens in our hands.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<HashMap<Token, For>>);

impl Held {
    fn lock(&self) -> MutexGuard<'_, HashMap<Token, For>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes tokens into our hands; returns those that were not there before.
    pub(super) fn take(&self, tokens: Vec<ReadyToken>) -> Vec<ReadyToken> {
        let mut held = self.lock();
        let is_new = |token: &ReadyToken| held.insert(Token::from(token), For::Delivery).is_none();
        tokens.into_iter().filter(is_new).collect()
    }

    pub(super) fn has(&self, token: Token) -> bool {
        self.lock().contains_key(&token)
    }

    pub(super) fn lease(&self, lease: &Lease) {
        self.lock().insert(Token::from(&lease.token), For::Lease(lease.epoch));
    }

    /// The lease is not ours any more. A newer one under the same token stays.
    pub(super) fn end_lease(&self, lease: &Lease) {
        let mut held = self.lock();
        let token = Token::from(&lease.token);
        if held.get(&token) == Some(&For::Lease(lease.epoch)) {
            held.remove(&token);
        }
    }

    /// The lease has ended, and its token stands for the agent's next turn. False where the token came to us another way
    /// meanwhile: a heartbeat may find the lease gone before we hear why, and then the token is anybody's to claim.
    pub(super) fn hand_over(&self, lease: &Lease) -> bool {
        let mut held = self.lock();
        let token = Token::from(&lease.token);
        let is_free = held
            .get(&token)
            .is_none_or(|held_for| [For::Lease(lease.epoch), For::HandOver(lease.epoch)].contains(held_for));
        if is_free {
            held.insert(token, For::HandOver(lease.epoch));
        }
        is_free
    }

    /// The token, which no lease of ours is under, is not ours any more.
    pub(super) fn drop_token(&self, token: &ReadyToken) {
        self.lock().remove(&Token::from(token));
    }
}
