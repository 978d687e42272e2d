//! The backend for candle's devices, on candle's CPU, against the CPU backend: the same words from other kernels.
//!
//! What only a Mac or a GPU can tell is unmeasured: the operations are the same there, their kernels are not.

use std::path::Path;

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use turnmill_worker::config::{KvDtype, WeightsMode};
use turnmill_worker::kv::BlockId;
use turnmill_worker::model::{ComputeDevice, LoadOptions, Model};

use crate::common::{Cut, Known, Tiny, only_me, run, tokens};

const POOL_TOKENS: usize = 1024;

fn load_on(device: &ComputeDevice, path: &Path, weights: WeightsMode, kv_dtype: KvDtype) -> Model {
    let mut options = LoadOptions::new(weights, kv_dtype);
    options.pool_bytes = POOL_TOKENS * options.token_bytes(path).expect("the header is readable");
    Model::load_on(device, path, &options, &|_, _| ()).expect("the model loads")
}

fn both(path: &Path, weights: WeightsMode, kv_dtype: KvDtype) -> [Model; 2] {
    [ComputeDevice::Tensor(Device::Cpu), ComputeDevice::Cpu]
        .map(|device| load_on(&device, path, weights, kv_dtype))
}

/// Sequences of different lengths, two of which begin alike.
fn sequences(vocabulary: usize) -> Vec<Known> {
    let known = |seed, count, prompt| Known { tokens: tokens(seed, count, vocabulary), prompt };
    let first = known(1, 90, 70);
    let mut second = known(2, 60, 50);
    second.tokens[..40].copy_from_slice(&first.tokens[..40]);
    vec![first, second, known(3, 20, 1), known(4, 33, 32), known(5, 300, 290)]
}

/// Largest difference of a logit between both ways, over ragged steps.
fn difference(path: &Path, tiny: &Tiny, weights: WeightsMode, kv_dtype: KvDtype) -> f32 {
    let cut = Cut { max_sequences: 4, batch_tokens: 24, blocks: POOL_TOKENS / 16, gap: 2 };
    let [tensor, cpu] = both(path, weights, kv_dtype).map(|mut model| {
        let (logits, _) = run(&mut model, &sequences(tiny.vocabulary), &cut);
        logits
    });
    assert_eq!(tensor.keys().collect::<Vec<_>>(), cpu.keys().collect::<Vec<_>>());
    let pairs = tensor.values().flatten().zip(cpu.values().flatten());
    // NaN is further than anything.
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |most, d| if d.is_nan() || d > most { d } else { most })
}

#[test]
fn candles_tensors_give_the_logits_of_the_cpus_kernels() {
    let _computing = only_me();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let tiny = Tiny::default();
    let path = tiny.write(directory.path());
    // In f16 and bf16 pools a rounding may fall either way.
    for (kv_dtype, most) in [(KvDtype::F32, 1e-4), (KvDtype::F16, 5e-3), (KvDtype::Bf16, 5e-2)] {
        let found = difference(&path, &tiny, WeightsMode::F32, kv_dtype);
        assert!(found < most, "{kv_dtype}: {found}");
    }
}

#[test]
fn quantised_weights_are_multiplied_as_the_file_has_them() {
    let _computing = only_me();
    let directory = tempfile::tempdir().expect("a temporary directory");
    for dtype in
        [GgmlDType::Q4_0, GgmlDType::Q4_1, GgmlDType::Q8_0, GgmlDType::Q4K, GgmlDType::Q6K, GgmlDType::F16]
    {
        let tiny = Tiny::wide(dtype);
        let path = tiny.write(directory.path());
        // Fast is the same as as-is here, and within the rounding of activations to what the CPU multiplies.
        for weights in [WeightsMode::F32, WeightsMode::AsIs, WeightsMode::Fast] {
            let found = difference(&path, &tiny, weights, KvDtype::F32);
            let most = if weights == WeightsMode::F32 { 1e-3 } else { 0.3 };
            assert!(found < most, "{dtype:?} {weights}: {found}");
        }
    }
}

#[test]
fn blocks_go_from_one_kind_of_machine_to_the_other() {
    let _computing = only_me();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let tiny = Tiny::default();
    let path = tiny.write(directory.path());
    let cut = Cut { max_sequences: 1, batch_tokens: 64, blocks: POOL_TOKENS / 16, gap: 0 };
    let known = [Known { tokens: tokens(7, 64, tiny.vocabulary), prompt: 64 }];
    let [mut tensor, mut cpu] = both(&path, WeightsMode::F32, KvDtype::F32);
    assert_ne!(tensor.namespace, cpu.namespace);
    run(&mut tensor, &known, &cut);
    run(&mut cpu, &known, &cut);
    let blocks: Vec<BlockId> = (0..4).map(BlockId).collect();
    let floats = |model: &Model| -> Vec<f32> {
        let bytes = model.engine.read_blocks(&blocks).expect("read");
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    let (ours, theirs) = (floats(&tensor), floats(&cpu));
    assert!(ours.iter().any(|x| *x != 0.0));
    assert_eq!(ours.len(), theirs.len());
    let far = ours.iter().zip(&theirs).find(|(a, b)| (*a - *b).abs() > 1e-4);
    assert_eq!(far, None, "the same layout, near the same values");
    let bytes = cpu.engine.read_blocks(&blocks).expect("read");
    tensor.engine.write_blocks(0, &blocks, &bytes).expect("written");
    assert_eq!(tensor.engine.read_blocks(&blocks).expect("read"), bytes);
}
