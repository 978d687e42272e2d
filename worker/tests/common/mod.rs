//! What the model's tests share: tiny random models, and runs over the scheduler with known tokens.
#![allow(dead_code)] // Each test file uses a part.

mod tiny;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use turnmill_schema::Priority;
use turnmill_worker::config::{KvDtype, WeightsMode};
use turnmill_worker::engine::EngineSettings;
use turnmill_worker::kv::{BlockPool, TokenChain};
use turnmill_worker::lifecycle::{HeadroomLimits, Lifecycle};
use turnmill_worker::model::{Engine, LoadOptions, Model};
use turnmill_worker::schedule::{Limits, NewSequence, Sampled, Scheduler, SequenceId};
use turnmill_worker::surroundings::Surroundings;

#[allow(unused_imports)] // Not every test file makes one.
pub use tiny::Tiny;

static COMPUTING: Mutex<()> = Mutex::const_new(());

/// Held by a test while it computes: candle's threads wait for each other by spinning, so two models that
/// compute at once slow each other down many times over.
pub fn only_me() -> MutexGuard<'static, ()> {
    COMPUTING.blocking_lock()
}

/// [`only_me`] for a test that is async.
pub async fn only_me_soon() -> MutexGuard<'static, ()> {
    COMPUTING.lock().await
}

/// The default model; tests that need it fail without it.
pub fn default_model() -> PathBuf {
    let path = std::env::var_os("TURNMILL_TEST_MODEL")
        .expect("TURNMILL_TEST_MODEL names the default model's file; deploy/test fetches it and sets this");
    PathBuf::from(path)
}

/// Floats in [-1, 1) that look random.
pub fn floats(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Token ids that look random.
pub fn tokens(seed: u64, count: usize, vocabulary: usize) -> Vec<u32> {
    floats(seed, count).iter().map(|x| ((x + 1.0) / 2.0 * vocabulary as f32) as u32).collect()
}

/// Loads `path` with room for `pool_tokens` tokens.
pub fn load(path: &Path, weights: WeightsMode, kv_dtype: KvDtype, pool_tokens: usize) -> Model {
    let mut options = LoadOptions::new(weights, kv_dtype);
    options.pool_bytes = pool_tokens * options.token_bytes(path).expect("the header is readable");
    Model::load(path, &options, &|_, _| ()).expect("the model loads")
}

/// The life of a worker whose engine may be silent for `patience`.
pub fn lifecycle(patience: Duration) -> Arc<Lifecycle> {
    let limits = HeadroomLimits { low: 0.05, high: 0.1 };
    Arc::new(Lifecycle::new(limits, patience, Surroundings::machine().now()))
}

/// The settings of an engine that runs 16 turns of `model` at once, does not offload and proposes nothing.
pub fn engine_settings(model: &Model, block_tokens: usize) -> EngineSettings {
    EngineSettings {
        limits: Limits {
            max_sequences: 16,
            batch_tokens: 128,
            max_context_tokens: model.context_tokens as u32,
        },
        blocks: model.blocks as u32,
        block_tokens: block_tokens as u32,
        transfer_bytes: 1 << 20,
        offload_bytes: 0,
        speculation: None,
    }
}

/// How a run is cut into steps.
#[derive(Clone, Debug)]
pub struct Cut {
    pub max_sequences: usize,
    pub batch_tokens: usize,
    /// Blocks of the pool that may be used.
    pub blocks: usize,
    /// Steps between arrivals.
    pub gap: usize,
}

/// A sequence whose tokens are known: its prompt is `tokens[..prompt]`, the rest is fed whatever the model says.
#[derive(Clone, Debug)]
pub struct Known {
    pub tokens: Vec<u32>,
    pub prompt: usize,
}

/// Runs `sequences` over the scheduler as `cut` says; returns the logits after each known prefix that was
/// sampled, by sequence and prefix length, and how often sequences were preempted.
pub fn run(model: &mut Model, sequences: &[Known], cut: &Cut) -> (BTreeMap<(usize, usize), Vec<f32>>, u64) {
    let limits = Limits {
        max_sequences: cut.max_sequences,
        batch_tokens: cut.batch_tokens,
        max_context_tokens: model.context_tokens as u32,
    };
    let mut scheduler = Scheduler::new(limits, BlockPool::new(cut.blocks as u32, 16));
    let mut arriving: VecDeque<(usize, &Known)> = sequences.iter().enumerate().collect();
    let mut lengths: Vec<usize> = sequences.iter().map(|known| known.prompt).collect();
    let mut logits = BTreeMap::new();
    let mut step = 0;
    while !arriving.is_empty() || scheduler.has_work() {
        let due = step % (cut.gap + 1) == 0 || !scheduler.has_work();
        if let Some((index, known)) = arriving.pop_front_if(|_| due) {
            let new = NewSequence {
                id: SequenceId(index as u64),
                chain: TokenChain::new(model.namespace, 16, known.tokens[..known.prompt].to_vec()),
                max_total_tokens: known.tokens.len() as u32 + 1,
                priority: Priority::Interactive,
                alone: false,
                restorable_blocks: 0,
            };
            scheduler.add(new).expect("it fits");
        }
        step += 1;
        let Some(plan) = scheduler.schedule() else { continue };
        let output = model.engine.forward(&plan).expect("the step runs");
        let mut sampled = Vec::new();
        for ((id, _), row) in plan.sampling().zip(output.rows()) {
            let index = id.0 as usize;
            let length = lengths[index];
            logits.insert((index, length), row.to_vec());
            lengths[index] += 1;
            let known = &sequences[index].tokens;
            let token = known.get(length).copied().unwrap_or_default();
            sampled.push(Sampled { id, token, finished: length == known.len() });
        }
        scheduler.apply(&sampled);
        scheduler.check_integrity().expect("the pool is whole");
    }
    (logits, scheduler.counts().preempted_total)
}
