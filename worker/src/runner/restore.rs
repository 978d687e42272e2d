//! Brings a turn's stored segments back into the pool, if that is expected to be faster than computing them.
//!
//! Invariants: segments come into the pool in order, and the first one that is missing is the last that is asked for; at most
//! `parallel` segments of all turns together are in memory at once; every restore ends by its deadline; what did not come is
//! computed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::{Instrument as _, debug, info};

use crate::engine::EngineHandle;
use crate::kv::{Segment, SegmentData};
use crate::observe::metrics;
use crate::schedule::SequenceId;
use crate::store::{BlockStore, Miss};
use crate::surroundings::{Running, Surroundings};

/// What a [`Restorer`] is told.
#[derive(Clone, Copy, Debug)]
pub struct RestoreSettings {
    /// Tokens a block.
    pub block_tokens: usize,
    /// Segments in memory at once.
    pub parallel: usize,
    /// How long a restore may take, besides the time in which its tokens would be computed.
    pub base: Duration,
    /// Bytes that the host cache holds.
    pub host_cache_bytes: usize,
    /// Whether to compute what that is expected to bring back sooner; otherwise everything stored is restored.
    pub choose: bool,
}

/// Between store and engine; shared by all turns.
pub struct Restorer<E> {
    store: BlockStore,
    engine: E,
    in_memory: Arc<Semaphore>,
    settings: RestoreSettings,
    surroundings: Surroundings,
}

/// What came of a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Tokens whose K and V came back.
    pub tokens: usize,
    /// How it ended; one of [`metrics::RESTORE_OUTCOMES`].
    pub outcome: &'static str,
}

/// What restoring and computing are expected to take.
#[derive(Clone, Copy, Debug)]
struct Estimate {
    restore: Duration,
    prefill: Duration,
}

/// A segment that is being fetched; it holds its place in memory until it is in the pool.
type Fetch = (Running<Result<SegmentData, Miss>>, OwnedSemaphorePermit);

impl<E: EngineHandle> Restorer<E> {
    /// Fetches from `store` for turns in `engine`.
    pub fn new(store: BlockStore, engine: E, settings: RestoreSettings, surroundings: Surroundings) -> Self {
        let in_memory = Arc::new(Semaphore::new(settings.parallel.max(1)));
        Self { store, engine, in_memory, settings, surroundings }
    }

    /// The store it fetches from.
    pub fn store(&self) -> &BlockStore {
        &self.store
    }

    /// How many segments are in memory.
    pub(super) fn places_taken(&self) -> usize {
        self.settings.parallel.max(1) - self.in_memory.available_permits()
    }

    /// Restores those of `segments` that are not among the turn's first `known` blocks, and lets the turn run. To be called
    /// when the engine says that there is room.
    pub async fn restore(&self, id: SequenceId, segments: &[Arc<Segment>], known: usize) -> Restored {
        let began = self.surroundings.now();
        let missing: Vec<Arc<Segment>> = segments
            .iter()
            .filter(|segment| segment.end_block(self.settings.block_tokens) > known)
            .cloned()
            .collect();
        if missing.is_empty() {
            return Restored { tokens: 0, outcome: "restored" };
        }
        let estimate = self.estimate(&missing, known);
        let restored = if self.settings.choose && estimate.restore > estimate.prefill {
            Restored { tokens: 0, outcome: "prefilled" }
        } else {
            self.bring(id, missing, known, began + self.settings.base + estimate.prefill).await
        };
        let (took, Estimate { restore, prefill }) = (self.surroundings.since(began), estimate);
        metrics::restore_decided(restored.outcome);
        if restored.tokens > 0 {
            metrics::restored(restored.tokens, took);
        }
        info!(
            outcome = restored.outcome, tokens = restored.tokens, known_blocks = known,
            ?took, expected = ?restore, expected_prefill = ?prefill,
            "the turn's stored K and V"
        );
        restored
    }

    /// Reads segments that are not in the host cache yet into it, for a turn that has no room in the pool.
    pub async fn prefetch(&self, segments: &[Arc<Segment>]) {
        // Others wait as well; what is read last must not push out what is read first.
        let mut room = self.settings.host_cache_bytes / 2;
        for segment in segments {
            let bytes = self.store.stored_bytes(segment);
            if bytes > room {
                return;
            }
            room -= bytes;
            if !self.store.is_cached(&segment.id) {
                let _place = self.in_memory.acquire().await;
                if self.store.fetch(segment).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn bring(
        &self,
        id: SequenceId,
        segments: Vec<Arc<Segment>>,
        known: usize,
        deadline: Instant,
    ) -> Restored {
        let mut end = known;
        let wanted = segments.len();
        let mut fetches = self.fetch_all(segments.clone());
        let in_order = async {
            for (count, segment) in segments.iter().enumerate() {
                let Some((fetch, place)) = fetches.recv().await else { return count };
                let fetched = fetch.await.unwrap_or_else(|error| Err(Miss::Unreachable(error.to_string())));
                let data = match fetched {
                    Ok(data) => data,
                    Err(miss) => {
                        debug!(segment = %segment.id.last, %miss, "the turn is computed from here on");
                        return count;
                    }
                };
                if !matches!(self.engine.import(id, data).await, Ok(true)) {
                    debug!(segment = %segment.id.last, "the turn was preempted, and is computed from here on");
                    return count;
                }
                drop(place);
                end = segment.end_block(self.settings.block_tokens);
            }
            wanted
        };
        let came = self.surroundings.timeout_at(deadline, in_order).await;
        let outcome = match came {
            Ok(count) if count == wanted => "restored",
            Ok(0) => "missed",
            Ok(_) => "partly",
            Err(_) => "timed_out",
        };
        Restored { tokens: (end - known) * self.settings.block_tokens, outcome }
    }

    /// Begins fetching in order, as many at once as may be in memory. Dropping what is returned ends it.
    fn fetch_all(&self, segments: Vec<Arc<Segment>>) -> mpsc::Receiver<Fetch> {
        let (sender, receiver) = mpsc::channel(self.settings.parallel.max(1));
        let (store, in_memory, surroundings) =
            (self.store.clone(), self.in_memory.clone(), self.surroundings.clone());
        let fetch_all = async move {
            for segment in segments {
                let place = tokio::select! {
                    biased;
                    () = sender.closed() => return,
                    place = in_memory.clone().acquire_owned() => place.expect("the semaphore is never closed"),
                };
                let store = store.clone();
                let fetch = surroundings.run(async move { store.fetch(&segment).await }.in_current_span());
                if sender.send((fetch, place)).await.is_err() {
                    return;
                }
            }
        };
        self.surroundings.spawn(fetch_all.in_current_span());
        receiver
    }

    fn estimate(&self, segments: &[Arc<Segment>], known: usize) -> Estimate {
        let tokens = segments.last().map_or(0, |segment| {
            (segment.end_block(self.settings.block_tokens) - known) * self.settings.block_tokens
        });
        let prefill = Duration::from_secs_f64(tokens as f64 / self.engine.prefill_rate());
        let far: Vec<_> = segments.iter().filter(|segment| !self.store.is_cached(&segment.id)).collect();
        if far.is_empty() {
            return Estimate { restore: Duration::ZERO, prefill };
        }
        let cost = self.store.fetch_cost();
        let bytes: usize = far.iter().map(|segment| self.store.stored_bytes(segment)).sum();
        let rounds = far.len().div_ceil(self.settings.parallel.max(1)) as u32;
        let transfer = Duration::try_from_secs_f64(bytes as f64 / cost.bytes_per_second);
        Estimate {
            restore: (cost.latency * rounds).saturating_add(transfer.unwrap_or(Duration::MAX)),
            prefill,
        }
    }
}
