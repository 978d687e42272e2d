//! Prompt and reply tokens per second of the engine alone: scheduler, steps and greedy sampling, no queue.
//!
//! Prompts are distinct from the first token on, so no prefix is shared; every decode step samples from full
//! logits; warm-up and, for decoding, the prompts are not counted. Each figure is the median of
//! three runs.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use turnmill_schema::Priority;

use super::scramble;
use crate::config::{KvDtype, WeightsMode};
use crate::kv::BlockPool;
use crate::model::{Engine, EngineError, LoadOptions, Model, ModelError, likeliest};
use crate::schedule::{Limits, NewSequence, Refused, Sampled, Scheduler, SequenceId};

/// Runs a figure is the median of.
const REPETITIONS: usize = 3;
/// Tokens in a block.
const BLOCK_TOKENS: usize = 16;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model file.
    pub model: PathBuf,
    /// How weights are held.
    pub weights: WeightsMode,
    /// Element type of the block pool.
    pub kv_dtype: KvDtype,
    /// Prompt lengths.
    pub prefill: Vec<usize>,
    /// Prompt length before decoding.
    pub context: usize,
    /// Tokens each sequence decodes.
    pub generate: usize,
    /// Sequences that decode at once.
    pub batch: Vec<usize>,
    /// Rows of a step at most.
    pub batch_tokens: usize,
}

/// Tokens per second of one prompt.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Prefill {
    /// Its length.
    pub tokens: usize,
    /// Prompt tokens per second.
    pub tok_s: f64,
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

/// All figures.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Prompts.
    pub prefill: Vec<Prefill>,
    /// Replies.
    pub decode: Vec<Decode>,
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
    for (name, numbers) in [
        ("--prefill", &options.prefill[..]),
        ("--batch", &options.batch[..]),
        ("--context or --gen", &[options.context, options.generate]),
    ] {
        if numbers.contains(&0) {
            return Err(BenchError::Nothing(name));
        }
    }
    if options.batch.iter().any(|batch| options.batch_tokens < 2 * batch) {
        return Err(BenchError::TooSmall);
    }
    progress("loading the model".to_owned());
    let mut bench = Bench::new(options)?;
    let mut report = Report::default();
    for tokens in options.prefill.iter().copied() {
        progress(format!("prompt of {tokens} tokens"));
        let time = median(|| bench.prefill(tokens))?;
        report.prefill.push(Prefill { tokens, tok_s: tokens as f64 / time.as_secs_f64() });
    }
    for batch in options.batch.iter().copied() {
        progress(format!("{batch} sequences decode"));
        let spare = spare_tokens(batch, options);
        let time = median(|| bench.decode(batch, options.context, options.generate, spare))?;
        let tok_s = (batch * options.generate) as f64 / time.as_secs_f64();
        report.decode.push(Decode { batch, context: options.context, tok_s });
    }
    Ok(report)
}

fn median(mut measure: impl FnMut() -> Result<Duration, BenchError>) -> Result<Duration, BenchError> {
    let mut times = [Duration::ZERO; REPETITIONS];
    for time in &mut times {
        *time = measure()?;
    }
    times.sort_unstable();
    Ok(times[REPETITIONS / 2])
}

struct Bench {
    model: Model,
    scheduler: Scheduler,
    /// Sequences started so far; their prompts differ by it.
    started: u64,
}

impl Bench {
    fn new(options: &Options) -> Result<Self, BenchError> {
        let prefill = options.prefill.iter().copied().max().unwrap_or(0) + 1;
        let batch = options.batch.iter().copied().max().unwrap_or(0);
        // A spare block each: partial ones, and what admission keeps for growth.
        let decode = options.context + options.generate + spare_tokens(batch, options);
        let tokens = (prefill + 2 * BLOCK_TOKENS).max(batch * (decode + 3 * BLOCK_TOKENS));
        let load = LoadOptions::new(options.weights, options.kv_dtype);
        let mut load = LoadOptions { block_tokens: BLOCK_TOKENS, ..load };
        load.pool_bytes = tokens * load.token_bytes(&options.model)?;
        let mut model = Model::load(&options.model, &load, &|_, _| ())?;
        model.warm_up()?;
        let limits = Limits {
            max_sequences: batch.max(1),
            batch_tokens: options.batch_tokens,
            max_context_tokens: model.context_tokens as u32,
        };
        let pool = BlockPool::new(model.blocks as u32, BLOCK_TOKENS as u32);
        Ok(Self { model, scheduler: Scheduler::new(limits, pool), started: 0 })
    }

    /// Time from a prompt to its first token.
    fn prefill(&mut self, tokens: usize) -> Result<Duration, BenchError> {
        self.start(tokens, 1)?;
        let begin = Instant::now();
        while self.scheduler.has_work() {
            self.step(true)?;
        }
        Ok(begin.elapsed())
    }

    /// Time in which `batch` sequences make `generate` tokens each; before, each may make up to `spare`.
    fn decode(
        &mut self,
        batch: usize,
        context: usize,
        generate: usize,
        spare: usize,
    ) -> Result<Duration, BenchError> {
        // The first prompts to be through decode already while the last are computed.
        for _ in 0..batch {
            self.start(context, generate + spare)?;
        }
        while self.step(false)? < batch {}
        let begin = Instant::now();
        for _ in 0..generate {
            let made = self.step(false)?;
            assert_eq!(made, batch, "every step of the timed part samples for every sequence");
        }
        let elapsed = begin.elapsed();
        self.clear();
        Ok(elapsed)
    }

    fn start(&mut self, tokens: usize, replies: usize) -> Result<(), BenchError> {
        self.started += 1;
        let vocabulary = self.model.config.vocabulary as u64;
        let token = |index: u64| (scramble(self.started << 32 | index) % vocabulary) as u32;
        self.scheduler.add(NewSequence {
            id: SequenceId(self.started),
            tokens: (0..tokens as u64).map(token).collect(),
            max_total_tokens: (tokens + replies) as u32,
            namespace: self.model.namespace,
            priority: Priority::Interactive,
            alone: false,
            restorable_blocks: 0,
        })?;
        Ok(())
    }

    /// One step; returns how many sequences sampled in it.
    fn step(&mut self, finish: bool) -> Result<usize, BenchError> {
        let Some(plan) = self.scheduler.schedule() else { return Err(BenchError::TooSmall) };
        let logits = self.model.engine.forward(&plan)?;
        let ids = plan.sampling().map(|(id, _)| id);
        let sample = |(id, row): (SequenceId, &[f32])| Sampled {
            id,
            token: likeliest(row).unwrap_or_default(),
            finished: finish,
        };
        let sampled: Vec<Sampled> = ids.zip(logits.rows()).map(sample).collect();
        self.scheduler.apply(&sampled);
        Ok(sampled.len())
    }

    fn clear(&mut self) {
        for id in 1..=self.started {
            self.scheduler.remove(SequenceId(id));
        }
    }
}

/// Tokens a sequence may decode before all of `batch` have their first.
fn spare_tokens(batch: usize, options: &Options) -> usize {
    // At worst all others decode in every step, and the rest of its rows is for prompts.
    (batch * options.context).div_ceil(options.batch_tokens - batch) + 2
}
