//! Write-behind: segments wait in a bounded queue, and a few writers bring them to the store.
//!
//! A writer of a folder rests after each segment: writing a few megabytes is work of the kernel's, which no priority takes from
//! a core, and a step waits for its slowest core. Without rests, steps took twice as long while a conversation was saved.
//!
//! Invariants: giving a segment never waits; the queue holds at most its bytes; every segment that was taken ends exactly once,
//! as saved, failed or (for want of room in a folder) dropped, even if its writer panics; a writer outlives its panics; a
//! segment is acknowledged, and in the host cache, only once the store has it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::Shared;
use crate::kv::{SegmentData, SegmentId};
use crate::observe::metrics;
use crate::store::object;

/// Segments written at once. One would wait for a remote store most of the time; many would keep reads from the network.
pub(super) const WRITERS: usize = 2;
/// How much longer the rest after a put in a folder is than the put.
const REST: u32 = 5;

/// Bytes that may still be queued.
#[derive(Debug)]
pub(super) struct Room {
    used: AtomicUsize,
    limit: usize,
}

impl Room {
    pub fn new(limit: usize) -> Self {
        Self { used: AtomicUsize::new(0), limit }
    }

    /// Whether `bytes` bytes fit now, or never do.
    pub fn has(&self, bytes: usize) -> bool {
        bytes > self.limit || self.used.load(Ordering::Relaxed) + bytes <= self.limit
    }

    fn take(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.limit);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        taken.inspect(|before| metrics::save_queue(before + bytes)).is_ok()
    }

    fn free(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, Ordering::Relaxed);
        metrics::save_queue(before - bytes);
    }
}

/// Takes segments. The channel is as long as [`Room`] lets it get.
#[derive(Debug)]
pub(super) struct Saver(UnboundedSender<Queued>);

#[derive(Debug)]
struct Queued {
    data: SegmentData,
    pending: Pending,
}

/// A segment that was taken and has not ended. When it is dropped it ends: as failed, unless it is told otherwise.
#[derive(Debug)]
struct Pending {
    shared: Arc<Shared>,
    id: SegmentId,
    bytes: usize,
    end: End,
}

/// What becomes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Failed,
    Saved,
    /// It would take its folder over the limit.
    NoRoom,
}

impl Pending {
    fn end(mut self, end: End) {
        self.end = end;
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        match self.end {
            End::Saved => metrics::segment_saved(self.bytes),
            End::Failed => metrics::segment_failed(self.bytes),
            End::NoRoom => metrics::segment_dropped(self.bytes),
        }
        self.shared.room.free(self.bytes);
        // Last: when a waiter hears of this segment, everything else is done.
        self.shared.ledger.end(self.id, self.end == End::Saved);
    }
}

impl Saver {
    /// Starts the writers; they end with the runtime, or when this is dropped and the queue is empty.
    pub fn start(shared: &Arc<Shared>) -> Self {
        let (queue, segments) = unbounded_channel();
        let segments = Arc::new(Mutex::new(segments));
        let writers = if shared.settings.url.is_folder() { 1 } else { WRITERS };
        for _ in 0..writers {
            shared.surroundings.spawn(write_all(shared.clone(), segments.clone()));
        }
        Self(queue)
    }

    /// Takes a segment that the ledger says is on its way. False: there is no room, and it is dropped.
    pub fn save(&self, shared: &Arc<Shared>, data: SegmentData) -> bool {
        let (id, bytes) = (data.segment.id, data.data.len());
        if !shared.room.take(bytes) {
            metrics::segment_dropped(bytes);
            shared.ledger.end(id, false);
            return false;
        }
        let pending = Pending { shared: shared.clone(), id, bytes, end: End::Failed };
        // An error means that the runtime is gone and with it the writers: dropping it says that it failed.
        self.0.send(Queued { data, pending }).is_ok()
    }
}

/// Writes until nobody can give segments any more. A panic is a bug and costs the segment that was being written: a folder has
/// no other writer.
async fn write_all(shared: Arc<Shared>, segments: Arc<Mutex<UnboundedReceiver<Queued>>>) {
    let rested = shared.surroundings.now();
    let mut writer = Writer { shared, segments, rested };
    while AssertUnwindSafe(writer.run()).catch_unwind().await.is_err() {
        tracing::error!(
            store = %writer.shared.settings.url,
            "writing a segment panicked; it is lost and the next one is written; please report the log"
        );
        writer.shared.health.write_failed("the writer panicked; please report the log");
    }
}

struct Writer {
    shared: Arc<Shared>,
    segments: Arc<Mutex<UnboundedReceiver<Queued>>>,
    /// When the next segment may be written.
    rested: Instant,
}

impl Writer {
    async fn run(&mut self) {
        loop {
            // The other writer waits for the lock instead of for a segment.
            let next = self.segments.lock().await.recv().await;
            let Some(Queued { data, pending }) = next else { return };
            self.rest().await;
            self.shared.reads_first.give_way().await;
            match self.write(data).await {
                Ok(end) => {
                    // A full folder says nothing about whether it takes writes.
                    if end == End::Saved {
                        self.shared.health.written();
                    }
                    pending.end(end);
                }
                Err(reason) => self.shared.health.write_failed(&reason),
            }
        }
    }

    /// Waits until the rest is over, or no step can be held up any more.
    async fn rest(&self) {
        tokio::select! {
            biased;
            () = self.shared.hurries.cancelled() => {}
            () = self.shared.surroundings.sleep_until(self.rested) => {}
        }
    }

    async fn write(&mut self, data: SegmentData) -> Result<End, String> {
        let (shared, id, began) = (&self.shared, data.segment.id, self.shared.surroundings.now());
        let object = encode(shared, data).await?;
        let encoded = shared.surroundings.since(began);
        if !has_room(shared, id, object.len()).await? {
            return Ok(End::NoRoom);
        }
        let began = shared.surroundings.now();
        let put = shared.objects.put(&id, object.clone()).await;
        let took = shared.surroundings.since(began);
        if shared.settings.url.is_folder() {
            // Encoding is done at a low priority and trimming writes nothing: neither needs a rest.
            self.rested = shared.surroundings.now() + REST * took;
        }
        let is_new = put?;
        metrics::segment_written(encoded + took);
        match &shared.folder {
            Some(folder) if is_new => folder.written(object.len()).await,
            Some(folder) => folder.used(&id),
            None => {}
        }
        shared.cache.insert(id, object);
        Ok(End::Saved)
    }
}

/// Whether the store may take `bytes` bytes more; a folder that is full loses others for them.
async fn has_room(shared: &Shared, id: SegmentId, bytes: usize) -> Result<bool, String> {
    let Some(folder) = &shared.folder else { return Ok(true) };
    let Some(look) = folder.make_room(id, bytes).await? else { return Ok(true) };
    shared.looked(&look);
    look.has_room
}

async fn encode(shared: &Arc<Shared>, data: SegmentData) -> Result<Bytes, String> {
    let (surroundings, shared) = (shared.surroundings.clone(), shared.clone());
    let encode = move || {
        let key = shared.key(&data.segment.tenant);
        Bytes::from(object::encode(&data, &shared.settings.shape, shared.settings.codec, key.as_ref()))
    };
    surroundings.run_blocking(encode).await.map_err(|error| format!("a segment cannot be encoded: {error}"))
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use futures::poll;
    use tempfile::TempDir;

    use super::super::tests::{Put, Puts, segment, store};
    use super::super::{BlockStore, BlockStoreSettings};
    use super::*;

    /// Longest wait for what should happen at once.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A store that takes its folder's only writer, and what was told of it.
    fn folder(
        puts: Puts,
        change: impl FnOnce(&mut BlockStoreSettings),
    ) -> (TempDir, BlockStore, UnboundedReceiver<Option<String>>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = store(&format!("file://{}", folder.path().display()), puts, change);
        let (sender, told) = unbounded_channel();
        store.on_trouble(move |trouble| drop(sender.send(trouble)));
        (folder, store, told)
    }

    async fn next(told: &mut UnboundedReceiver<Option<String>>) -> Option<String> {
        let next = tokio::time::timeout(PATIENCE, told.recv()).await;
        next.expect("something is told in time").expect("the store is open")
    }

    fn writer(store: &BlockStore) -> Writer {
        let segments = Arc::new(Mutex::new(unbounded_channel().1));
        Writer { shared: Arc::clone(store.shared()), segments, rested: Instant::now() }
    }

    #[tokio::test]
    async fn hurrying_ends_a_rest() {
        let (_folder, store, _) = folder(Puts::default(), |_| ());
        let mut writer = writer(&store);
        writer.rested += PATIENCE * 1000;
        let mut rest = pin!(writer.rest());
        assert!(poll!(&mut rest).is_pending());
        store.hurry();
        tokio::time::timeout(PATIENCE, rest).await.expect("it is woken");
    }

    #[tokio::test]
    async fn a_segment_without_room_costs_no_rest_and_is_no_good_news() {
        let (_folder, store, mut told) = folder(Puts::default(), |settings| settings.folder_bytes = Some(0));
        (0..3).for_each(|_| store.shared().health.write_failed("no space left"));
        assert_eq!(next(&mut told).await, None);
        assert!(next(&mut told).await.is_some_and(|trouble| trouble.contains("no space left")));
        let mut writer = writer(&store);
        let rested = writer.rested;
        assert_eq!(writer.write(segment(1)).await, Ok(End::NoRoom));
        assert_eq!(writer.rested, rested);
        assert!(store.save(segment(2)), "it is taken");
        store.flush(PATIENCE).await;
        assert!(!store.is_saved(&segment(2).segment.id));
        assert!(told.is_empty(), "nothing was written, so writes are still in trouble");
    }

    #[tokio::test]
    async fn a_writer_that_panics_is_told_and_goes_on() {
        let (_folder, store, mut told) = folder(Puts::these([Put::Panics; 3]), |_| ());
        assert_eq!(next(&mut told).await, None);
        for number in 1..=3 {
            assert!(store.save(segment(number)));
            assert_eq!(store.saved(&[segment(number).segment.id], PATIENCE).await, 0, "{number}");
        }
        assert!(next(&mut told).await.is_some_and(|trouble| trouble.contains("panicked")));
        assert!(store.save(segment(1)), "it is not known as saved");
        assert_eq!(store.saved(&[segment(1).segment.id], PATIENCE).await, 1);
        assert_eq!(next(&mut told).await, None);
    }

    #[tokio::test]
    async fn waiting_for_a_write_that_never_ends_ends_in_time() {
        let (_folder, store, _) = folder(Puts::these([Put::NeverEnds]), |_| ());
        assert!(store.save(segment(1)));
        let short = Duration::from_millis(50);
        let waits = async {
            assert_eq!(store.saved(&[segment(1).segment.id], short).await, 0);
            store.flush(short).await;
        };
        tokio::time::timeout(PATIENCE, waits).await.expect("neither waits for the write");
        assert!(store.is_saved(&segment(1).segment.id), "the write goes on");
    }
}
