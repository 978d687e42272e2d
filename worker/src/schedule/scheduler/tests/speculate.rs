//! Proposals, each rule in a small scene. The world's model makes tokens that look random, so here samples are given.

use super::fake::{Turn, World};
use super::*;
use crate::kv::{Identity, Namespace, TokenChain};

const SPECULATION: Speculation = Speculation { tokens: 4, rows: 16 };

/// A prompt whose last three tokens occurred before, followed by 4, 5 and 6.
const PROMPT: [u32; 10] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1];

fn scheduler(limits: Limits, blocks: u32) -> Scheduler {
    let mut scheduler = Scheduler::new(limits, BlockPool::new(blocks, 4));
    scheduler.speculate(Some(SPECULATION));
    scheduler
}

/// Adds a turn that decodes, the last of whose tokens are 1, 2, 3.
fn decoding(scheduler: &mut Scheduler, id: u64, max_total_tokens: u32) -> SequenceId {
    add(scheduler, id, &PROMPT, max_total_tokens, false);
    for token in [2, 3] {
        scheduler.schedule().expect("there is work");
        scheduler.apply(&[sampled(id, token)]);
    }
    SequenceId(id)
}

fn add(scheduler: &mut Scheduler, id: u64, tokens: &[u32], max_total_tokens: u32, alone: bool) {
    let namespace = Namespace::new(&Identity::example()).for_tenant(&id.to_string());
    let new = NewSequence {
        id: SequenceId(id),
        chain: TokenChain::new(namespace, 4, tokens.to_vec()),
        max_total_tokens,
        priority: turnmill_schema::Priority::Interactive,
        alone,
        restorable_blocks: 0,
    };
    scheduler.add(new).expect("it fits");
}

fn sampled(id: u64, token: u32) -> Sampled {
    Sampled { id: SequenceId(id), token, finished: false }
}

/// Known and proposed tokens of a sequence's rows in the next plan.
fn rows(scheduler: &mut Scheduler, id: SequenceId) -> Vec<u32> {
    let plan = scheduler.schedule().expect("there is work");
    scheduler.check_integrity().expect("sound");
    let own = plan.sampling().find(|(other, _)| *other == id);
    own.map(|(_, tokens)| tokens.to_vec()).unwrap_or_default()
}

fn tokens_of(scheduler: &Scheduler, id: SequenceId) -> Vec<u32> {
    scheduler.computed(id).expect("it runs").0.to_vec()
}

#[test]
fn what_is_sampled_is_taken_up_to_the_first_other_token() {
    let mut scheduler = scheduler(LIMITS, 100);
    let id = decoding(&mut scheduler, 1, 100);
    assert_eq!(rows(&mut scheduler, id), [3, 4, 5, 6]);
    scheduler.apply(&[sampled(1, 4), sampled(1, 5), sampled(1, 99), sampled(1, 98)]);
    assert_eq!(tokens_of(&scheduler, id)[12..], [4, 5, 99]);
    // The rejected token's row is computed again, with the right one.
    let plan = scheduler.schedule().expect("there is work");
    assert_eq!((&plan.tokens[..], &plan.positions[..]), (&[99][..], &[14][..]));
}

#[test]
fn all_accepted_tokens_and_one_more_are_taken() {
    let mut scheduler = scheduler(LIMITS, 100);
    let id = decoding(&mut scheduler, 1, 100);
    assert_eq!(rows(&mut scheduler, id), [3, 4, 5, 6]);
    scheduler.apply(&[4, 5, 6, 7].map(|token| sampled(1, token)));
    assert_eq!(tokens_of(&scheduler, id)[12..], [4, 5, 6, 7]);
    assert_eq!(rows(&mut scheduler, id), [7, 8, 9, 1, 2]);
}

#[test]
fn only_blocks_of_verified_tokens_are_sealed() {
    let mut scheduler = scheduler(LIMITS, 100);
    let id = decoding(&mut scheduler, 1, 100);
    // 11 of 12 tokens are computed; the rows fill the third block and go on into the fourth.
    let plan = scheduler.schedule().expect("there is work");
    assert_eq!(plan.positions, [11, 12, 13, 14]);
    scheduler.apply(&[sampled(1, 99)]);
    assert_eq!(scheduler.computed(id).expect("it runs").1.len(), 3, "the third is verified");
    for token in [98, 97, 96] {
        rows(&mut scheduler, id);
        scheduler.apply(&[sampled(1, token)]);
    }
    assert_eq!(scheduler.computed(id).expect("it runs").1.len(), 3, "the fourth lacks its last token");
    rows(&mut scheduler, id);
    scheduler.apply(&[sampled(1, 95)]);
    assert_eq!(scheduler.computed(id).expect("it runs").1.len(), 4);
}

#[test]
fn an_accepted_token_whose_own_sample_is_lost_is_computed_again() {
    let mut scheduler = scheduler(LIMITS, 100);
    let id = decoding(&mut scheduler, 1, 100);
    assert_eq!(rows(&mut scheduler, id).len(), 4);
    scheduler.apply(&[sampled(1, 4), sampled(1, 5)]);
    scheduler.check_integrity().expect("sound");
    assert_eq!(rows(&mut scheduler, id)[0], 5);
    scheduler.apply(&[]);
    assert_eq!(rows(&mut scheduler, id)[0], 5);
}

#[test]
fn a_turn_ends_within_a_step_and_nothing_is_proposed_beyond_its_length() {
    let mut both = scheduler(LIMITS, 100);
    let short = decoding(&mut both, 1, 14);
    let stopped = decoding(&mut both, 2, 100);
    assert_eq!(rows(&mut both, short), [3, 4], "it may have two more tokens");
    rows(&mut both, stopped);
    let end = Sampled { finished: true, ..sampled(2, 5) };
    let left = both.apply(&[sampled(1, 4), sampled(1, 5), sampled(2, 4), end, sampled(2, 6)]);
    let left: Vec<_> = left.iter().map(|left| (left.id, &left.chain.tokens()[12..])).collect();
    assert_eq!(left, [(short, &[4, 5][..]), (stopped, &[4, 5][..])]);
    assert!(!both.has_work());
    both.check_integrity().expect("sound");
}

#[test]
fn prompts_and_others_tokens_go_first() {
    let mut scheduler = scheduler(Limits { batch_tokens: 12, ..LIMITS }, 100);
    let id = decoding(&mut scheduler, 1, 100);
    add(&mut scheduler, 2, &[50; 20], 30, false);
    // The prompt's first chunk takes all rows that are left, its second all but three.
    assert_eq!(rows(&mut scheduler, id), [3]);
    scheduler.apply(&[sampled(1, 4)]);
    assert_eq!(rows(&mut scheduler, id), [4, 5, 6]);
}

#[test]
fn rows_are_shared_and_a_step_with_many_has_no_proposals() {
    let mut scheduler = scheduler(LIMITS, 100);
    scheduler.speculate(Some(Speculation { rows: 8, ..SPECULATION }));
    let ids = [1, 2, 3].map(|id| decoding(&mut scheduler, id, 100));
    // The first ones waited for the last with samples of theirs that were lost.
    let plan = scheduler.schedule().expect("there is work");
    let lengths: Vec<usize> = plan.sampling().map(|(_, tokens)| tokens.len()).collect();
    assert_eq!((plan.rows(), &lengths[..]), (8, &[3, 3, 2][..]));
    for id in 4..9 {
        add(&mut scheduler, id, &[40 + id as u32], 30, false);
    }
    scheduler.apply(&[]);
    assert_eq!(rows(&mut scheduler, ids[0]), [3]);
}

#[test]
fn a_block_is_taken_early_only_while_everybody_can_grow() {
    // The rows go on into a fourth block.
    for (blocks, expected) in [(5, &[3, 4, 5, 6][..]), (4, &[3][..])] {
        let mut scheduler = scheduler(LIMITS, blocks);
        let id = decoding(&mut scheduler, 1, 16);
        assert_eq!(rows(&mut scheduler, id), expected, "{blocks} blocks");
        assert_eq!(scheduler.counts().preempted_total, 0);
    }
    let mut scheduler = scheduler(LIMITS, 5);
    let id = decoding(&mut scheduler, 1, 16);
    add(&mut scheduler, 2, &[50; 12], 14, false);
    assert_eq!(rows(&mut scheduler, id), [3], "the other waits for blocks");
}

#[test]
fn a_lone_turn_gets_no_proposals() {
    let mut scheduler = scheduler(LIMITS, 100);
    add(&mut scheduler, 1, &[PROMPT.as_slice(), &[2, 3]].concat(), 100, true);
    let id = SequenceId(1);
    rows(&mut scheduler, id);
    scheduler.apply(&[sampled(1, 4)]);
    assert_eq!(rows(&mut scheduler, id), [4]);
}

#[test]
fn a_preempted_turn_forgets_what_was_proposed_and_goes_on() {
    let mut scheduler = scheduler(LIMITS, 7);
    let old = decoding(&mut scheduler, 1, 28);
    add(&mut scheduler, 2, &[60, 61, 62, 63, 64, 65, 66], 28, false);
    let mut next = 100;
    while scheduler.counts().preempted_total == 0 {
        let plan = scheduler.schedule().expect("there is work");
        next += 1;
        let samples: Vec<Sampled> = plan.sampling().map(|(id, _)| sampled(id.0, next)).collect();
        scheduler.apply(&samples);
        scheduler.check_integrity().expect("sound");
    }
    assert!(scheduler.computed(old).is_some());
    while scheduler.has_work() {
        let plan = scheduler.schedule().expect("there is work");
        let accept = |(id, tokens): (SequenceId, &[u32])| {
            let (id, tokens) = (id.0, tokens.to_vec());
            (0..tokens.len()).map(move |row| sampled(id, tokens.get(row + 1).copied().unwrap_or(7)))
        };
        let samples: Vec<Sampled> = plan.sampling().flat_map(accept).collect();
        scheduler.apply(&samples);
        scheduler.check_integrity().expect("sound");
    }
}

#[test]
fn fewer_steps_make_the_same_tokens() {
    let turn = Turn::new([0, 1, 2, 0, 1, 2, 0, 1, 2], 600);
    let mut steps = 0;
    let mut world = World::new(LIMITS, 200, 4).speculating(Some(SPECULATION));
    world.must_add(turn);
    while world.step().is_some() {
        steps += 1;
    }
    // The world compares its tokens with those it makes alone.
    assert!(world.accepted > 0 && steps < 600, "{} accepted, {steps} steps", world.accepted);
}
