//! Keeps what this worker holds, for as long as its engine moves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::error;

use super::{Held, Link};
use crate::broker::Broker;
use crate::lifecycle::Lifecycle;

/// Renews every `interval` until `stop`. A hung engine gets no renewal, so that its turns go elsewhere.
pub async fn renew<B: Broker>(
    broker: Arc<B>,
    held: Held,
    link: Link,
    lifecycle: Arc<Lifecycle>,
    interval: Duration,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut stalled = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let hangs = lifecycle.engine_stalled(Instant::now());
        if hangs && !stalled {
            error!("the engine has work and makes no steps; its turns are left to other workers");
        }
        stalled = hangs;
        if hangs {
            continue;
        }
        // Also with nothing held: it tells whether the queue can be reached.
        let (leases, tickets) = held.snapshot();
        if let Ok(renewal) = link.note(broker.renew(&leases, &tickets).await) {
            renewal.lost.into_iter().for_each(|turn| held.lose(turn));
        }
    }
}
