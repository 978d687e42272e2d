//! What a step allocates: the buffers of activations stay from step to step, so memory does not grow and page faults do not
//! come back.

mod common;

use std::alloc::System;

use candle_core::quantized::GgmlDType;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use turnmill_schema::Sampling;
use turnmill_worker::config::{KvDtype, WeightsMode};
use turnmill_worker::kv::BlockId;
use turnmill_worker::model::{Model, Sampler, TokenMask};
use turnmill_worker::schedule::{PlannedSequence, SequenceId, StepPlan};

use common::{Tiny, load, only_me};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const BLOCK_TOKENS: u32 = 16;
/// Lists of a step's tasks and rectangles: some tens a layer, of a few hundred bytes each.
const ALLOCATIONS_A_LAYER: usize = 120;
const BYTES_A_LAYER: usize = 32 << 10;

/// `sequences` sequences with `rows` rows each, of which the last is at `context - 1`.
fn plan(sequences: u32, rows: u32, context: u32) -> StepPlan {
    let blocks = context.div_ceil(BLOCK_TOKENS);
    let mut plan = StepPlan::default();
    for index in 0..sequences {
        let first = index * blocks;
        for position in context - rows..context {
            plan.tokens.push(position % 300);
            plan.positions.push(position);
            plan.slots.push(first * BLOCK_TOKENS + position);
        }
        plan.sequences.push(PlannedSequence {
            id: SequenceId(u64::from(index)),
            query_tokens: rows,
            context_tokens: context,
            blocks: (first..first + blocks).map(BlockId).collect(),
            samples: 1,
        });
    }
    plan
}

/// Allocations and bytes of one step.
fn of_a_step(model: &mut Model, plan: &StepPlan) -> (usize, usize) {
    let region = Region::new(ALLOCATOR);
    model.engine.forward(plan).expect("the step runs");
    let change = region.change();
    (change.allocations, change.bytes_allocated)
}

#[test]
fn steps_allocate_lists_and_no_activations() {
    let _computing = only_me();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = Tiny::wide(GgmlDType::F32).write(directory.path());
    let mut model = load(&path, WeightsMode::Fast, KvDtype::F16, 4096);
    let layers = model.config.layers;
    for (sequences, rows, context) in [(1, 256, 256), (8, 1, 200), (1, 1, 1000), (32, 1, 100)] {
        let plan = plan(sequences, rows, context);
        // The first ones find the buffers; every thread has its own for attention.
        for _ in 0..10 {
            of_a_step(&mut model, &plan);
        }
        let (allocations, bytes) = of_a_step(&mut model, &plan);
        // candle makes the embeddings, a few rows at a time, and they are copied once.
        let embeddings = 2 * plan.rows() * model.config.hidden * size_of::<f32>();
        let most = (ALLOCATIONS_A_LAYER * (1 + layers), BYTES_A_LAYER * (1 + layers) + embeddings);
        assert!(
            allocations <= most.0 && bytes <= most.1,
            "{sequences} x {rows} rows: {allocations} allocations of {bytes} bytes, not {most:?} at most"
        );
    }
}

#[test]
fn choices_allocate_nothing_as_long_as_the_vocabulary() {
    let _computing = only_me();
    const VOCABULARY: usize = 50_000;
    let logits: Vec<f32> = (0..VOCABULARY).map(|i| 8.0 * (i as f32 * 0.37).sin()).collect();
    let mask = TokenMask::all(VOCABULARY);
    let new = Sampling { seed: Some(1), frequency_penalty: 0.1, ..Sampling::default() };
    for sampling in [
        Sampling { temperature: 0.0, ..new.clone() },
        Sampling { top_p: 0.95, ..new.clone() },
        Sampling { top_k: 40, min_p: 0.01, ..new.clone() },
        Sampling { logprobs: Some(5), ..new.clone() },
        new,
    ] {
        let mut sampler = Sampler::new(sampling.clone(), &[], &[]);
        let mut row = logits.clone();
        let mut choose = || {
            row.copy_from_slice(&logits);
            let region = Region::new(ALLOCATOR);
            sampler.sample(&mut row, Some(&mask)).expect("finite logits");
            region.change().bytes_allocated
        };
        // The first ones find the buffers.
        (0..10).for_each(|_| _ = choose());
        let most = (0..10).map(|_| choose()).max().expect("some choices");
        assert!(most < 4096, "{most} bytes, {sampling:?}");
    }
}
