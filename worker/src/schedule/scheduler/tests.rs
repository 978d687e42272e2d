//! Single rules of the scheduler, each in a small scene.

mod fake;
mod properties;
mod speculate;

use std::collections::HashSet;

use fake::{Turn, World, chain};

use super::*;

const LIMITS: Limits = Limits { max_sequences: 8, batch_tokens: 16, max_context_tokens: 1000 };

/// A world with room: blocks of 4 tokens.
fn world(blocks: u32) -> World {
    World::new(LIMITS, blocks, 4)
}

fn tokens(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

/// Ids and row counts of a plan.
fn shares(plan: &StepPlan) -> Vec<(SequenceId, u32)> {
    plan.sequences.iter().map(|planned| (planned.id, planned.query_tokens)).collect()
}

fn step(world: &mut World) -> Vec<(SequenceId, u32)> {
    shares(&world.step().expect("there is work"))
}

#[test]
fn decoding_goes_first_and_prompts_fill_what_is_left() {
    let mut world = world(100);
    let first = world.must_add(Turn::new(tokens(100..105), 50));
    assert_eq!(step(&mut world), [(first, 5)]);
    let long = world.must_add(Turn::new(tokens(200..220), 2));
    let short = world.must_add(Turn::new(tokens(300..303), 2));
    assert_eq!(step(&mut world), [(first, 1), (long, 15)]);
    assert_eq!(step(&mut world), [(first, 1), (long, 5), (short, 3)]);
    assert_eq!(step(&mut world).len(), 3);
}

#[test]
fn a_turn_that_could_never_run_is_refused_with_the_numbers() {
    let limits = Limits { max_context_tokens: 30, ..LIMITS };
    let mut world = World::new(limits, 5, 4);
    let refused = |turn: Turn, world: &mut World| world.add(turn).expect_err("refused").to_string();
    assert_eq!(
        refused(Turn::new(tokens(0..10), 11), &mut world),
        "the turn needs KV blocks for 21 tokens and the whole pool holds 20; \
         shorten the prompt or max_tokens, or give the worker a larger pool"
    );
    assert_eq!(
        refused(Turn::new(tokens(0..10), 21), &mut world),
        "the turn needs 31 tokens and the context has 30; shorten the prompt or max_tokens"
    );
    assert!(refused(Turn::new([], 5), &mut world).contains("no tokens"));
    assert!(refused(Turn::new([1, 2], 0), &mut world).contains("at least one more"));
    world.must_add(Turn::new(tokens(0..10), 10));
    world.finish();
}

#[test]
fn an_id_is_scheduled_once() {
    let mut world = world(10);
    let id = world.must_add(Turn::new([1], 2));
    let again = NewSequence {
        id,
        chain: chain(&world.live[&id].turn, 4),
        max_total_tokens: 5,
        priority: turnmill_schema::Priority::Batch,
        alone: false,
        restorable_blocks: 0,
    };
    assert_eq!(world.scheduler.add(again), Err(Refused::Duplicate(id)));
}

#[test]
fn tokens_hashed_in_blocks_of_another_size_are_refused() {
    let mut world = world(10);
    let turn = Turn::new(tokens(0..10), 2);
    let other = NewSequence {
        id: SequenceId(7),
        chain: chain(&turn, 5),
        max_total_tokens: 12,
        priority: turn.priority,
        alone: false,
        restorable_blocks: 0,
    };
    assert_eq!(world.scheduler.add(other), Err(Refused::Blocks { chain: 5, pool: 4 }));
}

#[test]
fn what_leaves_brings_its_tokens_and_the_hashes_of_their_blocks_back() {
    let mut world = world(20);
    let ended = world.must_add(Turn::new(tokens(0..9), 1));
    let stopped = world.must_add(Turn::new(tokens(100..103), 50));
    let waiting = world.must_add(restoring(Turn::new(tokens(200..205), 2)));
    let mut left = Vec::new();
    while left.is_empty() {
        world.scheduler.schedule().expect("there is work");
        let sampled = [(ended, 9, true), (stopped, 103, false)];
        let sampled = sampled.map(|(id, token, finished)| Sampled { id, token, finished });
        left = world.scheduler.apply(&sampled);
    }
    left.extend([stopped, waiting].map(|id| world.scheduler.remove(id).expect("it is here")));
    let expected = [(ended, 0..10), (stopped, 100..104), (waiting, 200..205)];
    for (left, (id, all)) in left.iter().zip(expected) {
        let whole = chain(&Turn::new(tokens(all), 1), 4);
        assert_eq!(left.id, id);
        assert_eq!((left.chain.tokens(), left.chain.hashes()), (whole.tokens(), whole.hashes()));
    }
    assert!(!world.scheduler.has_work());
}

#[test]
fn a_prompt_found_whole_recomputes_its_last_token_in_a_block_of_its_own() {
    let mut world = world(100);
    world.must_add(Turn::new(tokens(100..108), 1));
    world.finish();
    let again = world.must_add(Turn::new(tokens(100..108), 1));
    let plan = world.schedule().expect("there is work");
    assert_eq!(shares(&plan), [(again, 4)]);
    assert_eq!(world.scheduler.cached_tokens(again), Some(4));
    let longer = world.must_add(Turn::new(tokens(100..109), 1));
    assert_eq!(step(&mut world), [(again, 4), (longer, 1)]);
}

#[test]
fn tenants_find_nothing_of_each_other() {
    let mut world = world(100);
    world.must_add(Turn::new(tokens(100..112), 1));
    world.finish();
    let other = world.must_add(Turn { tenant: 1, ..Turn::new(tokens(100..112), 1) });
    assert_eq!(step(&mut world), [(other, 12)]);
}

#[test]
fn turns_that_arrive_together_compute_their_common_prefix_once() {
    let mut world = world(100);
    let prompt = |own: u32| Turn::new([tokens(100..108), vec![own]].concat(), 20);
    let ids = [1, 2, 3].map(|own| world.must_add(prompt(own)));
    assert_eq!(step(&mut world), [(ids[0], 9)]);
    assert_eq!(step(&mut world), [(ids[0], 1), (ids[1], 1), (ids[2], 1)]);
    assert_eq!(ids.map(|id| world.scheduler.cached_tokens(id)), [Some(0), Some(8), Some(8)]);
    // Two common blocks, and one of each turn's own.
    assert_eq!(world.scheduler.pool().counts().held, 5);
}

#[test]
fn the_youngest_gives_way_and_finds_its_blocks_again() {
    let mut world = world(8);
    let old = world.must_add(Turn::new(tokens(100..108), 12));
    let young = world.must_add(Turn::new(tokens(200..208), 12));
    step(&mut world);
    let later = world.must_add(Turn::new(tokens(300..312), 4));
    while world.scheduler.counts().preempted_total == 0 {
        step(&mut world);
    }
    let counts = world.scheduler.counts();
    assert_eq!((counts.running, counts.waiting), (1, 2));
    while world.live.contains_key(&old) {
        assert_eq!(step(&mut world), [(old, 1)]);
    }
    // It is before those that came later. It had 17 tokens in 4 full blocks, the deepest of which went to the
    // old one.
    assert_eq!(step(&mut world), [(young, 5)]);
    assert_eq!(world.scheduler.cached_tokens(young), Some(0));
    assert!(world.live.contains_key(&later));
    world.finish();
}

#[test]
fn admission_leaves_every_running_sequence_a_block_to_grow_by() {
    let mut world = world(9);
    world.must_add(Turn::new(tokens(100..108), 8));
    world.must_add(Turn::new(tokens(200..208), 8));
    step(&mut world);
    let third = world.must_add(Turn::new(tokens(300..312), 4));
    // 5 blocks are free; it needs 3, and 3 sequences may each need one more.
    let plan = step(&mut world);
    assert!(plan.iter().all(|(id, _)| *id != third), "{plan:?}");
    world.finish();
    assert_eq!(world.scheduler.counts().preempted_total, 0);
}

#[test]
fn batch_gives_way_to_interactive_once_and_then_ranks_as_interactive() {
    let mut world = world(12);
    let batch = world.must_add(Turn::new(tokens(100..108), 36).batch());
    step(&mut world);
    let interactive = world.must_add(Turn::new(tokens(200..208), 36));
    while world.scheduler.counts().preempted_total == 0 {
        step(&mut world);
    }
    assert_eq!(world.scheduler.running[0].id, interactive);
    let younger = world.must_add(Turn::new(tokens(300..307), 20));
    while world.scheduler.counts().preempted_total == 1 {
        step(&mut world);
    }
    assert!(world.finished.contains(&interactive));
    assert_eq!(world.scheduler.running[0].id, batch);
    assert!(world.live.contains_key(&younger));
    world.finish();
}

#[test]
fn batch_is_admitted_last_and_still_not_starved() {
    let mut world = World::new(Limits { max_sequences: 1, ..LIMITS }, 100, 4);
    let batch = [1, 2].map(|own| world.must_add(Turn::new([own], 1).batch()));
    for own in 0..10 {
        world.must_add(Turn::new([own + 10], 1));
    }
    world.finish();
    let at = |id| world.finished.iter().position(|finished| *finished == id);
    assert_eq!(batch.map(at), [Some(4), Some(9)]);
}

#[test]
fn an_endless_stream_of_interactive_turns_starves_no_batch_turn() {
    let mut world = World::new(Limits { max_sequences: 3, ..LIMITS }, 12, 4);
    let batch = world.must_add(Turn::new(tokens(100..120), 20).batch());
    for own in 0..2_000 {
        while world.live.len() < 6 {
            world.must_add(Turn::new([own, own + 1, own + 2], 30));
        }
        step(&mut world);
        if world.finished.contains(&batch) {
            return;
        }
    }
    panic!("the batch turn starved: {:?}", world.scheduler.counts());
}

#[test]
fn a_lone_turn_gets_every_other_step() {
    let mut world = world(100);
    let others = [1, 2].map(|own| world.must_add(Turn::new([own], 60)));
    let lone = [3, 4].map(|own| world.must_add(Turn::new([own], 60).alone()));
    let mut seen: Vec<Vec<SequenceId>> = Vec::new();
    while lone.iter().chain(&others).all(|id| world.live.contains_key(id)) {
        seen.push(step(&mut world).into_iter().map(|(id, _)| id).collect());
    }
    let expected: Vec<Vec<SequenceId>> = seen
        .iter()
        .enumerate()
        .map(|(i, _)| if i % 2 == 0 { others.to_vec() } else { vec![lone[0]] })
        .collect();
    assert!(seen.len() >= 4);
    assert_eq!(seen, expected);
    world.finish();
}

#[test]
fn a_large_turn_is_not_overtaken_for_ever() {
    let mut world = world(10);
    world.must_add(Turn::new(tokens(100..104), 20));
    step(&mut world);
    let large = world.must_add(Turn::new(tokens(200..236), 4));
    for own in 0..500 {
        while world.live.len() < 5 {
            world.must_add(Turn::new([own], 10));
        }
        step(&mut world);
        if world.finished.contains(&large) {
            return;
        }
    }
    panic!("the large turn starved");
}

#[test]
fn a_turn_ends_at_its_length_even_if_its_caller_says_otherwise() {
    let mut world = world(10);
    let id = world.must_add(Turn::new([1, 2], 3));
    for token in 0..3 {
        assert!(world.scheduler.schedule().is_some());
        world.scheduler.apply(&[Sampled { id, token, finished: false }]);
    }
    assert!(!world.scheduler.has_work());
    assert_eq!(world.scheduler.schedule(), None);
}

#[test]
fn a_failed_step_takes_its_own_sequences_and_leaves_nothing_findable() {
    let mut world = World::new(Limits { batch_tokens: 8, ..LIMITS }, 100, 4);
    let failed = world.must_add(Turn::new(tokens(100..108), 5));
    let waiting = world.must_add(Turn::new(tokens(100..108), 5));
    world.fail();
    assert_eq!(world.live.keys().collect::<HashSet<_>>(), HashSet::from([&waiting]));
    assert_eq!(world.scheduler.cached_tokens(failed), None);
    assert_eq!(world.scheduler.pool().counts().free, 100);
    assert_eq!(step(&mut world), [(waiting, 8)]);
}

#[test]
fn what_is_not_to_be_trusted_is_not_found_again() {
    let mut world = World::new(Limits { batch_tokens: 8, ..LIMITS }, 100, 4);
    let turn = || Turn::new(tokens(100..112), 5);
    let discarded = world.must_add(turn());
    world.step();
    assert_eq!(world.scheduler.pool().counts().held, 3);
    world.scheduler.discard(discarded);
    world.live.remove(&discarded);
    assert_eq!(world.scheduler.pool().counts().free, 100);
    let again = world.must_add(turn());
    assert_eq!(step(&mut world), [(again, 8)], "all of it is computed");
    world.finish();
}

/// A turn that is not planned until its blocks have come.
fn restoring(turn: Turn) -> Turn {
    Turn { restoring: true, ..turn }
}

#[test]
fn what_came_back_is_not_computed_and_others_go_on_meanwhile() {
    let mut world = world(20);
    let id = world.must_add(restoring(Turn::new(tokens(0..14), 2)));
    let other = world.must_add(Turn::new(tokens(100..103), 9));
    assert_eq!(step(&mut world), [(other, 3)]);
    world.restore(id, 2);
    assert_eq!(step(&mut world), [(other, 1)]);
    // Three full blocks; the fourth is the last token's.
    world.restore(id, 9);
    world.end_restores();
    assert_eq!(step(&mut world), [(id, 2), (other, 1)]);
    assert_eq!(world.scheduler.cached_tokens(id), Some(12));
    world.finish();
}

#[test]
fn a_restore_that_ends_early_leaves_a_shorter_prefix() {
    let mut world = world(20);
    let id = world.must_add(restoring(Turn::new(tokens(0..14), 2)));
    assert_eq!(world.step(), None);
    world.restore(id, 1);
    world.end_restores();
    assert_eq!(step(&mut world), [(id, 10)]);
    // Too late.
    assert_eq!(world.scheduler.restore(id, &(1..2)), None);
    world.finish();
}

#[test]
fn who_waited_in_vain_waits_for_a_neighbour_that_computes_the_same() {
    let mut world = world(40);
    let ids: Vec<_> = (0..3).map(|_| world.must_add(restoring(Turn::new(tokens(0..14), 2)))).collect();
    assert_eq!(world.step(), None, "all are admitted and wait");
    world.restore(ids[1], 1);
    world.end_restores();
    // The first finds what came back for the second; the others wait for what it computes.
    assert_eq!(step(&mut world), [(ids[0], 10)]);
    assert_eq!(step(&mut world), [(ids[0], 1), (ids[1], 2), (ids[2], 2)]);
    world.finish();
}

#[test]
fn the_block_of_the_last_token_and_blocks_after_a_gap_do_not_come_back() {
    let mut world = world(20);
    let id = world.must_add(restoring(Turn::new(tokens(0..12), 2)));
    assert_eq!(world.step(), None);
    assert_eq!(world.scheduler.restore(id, &(1..3)), None, "the first block is missing");
    assert_eq!(world.scheduler.restore(id, &(0..3)).map(|blocks| blocks.len()), Some(2));
    world.restore(id, 9);
    world.end_restores();
    assert_eq!(step(&mut world), [(id, 4)]);
    world.finish();
}

#[test]
fn a_restoring_sequence_gives_way_and_is_computed_once_its_restore_has_ended() {
    let mut world = world(6);
    let old = world.must_add(Turn::new(tokens(0..6), 17));
    world.step();
    let young = world.must_add(restoring(Turn::new(tokens(100..107), 1)));
    world.step();
    assert_eq!(world.scheduler.restoring().collect::<Vec<_>>(), [(young, 0)]);
    while world.live[&old].tokens.len() < 20 {
        assert_eq!(step(&mut world), [(old, 1)]);
    }
    assert_eq!(world.scheduler.counts().preempted_total, 1);
    assert_eq!(world.scheduler.restore(young, &(0..1)), None, "it has no blocks any more");
    world.finish();
}

#[test]
fn a_preempted_sequence_gets_its_evicted_blocks_back() {
    let mut world = World::keeping(LIMITS, 6, 4);
    let old = world.must_add(Turn::new(tokens(0..6), 17));
    let young = world.must_add(Turn::new(tokens(100..106), 12));
    while world.scheduler.counts().preempted_total == 0 {
        world.step();
    }
    while !world.finished.contains(&old) {
        world.step();
    }
    world.finish();
    assert!(world.finished.contains(&young) && world.came_back > 0, "{}", world.came_back);
}
