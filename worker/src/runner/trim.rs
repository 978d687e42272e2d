//! Looks after the folder with K and V as long as this worker runs: notes what was used, and keeps it within its limit
//! while nobody writes.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::store::BlockStore;
use crate::surroundings::Surroundings;

/// Between two looks. What was used is known to other workers, and after a crash, this much later.
const EVERY: Duration = Duration::from_secs(30);

/// Looks until `stop`. Every worker of the folder may.
pub async fn trim(store: BlockStore, surroundings: Surroundings, stop: CancellationToken) {
    let mut ticks = surroundings.ticks(EVERY);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = ticks.tick() => {}
        }
        let tidied = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            tidied = store.tidy() => tidied,
        };
        match tidied {
            Ok(trimmed) if trimmed.objects > 0 => info!(
                objects = trimmed.objects,
                bytes = trimmed.bytes,
                "the K and V used longest ago were removed: over store_max_bytes"
            ),
            Ok(_) => {}
            Err(error) => debug!(%error, "the folder with K and V was not looked at"),
        }
    }
}
