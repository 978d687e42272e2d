//! Promise 3: a token's logits have the same bits however it was reached.
//!
//! The first reading of each logit comes from a sequence decoded alone, token by token; random cuts of the same
//! tokens into steps (chunks, batches, prefix hits, preemption) must then give the same bits.

use std::collections::BTreeMap;
use std::process::Command;

use candle_core::quantized::GgmlDType;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use turnmill_worker::config::{KvDtype, WeightsMode};
use turnmill_worker::model::Model;

use crate::common::{Cut, Known, Tiny, default_model, load, only_me, run, tokens};

/// Tokens in the pool of every test here.
const POOL_TOKENS: usize = 2048;

/// `count` sequences of `length` tokens, of which every third continues a common beginning of 40 tokens.
fn sequences(count: usize, length: usize, vocabulary: usize) -> Vec<Known> {
    with_common(40, count, length, vocabulary)
}

/// The same with a common beginning of `common` tokens.
fn with_common(common: usize, count: usize, length: usize, vocabulary: usize) -> Vec<Known> {
    let common = tokens(99, common, vocabulary);
    let sequence = |index: usize| {
        let mut all = tokens(index as u64 + 1, length, vocabulary);
        if index.is_multiple_of(3) {
            all.splice(..0, common.iter().copied());
        }
        Known { prompt: 1, tokens: all }
    };
    (0..count).map(sequence).collect()
}

/// The first reading: each sequence alone, one row a step.
fn alone(model: &mut Model, sequences: &[Known]) -> BTreeMap<(usize, usize), Vec<f32>> {
    let cut = Cut { max_sequences: 1, batch_tokens: 1, blocks: POOL_TOKENS / 16, gap: 0 };
    let mut all = BTreeMap::new();
    for (index, known) in sequences.iter().enumerate() {
        let (logits, _) = run(model, std::slice::from_ref(known), &cut);
        all.extend(logits.into_iter().map(|((_, length), row)| ((index, length), row)));
    }
    all
}

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|value| value.to_bits()).collect()
}

fn cuts() -> impl Strategy<Value = (Cut, Vec<prop::sample::Index>)> {
    // The longest sequence takes five blocks.
    let blocks = prop_oneof![Just(5usize), 6..20usize, Just(POOL_TOKENS / 16)];
    let cut = (1..34usize, prop_oneof![1..8usize, 8..200usize], blocks, 0..4usize).prop_map(
        |(max_sequences, batch_tokens, blocks, gap)| Cut { max_sequences, batch_tokens, blocks, gap },
    );
    (cut, prop::collection::vec(any::<prop::sample::Index>(), 33))
}

/// Checks `cases` random cuts of `count` sequences; returns how often sequences were preempted in all. `what` is told
/// where they differ.
fn check(what: &str, model: &mut Model, vocabulary: usize, count: usize, cases: u32) -> u64 {
    let known = sequences(count, 24, vocabulary);
    let expected = alone(model, &known);
    let mut runner = TestRunner::new(Config { cases, ..Config::default() });
    let model = std::cell::RefCell::new(model);
    let preempted = std::cell::Cell::new(0);
    let same_bits = |sequences: &[Known], cut: &Cut| {
        let (logits, count) = run(&mut model.borrow_mut(), sequences, cut);
        preempted.set(preempted.get() + count);
        prop_assert!(logits.len() >= sequences.len());
        for (at, row) in logits {
            prop_assert!(bits(&row) == bits(&expected[&at]), "sequence and prefix {:?} of {}", at, what);
        }
        Ok(())
    };
    // The smallest pool for several at once preempts, whatever the random ones do.
    let crowded = Cut { max_sequences: count, batch_tokens: 64, blocks: 5, gap: 0 };
    same_bits(&known, &crowded).unwrap_or_else(|error| panic!("{error}"));
    let outcome = runner.run(&cuts(), |(cut, prompts)| {
        let mut sequences = known.clone();
        for (sequence, prompt) in sequences.iter_mut().zip(&prompts) {
            sequence.prompt = 1 + prompt.index(sequence.tokens.len());
        }
        same_bits(&sequences, &cut)
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    preempted.get()
}

#[test]
fn tiny_models_in_every_mode_and_type() {
    let _computing = only_me();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut preempted = 0;
    let types = [
        GgmlDType::F32,
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ];
    for dtype in types {
        let tiny = Tiny::wide(dtype);
        let path = tiny.write(directory.path());
        let mut model = load(&path, WeightsMode::AsIs, KvDtype::F16, POOL_TOKENS);
        preempted += check(&format!("{dtype:?}"), &mut model, tiny.vocabulary, 9, 4);
    }
    // Sizes that no repacked kernel takes as they are.
    let path = Tiny::default().write(directory.path());
    for weights in [WeightsMode::F32, WeightsMode::Fast] {
        for kv_dtype in [KvDtype::F16, KvDtype::Bf16, KvDtype::F32] {
            let mut model = load(&path, weights, kv_dtype, POOL_TOKENS);
            preempted += check(&format!("{weights:?} {kv_dtype:?}"), &mut model, 320, 33, 4);
        }
    }
    assert!(preempted > 0, "small pools must have preempted somebody");
}

#[test]
fn every_family() {
    let _computing = only_me();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut preempted = 0;
    for tiny in Tiny::families() {
        let path = tiny.write_folder(directory.path(), 1);
        let mut model = load(&path, WeightsMode::Fast, KvDtype::F16, POOL_TOKENS);
        preempted += check(&format!("{:?}", tiny.family), &mut model, tiny.vocabulary, 33, 4);
    }
    assert!(preempted > 0, "small pools must have preempted somebody");
}

#[test]
fn the_default_model_in_every_mode() {
    let _computing = only_me();
    for weights in [WeightsMode::Fast, WeightsMode::F32, WeightsMode::AsIs] {
        let mut model = load(&default_model(), weights, KvDtype::F16, POOL_TOKENS);
        let vocabulary = model.config.vocabulary;
        // As shipped the model computes some 25 tokens a second: fewer and shorter sequences.
        let (count, length) = if weights == WeightsMode::AsIs { (3, 6) } else { (6, 16) };
        let known = sequences(count, length, vocabulary);
        let expected = alone(&mut model, &known);
        for (batch_tokens, blocks) in [(64, POOL_TOKENS / 16), (7, 9)] {
            let mut sequences = known.clone();
            for (index, sequence) in sequences.iter_mut().enumerate() {
                sequence.prompt = 1 + index * 5 % sequence.tokens.len();
            }
            let cut = Cut { max_sequences: count, batch_tokens, blocks, gap: 1 };
            for (at, row) in run(&mut model, &sequences, &cut).0 {
                assert_eq!(bits(&row), bits(&expected[&at]), "{weights:?}, sequence and prefix {at:?}");
            }
        }
    }
}

/// Decoding sequences that begin with the same blocks read whole splits of their context together.
#[test]
fn a_long_beginning_that_many_share() {
    let _computing = only_me();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let tiny = Tiny::wide(GgmlDType::F32);
    let path = tiny.write(directory.path());
    for weights in [WeightsMode::Fast, WeightsMode::F32] {
        let mut model = load(&path, weights, KvDtype::F16, 4 * POOL_TOKENS);
        let mut known = with_common(600, 10, 20, tiny.vocabulary);
        let expected = alone(&mut model, &known);
        for sequence in &mut known {
            sequence.prompt = sequence.tokens.len() - 12;
        }
        for batch_tokens in [40, 512] {
            let cut = Cut { max_sequences: 10, batch_tokens, blocks: 4 * POOL_TOKENS / 16, gap: 3 };
            let (logits, _) = run(&mut model, &known, &cut);
            assert!(logits.len() >= 120);
            for (at, row) in logits {
                assert!(bits(&row) == bits(&expected[&at]), "{weights:?}, sequence and prefix {at:?}");
            }
        }
    }
}

#[test]
fn eight_thousand_tokens_however_cut() {
    let _computing = only_me();
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (dtype, weights) in [
        (GgmlDType::F32, WeightsMode::F32),
        (GgmlDType::F32, WeightsMode::Fast),
        (GgmlDType::Q4_1, WeightsMode::AsIs),
    ] {
        let tiny = Tiny { dtype, ..Tiny::default() };
        let path = tiny.write(directory.path());
        let mut model = load(&path, weights, KvDtype::F16, 8192);
        let known = Known { tokens: tokens(5, 8000, tiny.vocabulary), prompt: 7990 };
        let mut readings = Vec::new();
        for batch_tokens in [512, 77] {
            let cut = Cut { max_sequences: 1, batch_tokens, blocks: 512, gap: 0 };
            let (logits, _) = run(&mut model, std::slice::from_ref(&known), &cut);
            readings.push(logits.values().map(|row| bits(row)).collect::<Vec<_>>());
        }
        assert_eq!(readings[0].len(), 11);
        assert!(readings[0] == readings[1], "{dtype:?} {weights:?} depends on the chunks");
    }
}

/// The pools of threads are sized when a process first computes, so each number of threads is a process.
#[test]
fn one_thread_and_two() {
    let _computing = only_me();
    let child = |threads: &str| {
        let program = std::env::current_exe().expect("this test's program");
        let output = Command::new(program)
            .args(["--exact", "same_bits::print_digest", "--ignored", "--nocapture"])
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .expect("the test's program starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("text");
        let digest =
            text.lines().find_map(|line| line.split_once("digest=").map(|(_, digest)| digest.to_owned()));
        digest.expect("the child prints a digest")
    };
    assert_eq!(child("1"), child("2"));
}

#[test]
#[ignore = "the child of one_thread_and_two"]
fn print_digest() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut hasher = blake3::Hasher::new();
    for (dtype, weights) in [
        (GgmlDType::F32, WeightsMode::F32),
        (GgmlDType::F32, WeightsMode::Fast),
        (GgmlDType::Q4_1, WeightsMode::AsIs),
        (GgmlDType::Q6K, WeightsMode::AsIs),
    ] {
        let tiny = Tiny::wide(dtype);
        let path = tiny.write(directory.path());
        let mut model = load(&path, weights, KvDtype::F16, POOL_TOKENS);
        let cut = Cut { max_sequences: 8, batch_tokens: 100, blocks: POOL_TOKENS / 16, gap: 0 };
        let mut sequences = sequences(8, 300, tiny.vocabulary);
        sequences.iter_mut().enumerate().for_each(|(index, sequence)| sequence.prompt = 1 + 40 * index);
        for row in run(&mut model, &sequences, &cut).0.values() {
            for value in row {
                hasher.update(&value.to_bits().to_le_bytes());
            }
        }
    }
    println!("digest={}", hasher.finalize().to_hex());
}
