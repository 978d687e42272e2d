//! Keeps the folder with K and V within its limit, as long as this worker runs.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::observe::metrics;
use crate::store::BlockStore;

/// Between two looks: a busy small worker writes some 100 MB meanwhile.
const EVERY: Duration = Duration::from_secs(30);

/// Looks until `stop`. Every worker of the folder may.
pub async fn trim(store: BlockStore, limit: u64, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let trimmed = tokio::select! {
            () = stop.cancelled() => return,
            trimmed = store.trim(limit) => trimmed,
        };
        match trimmed {
            Ok(trimmed) if trimmed.objects > 0 => {
                metrics::store_trimmed(trimmed.bytes);
                info!(
                    objects = trimmed.objects,
                    bytes = trimmed.bytes,
                    "the oldest K and V were removed: over store_max_bytes"
                );
            }
            Ok(_) => {}
            Err(error) => debug!(%error, "the folder with K and V was not looked at"),
        }
    }
}
