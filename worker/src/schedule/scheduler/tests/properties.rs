//! Whatever comes, in whatever order: right contexts, sound books, the same tokens, an end for everyone.

use proptest::prelude::*;
use turnmill_schema::Priority;

use super::fake::{Turn, World};
use crate::schedule::{Limits, SequenceId, Speculation};

#[derive(Clone, Debug)]
enum Operation {
    Add(Turn),
    Step,
    /// A turn is cancelled while a step with it may run.
    StepRemoving(usize),
    Remove(usize),
    /// A step fails.
    Fail,
    /// A plan is thrown away.
    Abandon,
    /// A step's last sample gets lost.
    LoseSample,
    EvictCached,
    /// Some blocks of a turn come back from elsewhere.
    Restore(usize, usize),
    EndRestores,
}

/// Prompts begin with one of a few system prompts, cut anywhere, and go on with anything.
fn turns() -> impl Strategy<Value = Turn> {
    let prompt =
        (0u32..3, 0usize..14, prop::collection::vec(0u32..3, 1..8)).prop_map(|(system, length, own)| {
            let mut prompt: Vec<u32> = (0..length as u32).map(|i| (i * i + system) % 3).collect();
            prompt.extend(own);
            prompt
        });
    let restoring = prop::bool::weighted(0.3);
    (prompt, 1u32..14, any::<bool>(), prop::bool::weighted(0.15), 0u8..2, restoring).prop_map(
        |(prompt, make, interactive, alone, tenant, restoring)| {
            let priority = if interactive { Priority::Interactive } else { Priority::Batch };
            Turn { prompt, make, priority, alone, tenant, may_stop: true, restoring }
        },
    )
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let operation = prop_oneof![
        6 => turns().prop_map(Operation::Add),
        10 => Just(Operation::Step),
        1 => (0usize..8).prop_map(Operation::StepRemoving),
        1 => (0usize..8).prop_map(Operation::Remove),
        1 => Just(Operation::Fail),
        1 => Just(Operation::Abandon),
        1 => Just(Operation::LoseSample),
        1 => Just(Operation::EvictCached),
        3 => (0usize..8, 1usize..6).prop_map(|(index, blocks)| Operation::Restore(index, blocks)),
        1 => Just(Operation::EndRestores),
    ];
    prop::collection::vec(operation, 1..80)
}

fn pick(world: &World, index: usize) -> SequenceId {
    let ids: Vec<_> = world.live.keys().copied().collect();
    ids.get(index).copied().unwrap_or(SequenceId(u64::MAX))
}

fn perform(world: &mut World, operation: Operation) {
    match operation {
        Operation::Add(turn) => drop(world.add(turn)),
        Operation::Step => drop(world.step()),
        Operation::StepRemoving(index) => {
            let Some(plan) = world.schedule() else { return };
            let sampled = world.run(&plan);
            world.remove(pick(world, index));
            world.apply(&sampled);
        }
        Operation::Remove(index) => world.remove(pick(world, index)),
        Operation::Fail => world.fail(),
        Operation::Abandon => drop(world.schedule()),
        Operation::LoseSample => {
            let Some(plan) = world.schedule() else { return };
            let mut sampled = world.run(&plan);
            sampled.pop();
            world.apply(&sampled);
        }
        Operation::Restore(index, blocks) => {
            let id = pick(world, index);
            world.restore(id, blocks);
        }
        Operation::EndRestores => world.end_restores(),
        Operation::EvictCached => world.scheduler.evict_cached(),
    }
    world.check();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// The checks are in [`World`]: before each step that only own, unshared blocks are written, within it
    /// that every context position holds exactly the sequence's own prefix, after it that the books balance,
    /// and at a turn's end that its tokens are those it makes alone,
    /// whatever was proposed.
    #[test]
    fn nothing_ever_reads_or_writes_a_wrong_slot(
        operations in operations(),
        max_sequences in 1usize..6,
        batch_tokens in 1usize..24,
        blocks in 2u32..24,
        block_tokens in 1u32..5,
        keeping: bool,
        speculation in prop::option::of((1usize..6, 1usize..30)),
    ) {
        let limits = Limits { max_sequences, batch_tokens, max_context_tokens: 40 };
        let make = if keeping { World::keeping } else { World::new };
        let speculation = speculation.map(|(tokens, rows)| Speculation { tokens, rows });
        let mut world = make(limits, blocks, block_tokens).speculating(speculation);
        for operation in operations {
            perform(&mut world, operation);
        }
        world.finish();
    }
}
