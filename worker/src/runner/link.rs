//! Whether Redis answers: told to the lifecycle, and to the log once an outage.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::broker::BrokerError;
use crate::lifecycle::Lifecycle;

/// The state of the connection to the queue.
#[derive(Clone)]
pub struct Link {
    lifecycle: Arc<Lifecycle>,
    up: Arc<AtomicBool>,
}

impl Link {
    /// A link that is up.
    pub fn new(lifecycle: Arc<Lifecycle>) -> Self {
        lifecycle.set_redis_connected(true, Instant::now());
        Self { lifecycle, up: Arc::new(AtomicBool::new(true)) }
    }

    /// Notes what came of a call, and hands it back.
    pub fn note<T>(&self, result: Result<T, BrokerError>) -> Result<T, BrokerError> {
        match &result {
            Err(error) if error.is_outage() => self.down(error),
            _ => self.back(),
        }
        result
    }

    fn down(&self, error: &BrokerError) {
        if self.up.swap(false, Ordering::Relaxed) {
            warn!(%error, "the queue does not answer; trying again until it does");
        }
        self.lifecycle.set_redis_trouble(error.to_string(), Instant::now());
    }

    fn back(&self) {
        if !self.up.swap(true, Ordering::Relaxed) {
            info!("the queue answers again");
        }
        self.lifecycle.set_redis_connected(true, Instant::now());
    }
}

/// Pauses between tries: doubling from 50 ms to 1.6 s.
#[derive(Debug, Default)]
pub struct Backoff {
    tries: u32,
}

impl Backoff {
    /// Whether nothing was waited for yet.
    pub fn is_fresh(&self) -> bool {
        self.tries == 0
    }

    /// Waits before the next try.
    pub async fn pause(&mut self) {
        let pause = Duration::from_millis(50 << self.tries.min(5));
        self.tries += 1;
        tokio::time::sleep(pause).await;
    }
}
