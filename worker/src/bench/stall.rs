//! How much longer tokens take while K and V come and go: sequences decode, now undisturbed, now while other conversations
//! are restored from the store and saved to it at a given rate. The two alternate, over prompts of the same lengths.
//!
//! What comes and goes is never computed, so that only the transfers are measured: a conversation is given room, its segments
//! are restored as a worker would, and then it is stopped and checkpointed. Saved segments get names of their own, because
//! what is stored already would not be saved again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use turnmill_schema::Name;
use uuid::Uuid;

use super::stored::{BLOCK_TOKENS, BenchError, Inside, Kept, Prompt, Subject};
use crate::engine::{EngineGone, EngineHandle, Progress, SegmentSink};
use crate::kv::{PrefixHash, Segment, SegmentData, SegmentId};
use crate::store::BlockStore;
use crate::store::inventory::Inventory;

/// Tokens of a decoding sequence's prompt.
const PROMPT: usize = 128;
/// Tokens of a conversation that comes and goes.
const CONVERSATION: usize = 1024;
/// Conversations that take turns: more than the pool holds, so that each has to come back.
const CONVERSATIONS: u64 = 6;
/// Steps before anything is counted.
const SETTLING: usize = 8;
/// Times that each of the two is measured.
const ROUNDS: usize = 5;
/// How long what was computed may take to be stored.
const STORE_TIMEOUT: Duration = Duration::from_secs(120);

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// With no queue yet.
    pub subject: Subject,
    /// Sequences that decode.
    pub sequences: usize,
    /// Tokens that each makes, in each round undisturbed and disturbed.
    pub tokens: usize,
    /// Bytes a second that come and go, together.
    pub bytes_per_second: u64,
}

/// Milliseconds between two tokens of a sequence.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct InterToken {
    /// Half are shorter.
    pub p50_ms: f64,
    /// One in a hundred is longer.
    pub p99_ms: f64,
}

/// The figures.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Report {
    /// Nothing comes or goes.
    pub idle: InterToken,
    /// K and V come and go.
    pub busy: InterToken,
    /// The ratio of the two longest in a hundred.
    pub p99_ratio: f64,
    /// What came, in megabytes a second.
    pub restored_mb_per_s: f64,
    /// What went.
    pub saved_mb_per_s: f64,
}

/// Measures; `progress` is called before each part. What was stored is removed.
pub async fn run(options: &Options, progress: &dyn Fn(&'static str)) -> Result<Report, BenchError> {
    let queue = Name::new(format!("bench-{}", Uuid::now_v7())).expect("letters, digits and dashes");
    let subject = Subject { queue, ..options.subject.clone() };
    let report = measure(&Options { subject: subject.clone(), ..options.clone() }, progress).await;
    Inventory::open(&subject.store, &subject.queue)?.clear().await?;
    report
}

async fn measure(options: &Options, progress: &dyn Fn(&'static str)) -> Result<Report, BenchError> {
    progress("loading the model");
    let decoding = options.sequences * (PROMPT + options.tokens + SETTLING + 2 * BLOCK_TOKENS);
    let pool_tokens = decoding + 2 * CONVERSATION + 4 * BLOCK_TOKENS;
    let mut renaming = None;
    let mut inside = Inside::start(&options.subject, pool_tokens, options.sequences + 1, |store| {
        let sink = Arc::new(Renaming::new(store.clone()));
        renaming = Some(sink.clone());
        sink
    })?;
    let sink = renaming.expect("the engine has a sink");
    progress("storing conversations");
    let conversations = store_all(&mut inside, &sink).await?;

    let mut traffic = Traffic { inside, conversations, rate: options.bytes_per_second };
    let (mut idle, mut busy, mut seconds) = (Vec::new(), Vec::new(), 0.0);
    let (mut restored, mut saved) = (0, 0);
    for _ in 0..ROUNDS {
        progress("decoding, undisturbed");
        let mut replies = begin_all(&mut traffic.inside, options).await?;
        receive(&mut replies, SETTLING).await?;
        idle.extend(receive(&mut replies, options.tokens).await?);

        progress("decoding while K and V come and go");
        let mut replies = begin_all(&mut traffic.inside, options).await?;
        receive(&mut replies, SETTLING).await?;
        let stop = CancellationToken::new();
        let (began, saved_before) = (Instant::now(), sink.saved.load(Ordering::Relaxed));
        let running = tokio::spawn(traffic.run(stop.clone()));
        busy.extend(receive(&mut replies, options.tokens).await?);
        seconds += began.elapsed().as_secs_f64();
        saved += sink.saved.load(Ordering::Relaxed) - saved_before;
        stop.cancel();
        let came;
        (traffic, came) = running.await.map_err(|panic| BenchError::Failed(panic.to_string()))??;
        restored += came;
    }
    // Once the engine computes this, which fills no block, it has taken every order before; then what it announced comes.
    let last = traffic.inside.fresh_prompt(BLOCK_TOKENS / 2);
    traffic.inside.first_token(&last, Kept::Nowhere).await?;
    while sink.announced.load(Ordering::Relaxed) > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    sink.store.flush(STORE_TIMEOUT).await;
    let (idle, busy) = (percentiles(idle), percentiles(busy));
    let mb_per_s = |bytes: usize| bytes as f64 / 1e6 / seconds;
    Ok(Report {
        idle,
        busy,
        p99_ratio: busy.p99_ms / idle.p99_ms,
        restored_mb_per_s: mb_per_s(restored),
        saved_mb_per_s: mb_per_s(saved),
    })
}

/// Computes conversations and stores them under their own names.
async fn store_all(inside: &mut Inside, sink: &Renaming) -> Result<Vec<Prompt>, BenchError> {
    let mut conversations = Vec::new();
    for number in 0..CONVERSATIONS {
        let prompt = inside.prompt(1 << 20 | number, CONVERSATION);
        inside.first_token(&prompt, Kept::Computed).await?;
        conversations.push(prompt);
    }
    sink.store.flush(STORE_TIMEOUT).await;
    Ok(conversations)
}

async fn begin_all(
    inside: &mut Inside,
    options: &Options,
) -> Result<Vec<mpsc::Receiver<Progress>>, EngineGone> {
    let mut replies = Vec::new();
    for _ in 0..options.sequences {
        let prompt = inside.fresh_prompt(PROMPT);
        let tokens = (options.tokens + SETTLING) as u32;
        // Their own blocks are not saved: undisturbed means that nothing is copied.
        replies.push(inside.begin(&prompt, tokens, Kept::Nowhere).await?.1);
    }
    Ok(replies)
}

/// Takes `count` tokens of every sequence; the times between each two of one sequence, as they arrive.
async fn receive(
    replies: &mut [mpsc::Receiver<Progress>],
    count: usize,
) -> Result<Vec<Duration>, BenchError> {
    let mut times = Vec::new();
    let mut last: Vec<Option<Instant>> = vec![None; replies.len()];
    for _ in 0..count {
        for (reply, last) in replies.iter_mut().zip(&mut last) {
            loop {
                match reply.recv().await {
                    Some(Progress::Token(_)) => break,
                    Some(Progress::Admitted { .. } | Progress::Room { .. }) => {}
                    Some(Progress::Refused(text) | Progress::Failed(text)) => {
                        return Err(BenchError::Failed(text));
                    }
                    Some(Progress::Stopped(_)) | None => return Err(EngineGone.into()),
                }
            }
            let now = Instant::now();
            times.extend(last.replace(now).map(|last| now - last));
        }
    }
    Ok(times)
}

/// Conversations that come and go, one after another.
struct Traffic {
    inside: Inside,
    conversations: Vec<Prompt>,
    /// Bytes a second.
    rate: u64,
}

impl Traffic {
    /// Until it is told to stop; itself, and the bytes that came.
    async fn run(mut self, stop: CancellationToken) -> Result<(Self, usize), BenchError> {
        let (began, mut moved, mut restored) = (Instant::now(), 0u64, 0);
        for number in 0.. {
            let index = number % self.conversations.len();
            let bytes = self.come_and_go(index).await?;
            restored += bytes;
            moved += 2 * bytes as u64;
            let due = began + Duration::from_secs_f64(moved as f64 / self.rate as f64);
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep_until(due.into()) => {}
            }
        }
        Ok((self, restored))
    }

    async fn come_and_go(&mut self, index: usize) -> Result<usize, BenchError> {
        let conversation = &self.conversations[index];
        let (id, mut progress) = self.inside.begin(conversation, 1, Kept::Stored).await?;
        let mut bytes = 0;
        if let Some(Progress::Room { blocks }) = progress.recv().await {
            let restored = self.inside.restorer.restore(id, &conversation.segments, blocks).await;
            let stored = |segment: &Arc<Segment>| self.inside.restorer.store().stored_bytes(segment);
            let all: usize = conversation.segments.iter().map(stored).sum();
            bytes = all * restored.tokens / conversation.tokens.len();
        }
        self.inside.engine.stop(id, true).await?;
        Ok(bytes)
    }
}

/// A sink that gives everything a name of its own once it was told a segment before, so that nothing is stored already.
struct Renaming {
    store: BlockStore,
    count: AtomicU64,
    saved: AtomicUsize,
    /// Segments that were announced, and neither saved nor withdrawn yet.
    announced: AtomicUsize,
}

impl Renaming {
    fn new(store: BlockStore) -> Self {
        let (saved, announced) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { store, count: AtomicU64::new(0), saved, announced }
    }
}

impl SegmentSink for Renaming {
    fn announce(&self, _: &SegmentId) -> bool {
        self.announced.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn has_room(&self, segment: &Segment) -> bool {
        self.store.has_room(segment)
    }

    fn save(&self, data: SegmentData) {
        self.saved.fetch_add(data.data.len(), Ordering::Relaxed);
        self.announced.fetch_sub(1, Ordering::Relaxed);
        if !self.store.is_saved(&data.segment.id) {
            self.store.save(data);
            return;
        }
        let mut last = [0; 32];
        last[..8].copy_from_slice(&self.count.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        let id = SegmentId { last: PrefixHash(last), ..data.segment.id };
        let segment = Arc::new(Segment { id, ..Segment::clone(&data.segment) });
        self.store.save(SegmentData { segment, data: data.data });
    }

    fn withdraw(&self, _: &SegmentId) {
        self.announced.fetch_sub(1, Ordering::Relaxed);
    }
}

fn percentiles(mut times: Vec<Duration>) -> InterToken {
    times.sort_unstable();
    let at = |share: f64| {
        let index = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
        times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    InterToken { p50_ms: at(0.5), p99_ms: at(0.99) }
}
