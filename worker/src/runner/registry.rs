//! Tells the queue who this worker is and how it does, and hears what an operator wants of it.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::info;
use turnmill_schema::WorkerStatus;

use super::{Held, Link};
use crate::broker::Broker;
use crate::lifecycle::Lifecycle;

/// This worker's entry in the queue's registry.
pub struct Registry<B> {
    /// The queue.
    pub broker: Arc<B>,
    /// What is held.
    pub held: Held,
    /// Whether the queue answers.
    pub link: Link,
    /// How the worker does.
    pub lifecycle: Arc<Lifecycle>,
    /// What never changes of it.
    pub about: WorkerStatus,
    /// Cancelled when an operator orders the worker to drain.
    pub drain: CancellationToken,
}

impl<B: Broker> Registry<B> {
    /// Enters the worker every `interval` until `stop`.
    pub async fn run(self, interval: Duration, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let registered = self.link.note(self.broker.register(&self.status()).await);
            if registered.is_ok_and(|orders| orders.drain) && !self.drain.is_cancelled() {
                info!("an operator ordered this worker to drain");
                self.drain.cancel();
            }
        }
    }

    fn status(&self) -> WorkerStatus {
        WorkerStatus {
            state: self.lifecycle.phase().as_str().to_owned(),
            running: self.held.leases() as u64,
            headroom_percent: (self.lifecycle.headroom() * 100.0).round() as u64,
            ..self.about.clone()
        }
    }
}
