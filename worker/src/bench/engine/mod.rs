//! How fast the engine alone is: scheduler, steps and greedy sampling, no queue.
//!
//! Prompts are distinct from the first token on, so no prefix is shared; every decode step samples from full logits; warm-up
//! and, for decoding, the prompts are not counted. Each figure is the median of some runs.

mod demand;
mod drive;

use std::time::Duration;

use serde::Serialize;

use super::machine;
use crate::model::{EngineError, ModelChoice, ModelError};
use crate::schedule::Refused;
use demand::Demand;
use drive::Drive;

/// Tokens that each run decodes after a long context. Few, so that the context hardly grows.
const LONG_GENERATE: usize = 32;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model file.
    pub model: ModelChoice,
    /// Prompt lengths.
    pub prefill: Vec<usize>,
    /// Prompt length before decoding.
    pub context: usize,
    /// Tokens each sequence decodes.
    pub generate: usize,
    /// Sequences that decode at once.
    pub batch: Vec<usize>,
    /// Prompt length before one sequence decodes alone, beside what memory gives; 0: not measured.
    pub long_context: usize,
    /// Rows of a step at most.
    pub batch_tokens: usize,
    /// Runs that a figure is the median of.
    pub runs: usize,
}

/// One prompt that nobody has met.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Prefill {
    /// Its length.
    pub tokens: usize,
    /// Prompt tokens per second.
    pub tok_s: f64,
    /// From submitting the prompt to its first sampled token, in milliseconds: the same time, told otherwise.
    pub ttft_ms: f64,
}

/// Tokens per second of several sequences together.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Decode {
    /// How many.
    pub batch: usize,
    /// Prompt tokens of each.
    pub context: usize,
    /// Tokens per second of all together.
    pub tok_s: f64,
}

/// One sequence that decodes over a long context, and the memory it reads.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Long {
    /// Prompt tokens.
    pub context: usize,
    /// Tokens per second.
    pub tok_s: f64,
    /// Bytes of weights that a step reads, as the file holds them.
    pub weight_bytes: u64,
    /// Bytes of K and V that a step reads.
    pub kv_bytes: u64,
    /// Both, in a second.
    pub read_bytes_per_s: f64,
}

/// All figures.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Prompts.
    pub prefill: Vec<Prefill>,
    /// Replies.
    pub decode: Vec<Decode>,
    /// A reply over a long context.
    pub long: Option<Long>,
    /// Threads that computed.
    pub threads: usize,
    /// Bytes of memory that as many threads read in a second with nothing else to do; only beside `long`.
    pub machine_read_bytes_per_s: Option<f64>,
    /// Bytes of the block pool.
    pub pool_bytes: usize,
    /// Most memory that the process had, pool included; absent where the system does not tell.
    pub peak_bytes: Option<u64>,
}

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A step failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A figure asks for more than the model can hold.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The sequences never decode all at once.
    #[error("--batch-tokens is too small for --batch; give twice the largest batch or more")]
    TooSmall,
    /// A figure asks for nothing.
    #[error("{0} has a 0; give numbers from 1 up")]
    Nothing(&'static str),
}

/// Measures; `progress` is called before each figure.
pub fn run(options: &Options, progress: &dyn Fn(String)) -> Result<Report, BenchError> {
    check(options)?;
    progress("loading the model".to_owned());
    let mut drive = Drive::new(options)?;
    let mut report =
        Report { threads: machine::threads(), pool_bytes: drive.pool_bytes, ..Report::default() };
    for tokens in options.prefill.iter().copied() {
        progress(format!("prompt of {tokens} tokens"));
        let time = median((0..options.runs).map(|_| drive.prefill(tokens)))?.as_secs_f64();
        let tok_s = tokens as f64 / time;
        report.prefill.push(Prefill { tokens, tok_s, ttft_ms: time * 1e3 });
    }
    let (context, generate) = (options.context, options.generate);
    for batch in options.batch.iter().copied() {
        progress(format!("{batch} sequences decode"));
        let spare = drive::spare_tokens(batch, context, options.batch_tokens);
        let time = median((0..options.runs).map(|_| drive.decode(batch, context, generate, spare)))?;
        let tok_s = (batch * generate) as f64 / time.as_secs_f64();
        report.decode.push(Decode { batch, context, tok_s });
    }
    if options.long_context > 0 {
        progress(format!("one sequence decodes after {} tokens", options.long_context));
        report.long = Some(long(&mut drive, options)?);
    }
    // Before the buffer that the machine is measured with.
    report.peak_bytes = machine::peak_bytes();
    if report.long.is_some() {
        progress("what memory gives".to_owned());
        report.machine_read_bytes_per_s = Some(machine::read_bytes_per_s());
    }
    Ok(report)
}

fn check(options: &Options) -> Result<(), BenchError> {
    for (name, numbers) in [
        ("--prefill", &options.prefill[..]),
        ("--batch", &options.batch[..]),
        ("--context, --gen or --runs", &[options.context, options.generate, options.runs]),
    ] {
        if numbers.contains(&0) {
            return Err(BenchError::Nothing(name));
        }
    }
    if options.batch_tokens < 2 || options.batch.iter().any(|batch| options.batch_tokens < 2 * batch) {
        return Err(BenchError::TooSmall);
    }
    Ok(())
}

fn long(drive: &mut Drive, options: &Options) -> Result<Long, BenchError> {
    let (context, runs) = (options.long_context, options.runs);
    let times = drive.decode_on(context, LONG_GENERATE, runs, options.batch_tokens)?;
    let time = median(times.into_iter().map(Ok))?.as_secs_f64();
    let demand = Demand::of(options)?;
    // Half of the runs' tokens are there at the median.
    let kv_bytes = demand.token_bytes * (context + runs * LONG_GENERATE / 2) as u64;
    let tok_s = LONG_GENERATE as f64 / time;
    let read_bytes_per_s = (demand.weight_bytes + kv_bytes) as f64 * tok_s;
    Ok(Long { context, tok_s, weight_bytes: demand.weight_bytes, kv_bytes, read_bytes_per_s })
}

fn median(times: impl Iterator<Item = Result<Duration, BenchError>>) -> Result<Duration, BenchError> {
    let mut times = times.collect::<Result<Vec<_>, _>>()?;
    times.sort_unstable();
    Ok(times[times.len() / 2])
}
