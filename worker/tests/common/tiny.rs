//! A model of a few thousand random weights, of any family, as a GGUF file or as a safetensors folder.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use serde_json::json;
use turnmill_worker::model::{Family, Part, Role};

use super::floats;

/// Shape and family of the model.
#[derive(Clone, Copy, Debug)]
pub struct Tiny {
    pub family: Family,
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// Elements of a head, where they are not the width over the heads.
    pub head_dim: Option<usize>,
    pub vocabulary: usize,
    /// Of Mistral's layers, or five of Gemma's six.
    pub window: Option<usize>,
    /// Gemma's caps of scores and logits.
    pub caps: bool,
    /// The output head is the embedding.
    pub tied: bool,
    /// Type of the weight matrices.
    pub dtype: GgmlDType,
}

impl Default for Tiny {
    fn default() -> Self {
        Self {
            family: Family::Llama,
            hidden: 64,
            intermediate: 96,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: None,
            vocabulary: 320,
            window: None,
            caps: false,
            tied: true,
            dtype: GgmlDType::F32,
        }
    }
}

impl Tiny {
    /// Sizes that candle's repacked kernels take, and types that need blocks of 256.
    pub fn wide(dtype: GgmlDType) -> Self {
        Self { hidden: 256, intermediate: 512, heads: 8, dtype, ..Self::default() }
    }

    /// One of each family, with what the family alone has.
    pub fn families() -> [Self; 5] {
        let plain = Self::default();
        [
            Self { tied: false, ..plain },
            Self { family: Family::Mistral, window: Some(12), tied: false, ..plain },
            Self { family: Family::Qwen2, ..plain },
            Self { family: Family::Qwen3, head_dim: Some(32), tied: false, ..plain },
            // One KV head, as the small ones have; candle's cache fails on more.
            Self {
                family: Family::Gemma3,
                kv_heads: 1,
                head_dim: Some(32),
                layers: 7,
                window: Some(10),
                ..plain
            },
        ]
    }

    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden / self.heads)
    }

    fn is_gemma(&self) -> bool {
        self.family == Family::Gemma3
    }

    /// Writes the model as a GGUF file into `directory`.
    pub fn write(&self, directory: &Path) -> PathBuf {
        self.write_with(directory, &[])
    }

    /// The same, with more tensors.
    pub fn write_with(&self, directory: &Path, more: &[(&str, Tensor)]) -> PathBuf {
        let path = directory.join("tiny.gguf");
        let mut file = File::create(&path).expect("the directory can be written");
        let metadata = self.metadata();
        let metadata: Vec<(&str, &Value)> =
            metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let more = more.iter().map(|(name, tensor)| {
            ((*name).to_owned(), QTensor::quantize(tensor, GgmlDType::F32).expect("f32 takes any shape"))
        });
        let own = self.weights().into_iter().map(|(role, tensor)| {
            let dtype = if tensor.rank() == 2 { self.dtype } else { GgmlDType::F32 };
            let tensor = self.as_llama_cpp_orders(role, tensor);
            (role.gguf_name(), QTensor::quantize(&tensor, dtype).expect("the type takes the shape"))
        });
        let tensors: Vec<(String, QTensor)> = own.chain(more).collect();
        let tensors: Vec<(&str, &QTensor)> =
            tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        gguf_file::write(&mut file, &metadata, &tensors).expect("a GGUF file can be written");
        path
    }

    /// Writes the model as a safetensors folder into `directory`, in `shards` files.
    pub fn write_folder(&self, directory: &Path, shards: usize) -> PathBuf {
        let path = directory.join("tiny");
        fs::create_dir_all(&path).expect("the directory can be written");
        let dtype = match self.dtype {
            GgmlDType::BF16 => DType::BF16,
            GgmlDType::F16 => DType::F16,
            _ => DType::F32,
        };
        let mut files: Vec<HashMap<String, Tensor>> = vec![HashMap::new(); shards];
        let mut map = BTreeMap::new();
        for (index, (role, tensor)) in self.weights().into_iter().enumerate() {
            let name = role.safetensors_name(self.family);
            // Gemma's norms multiply by one more than their weight.
            let minus = if self.is_gemma() && role.is_norm() { 1.0 } else { 0.0 };
            let tensor =
                (tensor - minus).and_then(|tensor| tensor.to_dtype(dtype)).expect("a type of floats");
            map.insert(name.clone(), shard_name(index % shards, shards));
            files[index % shards].insert(name, tensor);
        }
        for (index, tensors) in files.iter().enumerate() {
            let file = path.join(shard_name(index, shards));
            candle_core::safetensors::save(tensors, file).expect("the folder can be written");
        }
        if shards > 1 {
            write_json(
                &path.join("model.safetensors.index.json"),
                &json!({"metadata": {}, "weight_map": map}),
            );
        }
        write_json(&path.join("config.json"), &self.config());
        write_json(&path.join("tokenizer.json"), &self.tokenizer());
        let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
        let configured = json!({"chat_template": template, "eos_token": {"content": "t0"}});
        write_json(&path.join("tokenizer_config.json"), &configured);
        path
    }

    /// config.json, as the transformers library writes it.
    pub fn config(&self) -> serde_json::Value {
        let (model_type, class) = match self.family {
            Family::Llama => ("llama", "LlamaForCausalLM"),
            Family::Mistral => ("mistral", "MistralForCausalLM"),
            Family::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
            Family::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
            Family::Gemma3 => ("gemma3_text", "Gemma3ForCausalLM"),
        };
        let mut config = json!({
            "model_type": model_type, "architectures": [class], "hidden_size": self.hidden,
            "intermediate_size": self.intermediate, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary, "max_position_embeddings": 16384, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": self.tied, "attention_bias": false,
        });
        let more = match self.family {
            Family::Llama => json!({"hidden_act": "silu", "mlp_bias": false}),
            Family::Mistral => json!({"hidden_act": "silu", "sliding_window": self.window}),
            Family::Qwen2 | Family::Qwen3 => json!({
                "hidden_act": "silu", "head_dim": self.head_dim(), "use_sliding_window": false,
                "sliding_window": 16384, "max_window_layers": 1,
            }),
            Family::Gemma3 => json!({
                "hidden_activation": "gelu_pytorch_tanh", "head_dim": self.head_dim(), "rope_theta": 1000000.0,
                "rope_local_base_freq": 10000.0, "query_pre_attn_scalar": self.head_dim(),
                "sliding_window": self.window, "sliding_window_pattern": 6,
                "attn_logit_softcapping": self.caps.then_some(2.0),
                "final_logit_softcapping": self.caps.then_some(1.5),
            }),
        };
        let (Some(config_map), Some(more)) = (config.as_object_mut(), more.as_object()) else {
            unreachable!()
        };
        config_map.extend(more.clone());
        config
    }

    pub fn metadata(&self) -> BTreeMap<String, Value> {
        let size = |size: usize| Value::U32(size as u32);
        let text = |text: &str| Value::String(text.to_owned());
        let architecture = match self.family {
            Family::Llama | Family::Mistral => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Gemma3 => "gemma3",
        };
        let own = |key: &str| format!("{architecture}.{key}");
        let tokens = (0..self.vocabulary).map(|id| Value::String(format!("t{id}"))).collect();
        let mut entries: BTreeMap<String, Value> = [
            ("general.architecture".to_owned(), text(architecture)),
            (own("block_count"), size(self.layers)),
            (own("context_length"), size(16384)),
            (own("embedding_length"), size(self.hidden)),
            (own("feed_forward_length"), size(self.intermediate)),
            (own("attention.head_count"), size(self.heads)),
            (own("attention.head_count_kv"), size(self.kv_heads)),
            (own("attention.layer_norm_rms_epsilon"), Value::F32(1e-5)),
            (own("rope.dimension_count"), size(self.head_dim())),
            ("tokenizer.ggml.model".to_owned(), text("gpt2")),
            ("tokenizer.ggml.pre".to_owned(), text("gpt-2")),
            ("tokenizer.ggml.tokens".to_owned(), Value::Array(tokens)),
            ("tokenizer.ggml.merges".to_owned(), Value::Array(Vec::new())),
            ("tokenizer.ggml.eos_token_id".to_owned(), size(0)),
            (
                "tokenizer.chat_template".to_owned(),
                text("{% for m in messages %}{{ m.content }}{% endfor %}"),
            ),
        ]
        .into();
        if self.head_dim.is_some() {
            entries.insert(own("attention.key_length"), size(self.head_dim()));
            entries.insert(own("attention.value_length"), size(self.head_dim()));
        }
        if let Some(window) = self.window {
            entries.insert(own("attention.sliding_window"), size(window));
        }
        if self.is_gemma() {
            entries.insert(own("rope.freq_base"), Value::F32(1e6));
        }
        if self.caps {
            entries.insert(own("attn_logit_softcapping"), Value::F32(2.0));
            entries.insert(own("final_logit_softcapping"), Value::F32(1.5));
        }
        entries
    }

    /// A vocabulary without merges.
    fn tokenizer(&self) -> serde_json::Value {
        let vocabulary: BTreeMap<String, usize> =
            (0..self.vocabulary).map(|id| (format!("t{id}"), id)).collect();
        let level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": level,
            "post_processor": null, "decoder": level,
            "added_tokens": [{"id": 0, "content": "t0", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}],
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        })
    }

    /// All weights, as the decoder multiplies by them.
    pub fn weights(&self) -> Vec<(Role, Tensor)> {
        let mut roles = vec![(Role::Embedding, vec![self.vocabulary, self.hidden])];
        if !self.tied {
            roles.push((Role::Head, vec![self.vocabulary, self.hidden]));
        }
        for layer in 0..self.layers {
            roles.extend(self.parts().into_iter().map(|(part, shape)| (Role::Layer(layer, part), shape)));
        }
        roles.push((Role::OutputNorm, vec![self.hidden]));
        roles.into_iter().zip(1..).map(|((role, shape), seed)| (role, random(role, &shape, seed))).collect()
    }

    fn parts(&self) -> Vec<(Part, Vec<usize>)> {
        let (hidden, query, kv) =
            (self.hidden, self.heads * self.head_dim(), self.kv_heads * self.head_dim());
        let mut parts = vec![
            (Part::Query, vec![query, hidden]),
            (Part::Key, vec![kv, hidden]),
            (Part::Value, vec![kv, hidden]),
            (Part::AttentionOutput, vec![hidden, query]),
            (Part::Gate, vec![self.intermediate, hidden]),
            (Part::Up, vec![self.intermediate, hidden]),
            (Part::Down, vec![hidden, self.intermediate]),
            (Part::AttentionNorm, vec![hidden]),
            (Part::MlpNorm, vec![hidden]),
        ];
        if self.family == Family::Qwen2 {
            let biases = [(Part::QueryBias, query), (Part::KeyBias, kv), (Part::ValueBias, kv)];
            parts.extend(biases.map(|(part, width)| (part, vec![width])));
        }
        if matches!(self.family, Family::Qwen3 | Family::Gemma3) {
            parts.extend([Part::QueryNorm, Part::KeyNorm].map(|part| (part, vec![self.head_dim()])));
        }
        if self.is_gemma() {
            parts.extend([Part::AttentionPostNorm, Part::MlpPostNorm].map(|part| (part, vec![hidden])));
        }
        parts
    }

    /// llama.cpp's converter interleaves the halves of each head of the llama family's Q and K.
    fn as_llama_cpp_orders(&self, role: Role, tensor: Tensor) -> Tensor {
        let heads = match role {
            Role::Layer(_, Part::Query) => self.heads,
            Role::Layer(_, Part::Key) => self.kv_heads,
            _ => return tensor,
        };
        if !matches!(self.family, Family::Llama | Family::Mistral) {
            return tensor;
        }
        let half = self.head_dim() / 2;
        let interleaved =
            tensor.reshape((heads, 2, half, self.hidden)).and_then(|halves| halves.transpose(1, 2));
        let interleaved =
            interleaved.and_then(|pairs| pairs.contiguous()?.reshape((heads * 2 * half, self.hidden)));
        interleaved.expect("heads have halves")
    }
}

fn random(role: Role, shape: &[usize], seed: u64) -> Tensor {
    let (scale, about) = match (role.is_norm(), shape) {
        (true, _) => (0.3, 1.0),
        (false, [_, columns]) => (2.0 / (*columns as f32).sqrt(), 0.0),
        (false, _) => (0.5, 0.0),
    };
    let count = shape.iter().product();
    let weights: Vec<f32> = floats(seed, count).iter().map(|weight| about + scale * weight).collect();
    Tensor::from_vec(weights, shape, &Device::Cpu).expect("sizes agree")
}

fn shard_name(index: usize, shards: usize) -> String {
    match shards {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{shards:05}.safetensors", index + 1),
    }
}

fn write_json(path: &Path, value: &serde_json::Value) {
    fs::write(path, value.to_string()).expect("the folder can be written");
}
