//! Time to the first token of a conversation whose K and V are nowhere (cold), in the pool (hot) or in the store alone
//! (warm), beside the time that reading the same objects takes.
//!
//! Cold and hot are measured in one process, which stores the conversation; warm and raw reads in fresh ones, whose clock
//! starts when they are ready. So a run is a process that starts others.

use std::process::Command;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream;
use serde::{Deserialize, Serialize};
use turnmill_schema::Name;
use uuid::Uuid;

use super::stored::{BLOCK_TOKENS, BenchError, Inside, Kept, Prompt, Subject};
use crate::config::{KvCodec, StoreUrl};
use crate::kv::SegmentId;
use crate::store::inventory::Inventory;

/// Processes that a warm figure is the median of, and repetitions of the short figures within one.
const REPETITIONS: usize = 5;
/// How long what was computed may take to be stored.
const STORE_TIMEOUT: Duration = Duration::from_secs(120);

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// With the first of the codecs, and no queue yet.
    pub subject: Subject,
    /// Prompt lengths.
    pub contexts: Vec<usize>,
    /// How K and V are kept.
    pub codecs: Vec<KvCodec>,
}

/// The figures of one prompt length and codec; times are medians in milliseconds, cold is one run.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Tokens of the prompt.
    pub context: usize,
    /// How K and V are kept.
    pub codec: KvCodec,
    /// Bytes of the stored objects.
    pub bytes: usize,
    /// First token with nothing stored.
    pub cold_ttft_ms: f64,
    /// First token of a fresh process that has the store.
    pub warm_ttft_ms: f64,
    /// First token with everything in the pool.
    pub hot_ttft_ms: f64,
    /// Reading the objects, as many at once as a restore does.
    pub raw_read_ms: f64,
}

/// What a process of its own measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Computes the prompt, stores it, and meets it in the pool.
    Store,
    /// Meets it in the store.
    Restore,
}

/// What such a process tells.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct PartFigures {
    bytes: usize,
    cold_ms: f64,
    hot_ms: f64,
    warm_ms: f64,
    raw_read_ms: f64,
}

/// Measures everything; `part` makes the command of a process that measures one part of one prompt, `progress` is called
/// before each. What was stored is removed.
pub async fn run(
    options: &Options,
    part: &dyn Fn(Part, &Subject, usize) -> std::io::Result<Command>,
    progress: &dyn Fn(String),
) -> Result<Vec<Figures>, BenchError> {
    let mut all = Vec::new();
    for codec in options.codecs.iter().copied() {
        for context in options.contexts.iter().copied() {
            let queue = Name::new(format!("bench-{}", Uuid::now_v7())).expect("letters, digits and dashes");
            let subject = Subject { codec, queue, ..options.subject.clone() };
            let figures = measure(&subject, context, part, progress).await;
            Inventory::open(&subject.store, &subject.queue)?.clear().await?;
            all.push(figures?);
        }
    }
    Ok(all)
}

async fn measure(
    subject: &Subject,
    context: usize,
    part: &dyn Fn(Part, &Subject, usize) -> std::io::Result<Command>,
    progress: &dyn Fn(String),
) -> Result<Figures, BenchError> {
    let codec = subject.codec;
    progress(format!("{codec}, {context} tokens: cold and hot"));
    let stored = run_part(part(Part::Store, subject, context)?)?;
    let mut restored = Vec::new();
    for number in 1..=REPETITIONS {
        progress(format!("{codec}, {context} tokens: warm, process {number} of {REPETITIONS}"));
        restored.push(run_part(part(Part::Restore, subject, context)?)?);
    }
    let of = |figure: fn(&PartFigures) -> f64| median(restored.iter().map(figure).collect());
    Ok(Figures {
        context,
        codec,
        bytes: stored.bytes,
        cold_ttft_ms: stored.cold_ms,
        warm_ttft_ms: of(|part| part.warm_ms),
        hot_ttft_ms: stored.hot_ms,
        raw_read_ms: of(|part| part.raw_read_ms),
    })
}

fn run_part(mut command: Command) -> Result<PartFigures, BenchError> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    match serde_json::from_str(said.trim()) {
        Ok(figures) if output.status.success() => Ok(figures),
        _ => Err(BenchError::Part(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// Refuses a store that another process cannot find anything in.
pub fn check_shared(store: &StoreUrl) -> Result<(), BenchError> {
    if store.expose().starts_with("memory:") {
        return Err(BenchError::NotShared(store.clone()));
    }
    Ok(())
}

/// Measures one part in this process.
pub async fn run_one(part: Part, subject: &Subject, context: usize) -> Result<PartFigures, BenchError> {
    let pool_tokens = context + 4 * BLOCK_TOKENS;
    let sink = |store: &_| std::sync::Arc::new(Clone::clone(store)) as _;
    let mut inside = Inside::start(subject, pool_tokens, 1, sink)?;
    let prompt = inside.prompt(1, context);
    match part {
        Part::Store => store(&mut inside, &prompt).await,
        Part::Restore => restore(&mut inside, &prompt).await,
    }
}

async fn store(inside: &mut Inside, prompt: &Prompt) -> Result<PartFigures, BenchError> {
    let (cold, _) = inside.first_token(prompt, Kept::Computed).await?;
    let mut hot = Vec::new();
    for _ in 0..REPETITIONS {
        hot.push(milliseconds(inside.first_token(prompt, Kept::Stored).await?.0));
    }
    let ids: Vec<SegmentId> = prompt.segments.iter().map(|segment| segment.id).collect();
    let stored = inside.restorer.store().saved(&ids, STORE_TIMEOUT).await;
    if stored < ids.len() {
        let tokens =
            |segments: usize| prompt.segments[..segments].iter().map(|segment| segment.tokens.len()).sum();
        return Err(BenchError::NotThere { came: tokens(stored), wanted: tokens(ids.len()) });
    }
    let bytes = read_all(inside, prompt).await?;
    Ok(PartFigures { bytes, cold_ms: milliseconds(cold), hot_ms: median(hot), ..PartFigures::default() })
}

async fn restore(inside: &mut Inside, prompt: &Prompt) -> Result<PartFigures, BenchError> {
    let wanted = prompt.segments.iter().map(|segment| segment.tokens.len()).sum();
    let (warm, came) = inside.first_token(prompt, Kept::Stored).await?;
    if came < wanted {
        return Err(BenchError::NotThere { came, wanted });
    }
    let (mut reads, mut bytes) = (Vec::new(), 0);
    for _ in 0..REPETITIONS {
        let began = Instant::now();
        bytes = read_all(inside, prompt).await?;
        reads.push(milliseconds(began.elapsed()));
    }
    let (warm_ms, raw_read_ms) = (milliseconds(warm), median(reads));
    Ok(PartFigures { bytes, warm_ms, raw_read_ms, ..PartFigures::default() })
}

/// Reads all objects of the prompt, as many at once as the store allows. Their bytes.
async fn read_all(inside: &Inside, prompt: &Prompt) -> Result<usize, BenchError> {
    let store = inside.restorer.store();
    let reads = stream::iter(&prompt.segments)
        .map(|segment| store.read_only(segment))
        .buffer_unordered(prompt.segments.len().max(1));
    let reads: Vec<_> = reads.collect().await;
    let bytes: Result<Vec<usize>, _> = reads.into_iter().collect();
    let wanted = prompt.segments.iter().map(|segment| segment.tokens.len()).sum();
    bytes.map(|bytes| bytes.iter().sum()).map_err(|_| BenchError::NotThere { came: 0, wanted })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
