//! A model and a scheduler, driven step by step.
//!
//! Invariant: between two figures no sequence is left in the scheduler.

use std::time::{Duration, Instant};

use turnmill_schema::Priority;

use super::{BenchError, LONG_GENERATE, Options};
use crate::bench::scramble;
use crate::kv::{BlockPool, TokenChain};
use crate::model::{Engine, LoadOptions, Model, likeliest};
use crate::schedule::{Limits, NewSequence, Sampled, Scheduler, SequenceId};

/// Tokens in a block.
const BLOCK_TOKENS: usize = 16;

/// What is measured.
pub(super) struct Drive {
    model: Model,
    scheduler: Scheduler,
    /// Bytes of the block pool.
    pub pool_bytes: usize,
    /// Sequences started so far; their prompts differ by it.
    started: u64,
}

impl Drive {
    /// Loads the model, with a pool for the largest figure.
    pub fn new(options: &Options) -> Result<Self, BenchError> {
        let batch = options.batch.iter().copied().max().unwrap_or(0);
        let load = options.model.load_options();
        let mut load = LoadOptions { block_tokens: BLOCK_TOKENS, ..load };
        load.pool_bytes = pool_tokens(options, batch) * load.token_bytes(&options.model.path)?;
        let mut model = Model::load(&options.model.path, &load, &|_, _| ())?;
        model.warm_up()?;
        let limits = Limits {
            max_sequences: batch.max(1),
            batch_tokens: options.batch_tokens,
            max_context_tokens: model.context_tokens as u32,
        };
        let pool = BlockPool::new(model.blocks as u32, BLOCK_TOKENS as u32);
        let scheduler = Scheduler::new(limits, pool);
        Ok(Self { model, scheduler, pool_bytes: load.pool_bytes, started: 0 })
    }

    /// Time from a prompt to its first token.
    pub fn prefill(&mut self, tokens: usize) -> Result<Duration, BenchError> {
        let prompt = self.prompt(tokens);
        let began = Instant::now();
        self.start(prompt, 1)?;
        while self.scheduler.has_work() {
            self.step(true)?;
        }
        Ok(began.elapsed())
    }

    /// Time in which `batch` sequences make `generate` tokens each; before, each may make up to `spare`.
    pub fn decode(
        &mut self,
        batch: usize,
        context: usize,
        generate: usize,
        spare: usize,
    ) -> Result<Duration, BenchError> {
        // The first prompts to be through decode already while the last are computed.
        for _ in 0..batch {
            let prompt = self.prompt(context);
            self.start(prompt, generate + spare)?;
        }
        while self.step(false)? < batch {}
        let elapsed = self.steps(generate, batch)?;
        self.clear();
        Ok(elapsed)
    }

    /// The times in which one sequence makes `generate` tokens, and then as many again, `runs` times: its prompt is long to
    /// compute.
    pub fn decode_on(
        &mut self,
        context: usize,
        generate: usize,
        runs: usize,
        batch_tokens: usize,
    ) -> Result<Vec<Duration>, BenchError> {
        let prompt = self.prompt(context);
        self.start(prompt, runs * generate + spare_tokens(1, context, batch_tokens))?;
        while self.step(false)? < 1 {}
        let times = (0..runs).map(|_| self.steps(generate, 1)).collect();
        self.clear();
        times
    }

    /// Time of `steps` steps that each sample for `batch` sequences.
    fn steps(&mut self, steps: usize, batch: usize) -> Result<Duration, BenchError> {
        let began = Instant::now();
        for _ in 0..steps {
            let made = self.step(false)?;
            assert_eq!(made, batch, "every step of the timed part samples for every sequence");
        }
        Ok(began.elapsed())
    }

    /// A prompt that nobody has met.
    fn prompt(&mut self, tokens: usize) -> Vec<u32> {
        self.started += 1;
        let vocabulary = self.model.config.vocabulary as u64;
        let token = |index: u64| (scramble(self.started << 32 | index) % vocabulary) as u32;
        (0..tokens as u64).map(token).collect()
    }

    fn start(&mut self, prompt: Vec<u32>, replies: usize) -> Result<(), BenchError> {
        self.scheduler.add(NewSequence {
            id: SequenceId(self.started),
            max_total_tokens: (prompt.len() + replies) as u32,
            chain: TokenChain::new(self.model.namespace, BLOCK_TOKENS, prompt),
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

/// Tokens that the pool must hold.
fn pool_tokens(options: &Options, batch: usize) -> usize {
    let Options { context, generate, batch_tokens, long_context, .. } = *options;
    let longest = options.prefill.iter().copied().max().unwrap_or(0) + 1;
    // Spare blocks for each: partial ones, and what admission keeps for growth.
    let decoding = context + generate + spare_tokens(batch, context, batch_tokens) + 3 * BLOCK_TOKENS;
    let long = long_context + options.runs * LONG_GENERATE + spare_tokens(1, long_context, batch_tokens);
    (longest.max(long) + 3 * BLOCK_TOKENS).max(batch * decoding)
}

/// Tokens a sequence may decode before all of `batch` have their first.
pub(super) fn spare_tokens(batch: usize, context: usize, batch_tokens: usize) -> usize {
    // At worst all others decode in every step, and the rest of its rows is for prompts.
    (batch * context).div_ceil(batch_tokens - batch) + 2
}
