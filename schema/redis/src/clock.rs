//! The server's clock, as far as it is known here.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

/// An estimate of the server's clock: its last answer plus what passed here since.
#[derive(Debug)]
pub struct ServerClock {
    started: Instant,
    offset_ms: AtomicI64,
}

impl Default for ServerClock {
    fn default() -> Self {
        Self { started: Instant::now(), offset_ms: AtomicI64::new(0) }
    }
}

impl ServerClock {
    /// The server just said that it is `now_ms`, in Unix milliseconds.
    pub(crate) fn set(&self, now_ms: u64) {
        self.offset_ms.store(now_ms as i64 - self.local_ms(), Ordering::Relaxed);
    }

    /// Unix milliseconds by the server's clock; a time near 1970 before it was heard of.
    pub fn now_ms(&self) -> u64 {
        (self.offset_ms.load(Ordering::Relaxed) + self.local_ms()).max(0) as u64
    }

    fn local_ms(&self) -> i64 {
        self.started.elapsed().as_millis() as i64
    }
}
