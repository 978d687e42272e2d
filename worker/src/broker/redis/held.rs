//! What this worker holds, and what it knows of the server.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use turnmill_schema::TurnId;

use super::ReadyToken;

/// Tokens in this worker's hands, the streams whose end it knows, and the server's clock.
#[derive(Debug)]
pub(super) struct Held {
    inner: Mutex<Inner>,
    clock: ServerClock,
}

#[derive(Debug, Default)]
struct Inner {
    tokens: HashSet<ReadyToken>,
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

    /// Takes tokens into our hands; returns those that were not there before.
    pub(super) fn take(&self, tokens: Vec<ReadyToken>) -> Vec<ReadyToken> {
        let mut inner = self.lock();
        tokens.into_iter().filter(|token| inner.tokens.insert(token.clone())).collect()
    }

    /// How many tokens we hold.
    pub(super) fn len(&self) -> usize {
        self.lock().tokens.len()
    }

    /// The entry ids we hold of one ready stream.
    pub(super) fn entries(&self, shard: u16, priority: turnmill_schema::Priority) -> HashSet<String> {
        let inner = self.lock();
        let of_stream =
            inner.tokens.iter().filter(|token| token.shard == shard && token.priority == priority);
        of_stream.map(|token| token.entry.clone()).collect()
    }

    /// The token is not ours any more.
    pub(super) fn drop_token(&self, token: &ReadyToken) {
        self.lock().tokens.remove(token);
    }

    /// The lease is not ours any more.
    pub(super) fn give_up(&self, token: &ReadyToken, turn: TurnId) {
        let mut inner = self.lock();
        inner.tokens.remove(token);
        inner.known_tops.remove(&turn);
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

    /// Unix milliseconds by the server's clock.
    pub(super) fn now_ms(&self) -> i64 {
        self.offset_ms.load(Ordering::Relaxed) + self.local_ms()
    }

    fn local_ms(&self) -> i64 {
        self.started.elapsed().as_millis() as i64
    }
}
