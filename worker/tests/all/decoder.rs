//! The decoder against independent implementations: candle-transformers on a tiny random model, and the
//! reference outputs of the default model.

use std::fs::File;
use std::path::PathBuf;

use candle_core::quantized::{GgmlDType, gguf_file};
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use turnmill_worker::config::{DeviceKind, KvDtype, WeightsMode};
use turnmill_worker::model::ModelChoice;
use turnmill_worker::verify::{Options, Report, verify};

use crate::common::{Cut, Known, Tiny, default_model, load, only_me, run, tokens};

/// Logits of candle-transformers' own llama after each prefix of `tokens`.
fn independent(path: &PathBuf, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut file = File::open(path).expect("just written");
    let mut content = gguf_file::Content::read(&mut file).expect("a GGUF file");
    // It insists on these two and has no default for the base.
    content.metadata.insert("llama.rope.freq_base".into(), gguf_file::Value::F32(10_000.0));
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).expect("a llama");
    let step = |(position, token): (usize, &u32)| {
        let input = Tensor::new(&[[*token]], &Device::Cpu).expect("one token");
        let logits = model.forward(&input, position).expect("a step");
        logits.flatten_all().and_then(|logits| logits.to_vec1()).expect("f32 logits")
    };
    tokens.iter().enumerate().map(step).collect()
}

#[test]
fn a_tiny_llama_equals_candle_transformers() {
    let _computing = only_me();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let tiny = Tiny::default();
    let path = tiny.write(directory.path());
    let known = Known { tokens: tokens(11, 40, tiny.vocabulary), prompt: 1 };
    let expected = independent(&path, &known.tokens);
    let mut model = load(&path, WeightsMode::F32, KvDtype::F32, 256);
    let cut = Cut { max_sequences: 1, batch_tokens: 8, blocks: 8, gap: 0 };
    let (logits, _) = run(&mut model, std::slice::from_ref(&known), &cut);
    assert_eq!(logits.len(), known.tokens.len());
    for ((_, length), row) in logits {
        for (ours, theirs) in row.iter().zip(&expected[length - 1]) {
            assert!((ours - theirs).abs() < 1e-4, "after {length} tokens: {ours} is not {theirs}");
        }
    }
}

#[test]
fn grouped_heads_and_every_quantisation_load_as_they_are() {
    let _computing = only_me();
    let directory = tempfile::tempdir().expect("a temporary directory");
    for dtype in [GgmlDType::Q4_0, GgmlDType::Q4_1, GgmlDType::Q8_0, GgmlDType::Q4K, GgmlDType::Q6K] {
        let tiny = Tiny::wide(dtype);
        let path = tiny.write(directory.path());
        let known = Known { tokens: tokens(3, 12, tiny.vocabulary), prompt: 1 };
        let expected = independent(&path, &known.tokens);
        let cut = Cut { max_sequences: 1, batch_tokens: 8, blocks: 4, gap: 0 };
        let mut model = load(&path, WeightsMode::AsIs, KvDtype::F32, 64);
        let (logits, _) = run(&mut model, std::slice::from_ref(&known), &cut);
        for ((_, length), row) in logits {
            let difference = row.iter().zip(&expected[length - 1]).map(|(a, b)| (a - b).abs());
            let largest = difference.fold(0.0, f32::max);
            // Quantised activations amplify the last bits; a wrong layout would be off by whole units.
            assert!(largest < 0.1, "{dtype:?} after {length} tokens: off by {largest}");
        }
    }
}

fn verified(references: &[&str], weights: WeightsMode, kv_dtype: KvDtype) -> Report {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/reference");
    let references = references.iter().map(|name| directory.join(name)).collect();
    let device = DeviceKind::Cpu;
    let model = ModelChoice { path: default_model(), device, weights, kv_dtype };
    let options = Options { model, references };
    let report = verify(&options, &|_, _| ()).expect("the model can be verified");
    let shortfalls = report.shortfalls(weights, kv_dtype);
    assert!(shortfalls.is_empty(), "{shortfalls:?} in {report:?}");
    report
}

#[test]
fn the_default_model_in_f32_equals_the_reference() {
    let _computing = only_me();
    let report = verified(&["smollm2-135m.json"], WeightsMode::F32, KvDtype::F32);
    assert_eq!((report.tokenize.cases, report.template.cases, report.logprob.steps), (16, 5, 113));
    assert_eq!((report.greedy.equal, report.logprob.top1), (5, 113));
}

#[test]
fn the_default_model_with_f16_blocks_stays_near_the_reference() {
    let _computing = only_me();
    let report = verified(&["smollm2-135m.json"], WeightsMode::F32, KvDtype::F16);
    assert_eq!(report.greedy.equal, 5);
}

#[test]
fn a_long_chat_prefilled_in_chunks_equals_the_reference() {
    let _computing = only_me();
    let report = verified(&["smollm2-135m-long.json"], WeightsMode::F32, KvDtype::F32);
    assert_eq!(report.greedy.equal, 1);
}

#[test]
fn the_fast_default_model_drifts_little() {
    let _computing = only_me();
    verified(&["smollm2-135m.json"], WeightsMode::Fast, KvDtype::F16);
}
