//! The queue's clock, injected: a simulation and a test decide what time it is.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// What time it is, and how to wait for a later one.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Unix milliseconds. Never goes back.
    fn now_ms(&self) -> u64;

    /// Ends when it is `at_ms`.
    fn until(&self, at_ms: u64) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// The runtime's clock: the machine's at the start, and tokio's timers from there.
#[derive(Debug)]
pub struct TokioClock {
    started: Instant,
    started_ms: u64,
}

impl TokioClock {
    /// Starts now.
    pub fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), started_ms: since_epoch.as_millis() as u64 }
    }
}

impl Clock for TokioClock {
    fn now_ms(&self) -> u64 {
        self.started_ms + self.started.elapsed().as_millis() as u64
    }

    fn until(&self, at_ms: u64) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let at = self.started + Duration::from_millis(at_ms.saturating_sub(self.started_ms));
        Box::pin(tokio::time::sleep_until(at))
    }
}
