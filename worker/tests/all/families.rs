//! Every family against candle-transformers' own model of it, from both formats, over windows' edges; and what is refused.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;

use candle_core::quantized::{GgmlDType, gguf_file};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models;
use serde_json::json;
use turnmill_worker::config::{KvDtype, WeightsMode};
use turnmill_worker::model::{Family, Model, Part, Role};

use crate::common::{Cut, Known, Tiny, load, only_me, run, tokens};

/// Tokens of the compared sequence: over four windows.
const LENGTH: usize = 48;

/// A model that gives the logits after all of some tokens.
type Reference = Box<dyn FnMut(&Tensor) -> Result<Tensor>>;

/// Candle's windows hold one token more than everybody else's: a row sees itself and as many as the window before it.
fn as_candle_counts(window: Option<usize>) -> Option<usize> {
    window.map(|window| window - 1)
}

/// candle-transformers' model of the family, from the folder's files.
fn dense(tiny: &Tiny, folder: &Path) -> Reference {
    let mut config = tiny.config();
    if let Some(window) = as_candle_counts(tiny.window) {
        config["sliding_window"] = json!(window);
    }
    let data = fs::read(folder.join("model.safetensors")).expect("just written");
    let builder = VarBuilder::from_buffered_safetensors(data, DType::F32, &Device::Cpu).expect("safetensors");
    let text = config.to_string();
    match tiny.family {
        Family::Llama => {
            let config: models::llama::LlamaConfig = serde_json::from_str(&text).expect("a configuration");
            let config = config.into_config(false);
            let model = models::llama::Llama::load(builder, &config).expect("a llama");
            Box::new(move |tokens| {
                let mut cache = models::llama::Cache::new(false, DType::F32, &config, &Device::Cpu)?;
                model.forward(tokens, 0, &mut cache)
            })
        }
        Family::Mistral => {
            let config = serde_json::from_str(&text).expect("a configuration");
            let mut model = models::mistral::Model::new(&config, builder).expect("a mistral");
            Box::new(move |tokens| {
                model.clear_kv_cache();
                model.forward(tokens, 0)
            })
        }
        Family::Qwen2 => {
            let config = serde_json::from_str(&text).expect("a configuration");
            let mut model = models::qwen2::ModelForCausalLM::new(&config, builder).expect("a qwen2");
            Box::new(move |tokens| {
                model.clear_kv_cache();
                model.forward(tokens, 0)
            })
        }
        Family::Qwen3 => {
            let config = serde_json::from_str(&text).expect("a configuration");
            let mut model = models::qwen3::ModelForCausalLM::new(&config, builder).expect("a qwen3");
            Box::new(move |tokens| {
                model.clear_kv_cache();
                model.forward(tokens, 0)
            })
        }
        Family::Gemma3 => {
            let config = serde_json::from_str(&text).expect("a configuration");
            let mut model = models::gemma3::Model::new(false, &config, builder).expect("a gemma3");
            Box::new(move |tokens| {
                model.clear_kv_cache();
                model.forward(tokens, 0)
            })
        }
    }
}

/// candle-transformers' model of the family, from a GGUF file; none of Mistral, whose window it does not read, nor of Gemma,
/// whose quantised model has SiLU where the dense one has GELU.
fn quantised(tiny: &Tiny, path: &Path) -> Option<Reference> {
    let mut file = File::open(path).expect("just written");
    let mut content = gguf_file::Content::read(&mut file).expect("a GGUF file");
    // It has no default for the base of these.
    for family in ["llama", "qwen3"] {
        content.metadata.insert(format!("{family}.rope.freq_base"), gguf_file::Value::F32(10_000.0));
    }
    // Without it Qwen 3's rope is computed in f16.
    content.metadata.insert("general.dtype".into(), gguf_file::Value::U32(0));
    let device = &Device::Cpu;
    match tiny.family {
        Family::Llama => {
            let mut model = models::quantized_llama::ModelWeights::from_gguf(content, &mut file, device)
                .expect("a llama");
            Some(Box::new(move |tokens| model.forward(tokens, 0)))
        }
        Family::Mistral | Family::Gemma3 => None,
        Family::Qwen2 => {
            let mut model = models::quantized_qwen2::ModelWeights::from_gguf(content, &mut file, device)
                .expect("a qwen2");
            Some(Box::new(move |tokens| model.forward(tokens, 0)))
        }
        Family::Qwen3 => {
            let mut model = models::quantized_qwen3::ModelWeights::from_gguf(content, &mut file, device)
                .expect("a qwen3");
            Some(Box::new(move |tokens| {
                model.clear_kv_cache();
                model.forward(tokens, 0)
            }))
        }
    }
}

/// Our logits after each prefix of `known`.
fn ours(path: &Path, known: &[u32]) -> Vec<Vec<f32>> {
    let mut model = load(path, WeightsMode::F32, KvDtype::F32, 256);
    let known = Known { tokens: known.to_vec(), prompt: 1 };
    let cut = Cut { max_sequences: 1, batch_tokens: 8, blocks: 8, gap: 0 };
    let (logits, _) = run(&mut model, std::slice::from_ref(&known), &cut);
    assert_eq!(logits.len(), known.tokens.len());
    logits.into_values().collect()
}

/// Largest difference from the reference over all prefixes.
fn difference(ours: &[Vec<f32>], known: &[u32], mut reference: Reference) -> f32 {
    let mut largest = 0f32;
    for (length, ours) in (1..).zip(ours) {
        let input =
            Tensor::new(&known[..length], &Device::Cpu).and_then(|row| row.unsqueeze(0)).expect("tokens");
        let logits = reference(&input).and_then(|logits| logits.flatten_all()?.to_vec1::<f32>());
        let logits = logits.expect("the reference computes");
        assert_eq!(ours.len(), logits.len());
        let differences = ours.iter().zip(&logits).map(|(ours, theirs)| (ours - theirs).abs());
        largest = differences.fold(largest, f32::max);
    }
    largest
}

#[test]
fn every_family_equals_candle_transformers_in_both_formats() {
    let _computing = only_me();
    for tiny in Tiny::families() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let known = tokens(11, LENGTH, tiny.vocabulary);
        let folder = tiny.write_folder(directory.path(), 1);
        let from_folder = ours(&folder, &known);
        let off = difference(&from_folder, &known, dense(&tiny, &folder));
        assert!(off < 2e-4, "{:?} from safetensors is off by {off}", tiny.family);
        let file = tiny.write(directory.path());
        let from_file = ours(&file, &known);
        for (file, folder) in from_file.iter().flatten().zip(from_folder.iter().flatten()) {
            assert!(
                (file - folder).abs() < 1e-4,
                "{:?}: {file} from GGUF, {folder} from safetensors",
                tiny.family
            );
        }
        if let Some(reference) = quantised(&tiny, &file) {
            let off = difference(&from_file, &known, reference);
            assert!(off < 2e-4, "{:?} from GGUF is off by {off}", tiny.family);
        }
    }
}

#[test]
fn soft_caps_equal_candle_transformers() {
    let _computing = only_me();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let tiny = Tiny { caps: true, ..Tiny::families()[4] };
    let known = tokens(7, LENGTH, tiny.vocabulary);
    let folder = tiny.write_folder(directory.path(), 1);
    let off = difference(&ours(&folder, &known), &known, dense(&tiny, &folder));
    assert!(off < 2e-4, "off by {off}");
    let from_file = ours(&tiny.write(directory.path()), &known);
    assert!(from_file.iter().flatten().all(|logit| logit.abs() < 1.5), "the cap of logits holds");
}

/// The tensors of a folder, to be changed.
fn tensors(folder: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).expect("just written")
}

fn rewrite(folder: &Path, tensors: &HashMap<String, Tensor>) {
    candle_core::safetensors::save(tensors, folder.join("model.safetensors"))
        .expect("the folder can be written");
}

fn reconfigure(folder: &Path, tiny: &Tiny, changes: &[(&str, serde_json::Value)]) {
    let mut config = tiny.config();
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    fs::write(folder.join("config.json"), config.to_string()).expect("the folder can be written");
}

fn close(a: &[Vec<f32>], b: &[Vec<f32>]) -> bool {
    a.iter().flatten().zip(b.iter().flatten()).all(|(a, b)| (a - b).abs() < 2e-4)
}

#[test]
fn another_scale_of_attention_is_another_scale_of_queries() {
    let _computing = only_me();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let tiny = Tiny::families()[4];
    let known = tokens(5, LENGTH, tiny.vocabulary);
    let folder = tiny.write_folder(directory.path(), 1);
    let plain = ours(&folder, &known);
    // Four times the scalar halves the scores; queries of twice the size undo it.
    reconfigure(&folder, &tiny, &[("query_pre_attn_scalar", json!(4 * tiny.head_dim()))]);
    assert!(!close(&plain, &ours(&folder, &known)));
    let mut weights = tensors(&folder);
    for layer in 0..tiny.layers {
        let name = Role::Layer(layer, Part::QueryNorm).safetensors_name(tiny.family);
        // The norm multiplies by one more than this.
        let doubled = ((&weights[&name] * 2.0).expect("a vector") + 1.0).expect("a vector");
        weights.insert(name, doubled);
    }
    rewrite(&folder, &weights);
    assert!(close(&plain, &ours(&folder, &known)));
}

#[test]
fn stretched_ropes_equal_candle_transformers_and_each_other() {
    let _computing = only_me();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let tiny = Tiny::families()[0];
    let known = tokens(5, LENGTH, tiny.vocabulary);
    let folder = tiny.write_folder(directory.path(), 1);
    let plain = ours(&folder, &known);
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    reconfigure(&folder, &tiny, &[("rope_scaling", scaling)]);
    let text = fs::read_to_string(folder.join("config.json")).expect("just written");
    let config: models::llama::LlamaConfig = serde_json::from_str(&text).expect("a configuration");
    let config = config.into_config(false);
    let data = fs::read(folder.join("model.safetensors")).expect("just written");
    let builder = VarBuilder::from_buffered_safetensors(data, DType::F32, &Device::Cpu).expect("safetensors");
    let model = models::llama::Llama::load(builder, &config).expect("a llama");
    let reference: Reference = Box::new(move |tokens| {
        let mut cache = models::llama::Cache::new(false, DType::F32, &config, &Device::Cpu)?;
        model.forward(tokens, 0, &mut cache)
    });
    let stretched = ours(&folder, &known);
    let off = difference(&stretched, &known, reference);
    assert!(off < 2e-4, "off by {off}");
    assert!(!close(&plain, &stretched));
    // All divisors 2 in a GGUF file is linear scaling by 2.
    let divisors = Tensor::new(vec![2f32; tiny.head_dim() / 2], &Device::Cpu).expect("a vector");
    let file = tiny.write_with(directory.path(), &[("rope_freqs.weight", divisors)]);
    reconfigure(
        &folder,
        &tiny,
        &[("rope_scaling", json!({"type": "linear", "rope_type": "linear", "factor": 2.0}))],
    );
    let linear = ours(&folder, &known);
    assert!(close(&ours(&file, &known), &linear) && !close(&plain, &linear));
}

#[test]
fn files_of_every_type_and_number_give_the_same_model() {
    let _computing = only_me();
    for dtype in [GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let tiny = Tiny { dtype, ..Tiny::families()[2] };
        let known = tokens(3, 12, tiny.vocabulary);
        let one = ours(&tiny.write_folder(directory.path(), 1), &known);
        let other = tempfile::tempdir().expect("a temporary directory");
        assert!(one == ours(&tiny.write_folder(other.path(), 3), &known), "{dtype:?} in three files");
        assert!(
            close(&one, &ours(&Tiny { dtype: GgmlDType::F32, ..tiny }.write(directory.path()), &known))
                == (dtype == GgmlDType::F32)
        );
    }
}

/// Why the model at `path` is not loaded.
fn refusal(path: &Path) -> String {
    let mut options = turnmill_worker::model::LoadOptions::new(WeightsMode::F32, KvDtype::F32);
    options.pool_bytes = 1 << 20;
    let Err(error) = Model::load(path, &options, &|_, _| ()) else { panic!("it loads") };
    let said = error.to_string();
    assert_eq!(said.lines().count(), 1, "one sentence: {said}");
    said
}

#[test]
fn a_folder_that_is_not_whole_is_refused_in_one_sentence() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let tiny = Tiny::families()[3];
    let folder = tiny.write_folder(directory.path(), 1);
    let weights = folder.join("model.safetensors");
    let whole = fs::read(&weights).expect("just written");
    let whole_tensors = tensors(&folder);
    for (bytes, said) in [
        (&whole[..whole.len() - 1], "truncated"),
        (&whole[..1000], "truncated"),
        (&whole[..5], "it has 5 bytes"),
        (&b"this is no safetensors file, whatever it says"[..], "truncated"),
        (&[], "it has 0 bytes"),
    ] {
        fs::write(&weights, bytes).expect("the folder can be written");
        let refused = refusal(&folder);
        assert!(refused.contains("not a whole safetensors file") && refused.contains(said), "{refused}");
    }
    let mut header = whole.clone();
    header[9] = b'!';
    fs::write(&weights, &header).expect("the folder can be written");
    assert!(refusal(&folder).contains("not a whole safetensors file"));
    let name = Role::Layer(1, Part::KeyNorm).safetensors_name(tiny.family);
    let with = |change: &dyn Fn(&mut HashMap<String, Tensor>)| {
        let mut changed = whole_tensors.clone();
        change(&mut changed);
        rewrite(&folder, &changed);
        refusal(&folder)
    };
    let said = with(&|tensors| drop(tensors.remove(&name)));
    assert!(said.contains(&format!("tensor {name} is missing")), "{said}");
    let shape = Tensor::zeros(7, DType::F32, &Device::Cpu).expect("a vector");
    let said = with(&|tensors| drop(tensors.insert(name.clone(), shape.clone())));
    assert!(said.contains(&format!("{name} has the shape [7]")) && said.contains("[32]"), "{said}");
    let said =
        with(&|tensors| drop(tensors.insert("model.layers.0.self_attn.extra.weight".into(), shape.clone())));
    assert!(said.contains("no use for its tensor model.layers.0.self_attn.extra.weight"), "{said}");
    let integers = Tensor::zeros(32, DType::I64, &Device::Cpu).expect("a vector");
    let said = with(&|tensors| drop(tensors.insert(name.clone(), integers.clone())));
    assert!(said.contains(&name) && said.contains("I64"), "{said}");
    rewrite(&folder, &whole_tensors);
    for (file, said) in [
        ("tokenizer.json", "no tokenizer.json"),
        ("config.json", "config.json"),
        ("model.safetensors", "neither model.safetensors nor model.safetensors.index.json"),
    ] {
        let path = folder.join(file);
        let kept = fs::read(&path).expect("just written");
        fs::remove_file(&path).expect("it is there");
        let refused = refusal(&folder);
        assert!(refused.contains(said), "{refused}");
        fs::write(&path, b"{").expect("the folder can be written");
        refusal(&folder);
        fs::write(&path, kept).expect("the folder can be written");
    }
    fs::write(folder.join("tokenizer_config.json"), "{}").expect("the folder can be written");
    assert!(refusal(&folder).contains("no chat template"));
    fs::write(folder.join("chat_template.jinja"), "{{ messages }}").expect("the folder can be written");
    fs::remove_file(folder.join("model.safetensors")).expect("it is there");
    let index = json!({"weight_map": {"a": "../elsewhere.safetensors"}});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string())
        .expect("the folder can be written");
    assert!(refusal(&folder).contains("elsewhere.safetensors"));
}

#[test]
fn a_gguf_file_lacking_what_its_family_needs_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let extra = Tensor::zeros(7, DType::F32, &Device::Cpu).expect("a vector");
    let file = Tiny::default().write_with(directory.path(), &[("blk.0.attn_q_norm.weight", extra.clone())]);
    assert!(refusal(&file).contains("no use for its tensor blk.0.attn_q_norm.weight"));
    let file = Tiny::default().write_with(directory.path(), &[("rope_freqs.weight", extra)]);
    assert!(refusal(&file).contains("rope"));
}
