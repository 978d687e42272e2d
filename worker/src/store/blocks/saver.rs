//! Write-behind: segments wait in a bounded queue, and a few writers bring them to the store.
//!
//! A writer of a folder rests after each segment: writing a few megabytes is work of the kernel's, which no priority takes from
//! a core, and a step waits for its slowest core. Without rests, steps took twice as long while a conversation was saved.
//!
//! Invariants: giving a segment never waits; the queue holds at most its bytes; every segment that was taken ends exactly once,
//! as saved or as failed, even if its writer panics; a segment is acknowledged, and in the host cache, only once the store
//! has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::Shared;
use crate::kv::{SegmentData, SegmentId};
use crate::observe::metrics;
use crate::store::object;

/// Segments written at once. One would wait for a remote store most of the time; many would keep reads from the network.
pub(super) const WRITERS: usize = 2;
/// How much longer than a write in a folder the rest after it is.
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

    /// Whether so many bytes fit now, or never do.
    pub fn has(&self, bytes: usize) -> bool {
        bytes > self.limit || self.used.load(Ordering::Relaxed) + bytes <= self.limit
    }

    fn take(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.limit);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        taken.inspect(|before| metrics::save_queue(before + bytes)).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, Ordering::Relaxed);
        metrics::save_queue(before - bytes);
    }
}

/// Where segments are given. The channel is as long as [`Room`] lets it get.
#[derive(Debug)]
pub(super) struct Saver(UnboundedSender<Queued>);

#[derive(Debug)]
struct Queued {
    data: SegmentData,
    ticket: Ticket,
}

/// The end of a segment that was taken: failed, unless it is told otherwise.
#[derive(Debug)]
struct Ticket {
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

impl Ticket {
    fn end(mut self, end: End) {
        self.end = end;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        match self.end {
            End::Saved => metrics::segment_saved(self.bytes),
            End::Failed => metrics::segment_failed(self.bytes),
            End::NoRoom => metrics::segment_dropped(self.bytes),
        }
        self.shared.room.give_back(self.bytes);
        // Last: whoever waits for this segment finds everything else done.
        self.shared.ledger.end(self.id, self.end == End::Saved);
    }
}

impl Saver {
    /// Starts the writers; they end with the runtime, or when this is dropped and the queue is empty.
    pub fn start(shared: &Arc<Shared>, runtime: &Handle) -> Self {
        let (queue, segments) = unbounded_channel();
        let segments = Arc::new(Mutex::new(segments));
        let writers = if shared.settings.url.is_folder() { 1 } else { WRITERS };
        for _ in 0..writers {
            runtime.spawn(write_all(shared.clone(), segments.clone()));
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
        let ticket = Ticket { shared: shared.clone(), id, bytes, end: End::Failed };
        // An error means that the runtime is gone and with it the writers: the ticket says that it failed.
        self.0.send(Queued { data, ticket }).is_ok()
    }
}

async fn write_all(shared: Arc<Shared>, segments: Arc<Mutex<UnboundedReceiver<Queued>>>) {
    let mut rested = Instant::now();
    loop {
        // The other writer waits for the lock instead of for a segment.
        let next = segments.lock().await.recv().await;
        let Some(Queued { data, ticket }) = next else { return };
        if !shared.hurries.load(Ordering::Relaxed) {
            tokio::time::sleep_until(rested).await;
        }
        shared.reads_first.give_way().await;
        let began = Instant::now();
        match write(&shared, data).await {
            Ok(end) => {
                shared.health.written();
                ticket.end(end);
            }
            Err(reason) => shared.health.write_failed(&reason),
        }
        if shared.settings.url.is_folder() {
            rested = Instant::now() + REST * began.elapsed();
        }
    }
}

async fn write(shared: &Arc<Shared>, data: SegmentData) -> Result<End, String> {
    let (id, began) = (data.segment.id, Instant::now());
    let object = encode(shared, data).await?;
    let encoded = began.elapsed();
    if !has_room(shared, id, object.len()).await? {
        return Ok(End::NoRoom);
    }
    let began = Instant::now();
    let is_new = shared.objects.put(&id, object.clone()).await?;
    metrics::segment_written(encoded + began.elapsed());
    match &shared.folder {
        Some(folder) if is_new => folder.written(object.len()).await,
        Some(folder) => folder.used(&id),
        None => {}
    }
    shared.cache.insert(id, object);
    Ok(End::Saved)
}

/// Whether the store may take so many bytes more; a folder that is full loses others for them.
async fn has_room(shared: &Shared, id: SegmentId, bytes: usize) -> Result<bool, String> {
    let Some(folder) = &shared.folder else { return Ok(true) };
    let Some(look) = folder.make_room(id, bytes).await? else { return Ok(true) };
    shared.looked(&look);
    look.has_room
}

async fn encode(shared: &Arc<Shared>, data: SegmentData) -> Result<Bytes, String> {
    let shared = shared.clone();
    let encode = move || {
        let key = shared.key(&data.segment.tenant);
        Bytes::from(object::encode(&data, &shared.settings.shape, shared.settings.codec, key.as_ref()))
    };
    tokio::task::spawn_blocking(encode).await.map_err(|error| format!("a segment cannot be encoded: {error}"))
}
