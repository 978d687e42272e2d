//! A real Gemma: what random weights cannot show. It is not instruction-tuned, so it completes a sentence.

use std::fs::{self, File};
use std::path::PathBuf;

use candle_core::quantized::gguf_file;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models;
use serde_json::json;
use turnmill_schema::{self as schema, Message};
use turnmill_worker::config::{KvDtype, WeightsMode};
use turnmill_worker::model::{Family, LoadOptions, Model, Part, Rendering, Role, likeliest};

use crate::common::{Cut, Known, only_me, run};

fn gemma() -> PathBuf {
    let path = std::env::var_os("TURNMILL_TEST_GEMMA")
        .expect("TURNMILL_TEST_GEMMA names Gemma 3 270M's file; deploy/test fetches it and sets this");
    PathBuf::from(path)
}

fn load(weights: WeightsMode, kv_dtype: KvDtype) -> Model {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let template = directory.path().join("plain.jinja");
    fs::write(&template, "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
        .expect("it can be written");
    let mut options = LoadOptions::new(weights, kv_dtype);
    options.chat_template = Some(template);
    options.pool_bytes = 1024 * options.token_bytes(&gemma()).expect("the header is readable");
    options.max_context_tokens = 1024;
    Model::load(&gemma(), &options, &|_, _| ()).expect("the model loads")
}

fn prompt(model: &Model, text: &str) -> Vec<u32> {
    let rendered = model
        .dialogue
        .render(&[Message::new(schema::Role::User, text)], &Rendering::plain())
        .expect("it renders");
    assert!(rendered.starts_with("<bos>"), "{rendered}");
    model.tokenizer.encode(&rendered).expect("it tokenises")
}

/// The logits after `tokens`.
fn logits(model: &mut Model, tokens: &[u32]) -> Vec<f32> {
    let known = Known { tokens: tokens.to_vec(), prompt: tokens.len() };
    let cut = Cut { max_sequences: 1, batch_tokens: 512, blocks: 64, gap: 0 };
    let (mut logits, _) = run(model, std::slice::from_ref(&known), &cut);
    logits.remove(&(0, tokens.len())).expect("the last row samples")
}

#[test]
fn it_knows_the_capital_of_france() {
    let _computing = only_me();
    let mut model = load(WeightsMode::Fast, KvDtype::F16);
    let mut tokens = prompt(&model, "The capital of France is the city of");
    let mut reply = Vec::new();
    for _ in 0..8 {
        let token = likeliest(&logits(&mut model, &tokens)).expect("finite logits");
        reply.extend_from_slice(model.tokenizer.bytes(token));
        tokens.push(token);
    }
    let reply = String::from_utf8_lossy(&reply);
    assert!(reply.contains("Paris"), "{reply}");
}

#[test]
fn its_vocabulary_gives_the_published_ids() {
    let model = load(WeightsMode::AsIs, KvDtype::F16);
    // From the tokenizer.json that Gemma 3 is published with.
    for (text, ids) in PUBLISHED {
        assert_eq!(model.tokenizer.encode(text).expect("it tokenises"), *ids, "{text:?}");
        assert_eq!(model.tokenizer.decode_with_controls(ids), *text);
    }
    assert_eq!(model.tokenizer.ends(), &[1, 106]);
}

const PUBLISHED: &[(&str, &[u32])] = &[
    ("Hello, world!", &[9259, 236764, 1902, 236888]),
    ("  two  spaces   three", &[138, 13498, 138, 35220, 139, 19891]),
    ("\n\n\nfoo\n\n", &[109, 26537, 108]),
    ("\t\ttabs", &[255969, 39218]),
    (
        "naïve café 日本語 🙂👩‍👩‍👧",
        &[1789, 238527, 560, 33443, 33375, 238582, 57235, 243767, 237243, 243767, 237243, 244814],
    ),
    (
        "x = 12345678 + 3.14",
        &[
            236781, 578, 236743, 236770, 236778, 236800, 236812, 236810, 236825, 236832, 236828, 900, 236743,
            236800, 236761, 236770, 236812,
        ],
    ),
    ("<table>\n  <td>", &[168, 107, 138, 175]),
    ("<start_of_turn>user\nhi<end_of_turn>\n", &[105, 2364, 107, 2202, 106, 107]),
    (
        "fn main() {\n    println!(\"{}\", 1 + 2);\n}\n",
        &[
            15059, 1689, 825, 642, 107, 140, 4629, 183228, 236743, 236770, 900, 236743, 236778, 626, 107,
            236783, 107,
        ],
    ),
    ("\r\n\0", &[251, 107, 238]),
];

/// candle-transformers' dense Gemma 3 with the file's weights, dequantised.
fn dense() -> models::gemma3::Model {
    let mut file = File::open(gemma()).expect("it is there");
    let content = gguf_file::Content::read(&mut file).expect("a GGUF file");
    let mut names = vec![Role::Embedding, Role::OutputNorm];
    names.extend((0..LAYERS).flat_map(|layer| PARTS.map(|part| Role::Layer(layer, part))));
    let tensors = names.into_iter().map(|role| {
        let tensor = content.tensor(&mut file, &role.gguf_name(), &Device::Cpu).expect("the file has it");
        // Gemma's norms multiply by one more than their weight; GGUF files have it added.
        let more = if role.is_norm() { 1.0 } else { 0.0 };
        let tensor = tensor.dequantize(&Device::Cpu).and_then(|tensor| tensor - more).expect("floats");
        (role.safetensors_name(Family::Gemma3), tensor)
    });
    let builder = VarBuilder::from_tensors(tensors.collect(), DType::F32, &Device::Cpu);
    let config = json!({
        "attention_bias": false, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 640,
        "intermediate_size": 2048, "num_attention_heads": 4, "num_hidden_layers": LAYERS, "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "vocab_size": 262144,
        "query_pre_attn_scalar": 256, "sliding_window": 512, "sliding_window_pattern": 6,
        "max_position_embeddings": 1024,
    });
    let config = serde_json::from_value(config).expect("a configuration");
    models::gemma3::Model::new(false, &config, builder).expect("a gemma3")
}

#[test]
fn its_logits_equal_candle_transformers() {
    let _computing = only_me();
    let text = "The quick brown fox jumps over the lazy dog. Water boils at one hundred degrees, and freezes at zero; \
        a week has seven days, a year has twelve months, and the sun rises in the east.";
    let mut model = load(WeightsMode::F32, KvDtype::F32);
    let tokens = prompt(&model, text);
    let mut reference = dense();
    for length in [2, 17, tokens.len()] {
        let ours = logits(&mut model, &tokens[..length]);
        reference.clear_kv_cache();
        let input = Tensor::new(&tokens[..length], &Device::Cpu).and_then(|row| row.unsqueeze(0));
        let theirs = input.and_then(|input| reference.forward(&input, 0)?.flatten_all()?.to_vec1::<f32>());
        let theirs = theirs.expect("the reference computes");
        let differences = ours.iter().zip(&theirs).map(|(ours, theirs)| (ours - theirs).abs());
        let largest = differences.fold(0.0, f32::max);
        assert!(largest < 0.02, "off by {largest} after {length} tokens");
        assert_eq!(likeliest(&ours), likeliest(&theirs));
    }
}

const LAYERS: usize = 18;
const PARTS: [Part; 13] = [
    Part::AttentionNorm,
    Part::Query,
    Part::Key,
    Part::Value,
    Part::QueryNorm,
    Part::KeyNorm,
    Part::AttentionOutput,
    Part::AttentionPostNorm,
    Part::MlpNorm,
    Part::Gate,
    Part::Up,
    Part::Down,
    Part::MlpPostNorm,
];
