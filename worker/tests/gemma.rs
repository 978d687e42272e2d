//! A real Gemma: what random weights cannot show. It is not instruction-tuned, so it completes a sentence.

mod common;

use std::fs::{self, File};
use std::path::PathBuf;

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_gemma3::ModelWeights;
use turnmill_schema::{Message, Role};
use turnmill_worker::config::{KvDtype, WeightsMode};
use turnmill_worker::model::{LoadOptions, Model, likeliest};

use common::{Cut, Known, only_me, run};

fn gemma() -> PathBuf {
    let path = std::env::var_os("TURNMILL_TEST_GEMMA")
        .expect("TURNMILL_TEST_GEMMA names Gemma 3 270M's file; deploy/test fetches it and sets this");
    PathBuf::from(path)
}

fn load(weights: WeightsMode) -> Model {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let template = directory.path().join("plain.jinja");
    fs::write(&template, "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
        .expect("it can be written");
    let mut options = LoadOptions::new(weights, KvDtype::F16);
    options.chat_template = Some(template);
    options.pool_bytes = 1024 * options.token_bytes(&gemma()).expect("the header is readable");
    options.max_context_tokens = 1024;
    Model::load(&gemma(), &options, &|_, _| ()).expect("the model loads")
}

fn prompt(model: &Model, text: &str) -> Vec<u32> {
    let rendered = model.template.render(&[Message::new(Role::User, text)]).expect("it renders");
    assert!(rendered.starts_with("<bos>"), "{rendered}");
    model.tokenizer.encode(&rendered).expect("it tokenises")
}

/// The likeliest token after `tokens`.
fn next(model: &mut Model, tokens: &[u32]) -> u32 {
    let known = Known { tokens: tokens.to_vec(), prompt: tokens.len() };
    let cut = Cut { max_sequences: 1, batch_tokens: 512, blocks: 64, gap: 0 };
    let (logits, _) = run(model, std::slice::from_ref(&known), &cut);
    likeliest(&logits[&(0, tokens.len())]).expect("finite logits")
}

#[test]
fn it_knows_the_capital_of_france() {
    let _computing = only_me();
    let mut model = load(WeightsMode::Fast);
    let mut tokens = prompt(&model, "The capital of France is the city of");
    let mut reply = Vec::new();
    for _ in 0..8 {
        let token = next(&mut model, &tokens);
        reply.extend_from_slice(model.tokenizer.bytes(token));
        tokens.push(token);
    }
    let reply = String::from_utf8_lossy(&reply);
    assert!(reply.contains("Paris"), "{reply}");
}

#[test]
fn its_vocabulary_gives_the_published_ids() {
    let model = load(WeightsMode::AsIs);
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

#[test]
fn its_logits_are_near_candle_transformers() {
    let _computing = only_me();
    let mut model = load(WeightsMode::F32);
    let text = "The quick brown fox jumps over the lazy dog. Water boils at one hundred degrees, and freezes at zero; \
        a week has seven days, a year has twelve months, and the sun rises in the east.";
    let tokens = prompt(&model, text);
    assert!(tokens.len() > 40, "{}", tokens.len());
    let known = Known { tokens: tokens.clone(), prompt: 1 };
    let cut = Cut { max_sequences: 1, batch_tokens: 64, blocks: 64, gap: 0 };
    let (ours, _) = run(&mut model, std::slice::from_ref(&known), &cut);
    let mut file = File::open(gemma()).expect("it is there");
    let content = gguf_file::Content::read(&mut file).expect("a GGUF file");
    let mut reference = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).expect("a gemma3");
    let mut equal = 0;
    for (position, token) in tokens.iter().enumerate() {
        let input = Tensor::new(&[[*token]], &Device::Cpu).expect("one token");
        let theirs =
            reference.forward(&input, position).and_then(|logits| logits.flatten_all()?.to_vec1::<f32>());
        let theirs = theirs.expect("the reference computes");
        equal += usize::from(likeliest(&ours[&(0, position + 1)]) == likeliest(&theirs));
    }
    // Candle rounds activations to eight bits, we do not: near ties fall either way.
    assert!(equal * 100 >= tokens.len() * 90, "{equal} of {} likeliest tokens are equal", tokens.len());
}
