//! The port to checkpoints: what a published model holds, whatever its files look like.
//!
//! Owns: names and shapes of tensors, rope's row order, which tensors were used, tokenizer, chat template and digests.
//! Invariants: a tensor that is given out has the shape the configuration calls for and the meaning the decoder knows, so
//! that nothing after this module knows formats; a tensor of a layer that nobody used is refused.

mod digest;
pub(super) mod gguf;
mod names;
mod safetensors;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::QTensor;

use super::ModelError;
use super::config::{DecoderConfig, Family};
use super::matrix::unpermute_rope_rows;
use super::template::ChatTemplate;
use super::tokenizer::Tokenizer;
use gguf::Gguf;
use safetensors::SafetensorsFolder;

pub use names::{Part, Role};

/// Divisors of rope's frequencies in GGUF files.
const ROPE_DIVISORS: &str = "rope_freqs.weight";
/// Buffers of old safetensors files that hold what everybody computes anyway.
const COMPUTED: &str = ".rotary_emb.inv_freq";

/// An opened model.
pub struct Checkpoint {
    path: PathBuf,
    config: DecoderConfig,
    files: Files,
    taken: HashSet<String>,
}

enum Files {
    Gguf(Box<Gguf>),
    Safetensors(SafetensorsFolder),
}

impl Checkpoint {
    /// Opens the GGUF file or the safetensors folder `path` and reads its configuration.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let (config, files) = if path.is_dir() {
            let folder = SafetensorsFolder::open(path)?;
            let config = DecoderConfig::from_json(&folder.required_text("config.json")?)?;
            (config, Files::Safetensors(folder))
        } else {
            let mut gguf = Gguf::open(path)?;
            let divisors = rope_divisors(&mut gguf)?;
            (DecoderConfig::from_gguf(&gguf, divisors)?, Files::Gguf(Box::new(gguf)))
        };
        Ok(Self { path: path.to_owned(), config, files, taken: HashSet::new() })
    }

    /// The model's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The name of the tensor for `role`.
    pub fn name(&self, role: Role) -> String {
        match &self.files {
            Files::Gguf(_) => role.gguf_name(),
            Files::Safetensors(_) => role.safetensors_name(self.config.family),
        }
    }

    /// Loads a matrix as it is stored, rows in the order of ADR 0007.
    pub fn matrix(&mut self, role: Role) -> Result<QTensor, ModelError> {
        let tensor = self.tensor(role)?;
        match self.interleaved_heads(role) {
            Some(heads) => Ok(unpermute_rope_rows(tensor, heads, self.config.head_dim)?),
            None => Ok(tensor),
        }
    }

    /// Loads a vector: a bias, or what a norm multiplies by.
    pub fn vector(&mut self, role: Role) -> Result<Vec<f32>, ModelError> {
        let tensor = self.tensor(role)?;
        let mut vector = tensor.dequantize(&Device::Cpu)?.to_vec1::<f32>()?;
        if let Some(heads) = self.interleaved_heads(role) {
            vector = halves(&vector, heads, self.config.head_dim);
        }
        if self.norms_lack_one() && role.is_norm() {
            vector.iter_mut().for_each(|weight| *weight += 1.0);
        }
        Ok(vector)
    }

    /// Loads the output head, which may be the embedding.
    pub fn head(&mut self) -> Result<QTensor, ModelError> {
        self.matrix(if self.config.tied { Role::Embedding } else { Role::Head })
    }

    /// Refuses a model whose layers have tensors that nobody loaded: without them the words would be wrong.
    pub fn check_all_taken(&self) -> Result<(), ModelError> {
        let names: Box<dyn Iterator<Item = &str>> = match &self.files {
            Files::Gguf(gguf) => Box::new(gguf.names().filter(|name| name.starts_with("blk."))),
            Files::Safetensors(folder) => Box::new(
                folder.names().filter(|name| name.starts_with("model.layers.") && !name.ends_with(COMPUTED)),
            ),
        };
        match names.filter(|name| !self.taken.contains(*name)).min() {
            Some(name) => Err(ModelError::Unusable(format!("the decoder has no use for its tensor {name}"))),
            None => Ok(()),
        }
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        let vocabulary = self.config.vocabulary;
        match &self.files {
            Files::Gguf(gguf) => Tokenizer::from_gguf(gguf, vocabulary),
            Files::Safetensors(folder) => Tokenizer::from_folder(|name| folder.text(name), vocabulary),
        }
    }

    /// Its chat template, or `source` in its place.
    fn template(&self, tokenizer: &Tokenizer, source: Option<&str>) -> Result<ChatTemplate, ModelError> {
        match &self.files {
            Files::Gguf(gguf) => ChatTemplate::from_gguf(gguf, tokenizer, source),
            Files::Safetensors(folder) => ChatTemplate::from_folder(|name| folder.text(name), source),
        }
    }

    /// What is needed to make prompts and read replies, without a look at the weights: its tokenizer, and its chat template or
    /// the one in the file `template`.
    pub fn tokenizer_and_template(
        &self,
        template: Option<&Path>,
    ) -> Result<(Tokenizer, ChatTemplate), ModelError> {
        let tokenizer = self.tokenizer()?;
        let source = template.map(read_template).transpose()?;
        let template = self.template(&tokenizer, source.as_deref())?;
        Ok((tokenizer, template))
    }

    /// Compares the weights with a SHA-256 in hexadecimal: of the file, or of the folder's safetensors files one after
    /// another in the order of their names.
    pub fn verify_sha256(&self, expected: &str) -> Result<(), ModelError> {
        let files = match &self.files {
            Files::Gguf(_) => vec![self.path.clone()],
            Files::Safetensors(folder) => folder.files(),
        };
        digest::verify_sha256(&self.path, &files, expected)
    }

    /// BLAKE3 of everything that decides what the weights compute, which no name of a file is part of.
    pub fn weights_digest(&self) -> Result<[u8; 32], ModelError> {
        match &self.files {
            Files::Gguf(gguf) => gguf.weights_digest(),
            Files::Safetensors(folder) => folder.weights_digest(),
        }
    }

    /// The tensor for `role`, of the shape it must have.
    fn tensor(&mut self, role: Role) -> Result<QTensor, ModelError> {
        let name = self.name(role);
        let expected = role.shape(&self.config);
        let found = match &self.files {
            Files::Gguf(gguf) => gguf.shape(&name),
            Files::Safetensors(folder) => folder.shape(&name),
        };
        match found {
            None => return Err(ModelError::Unusable(format!("tensor {name} is missing"))),
            Some(found) if found != expected => {
                return Err(ModelError::Unusable(format!(
                    "tensor {name} has the shape {found:?}; the model's metadata calls for {expected:?}"
                )));
            }
            Some(_) => {}
        }
        let tensor = match &mut self.files {
            Files::Gguf(gguf) => gguf.tensor(&name),
            Files::Safetensors(folder) => folder.tensor(&name),
        }?;
        self.taken.insert(name);
        Ok(tensor)
    }

    /// Heads of a tensor whose rows have to be put into halves: llama.cpp's converter interleaves the llama family's.
    fn interleaved_heads(&self, role: Role) -> Option<usize> {
        let interleaved = matches!(self.files, Files::Gguf(_)) && self.config.family == Family::Llama;
        role.rope_heads(&self.config).filter(|_| interleaved)
    }

    /// Gemma's norms multiply by one more than their weight. llama.cpp's converter adds it, safetensors do not have it.
    fn norms_lack_one(&self) -> bool {
        matches!(self.files, Files::Safetensors(_)) && self.config.family == Family::Gemma3
    }
}

fn read_template(path: &Path) -> Result<String, ModelError> {
    let path = path.to_owned();
    std::fs::read_to_string(&path).map_err(|e| ModelError::Template { path, reason: e.to_string() })
}

/// Reorders a vector of interleaved heads to halves, as [`unpermute_rope_rows`] does rows.
fn halves(vector: &[f32], heads: usize, head_dim: usize) -> Vec<f32> {
    let half = head_dim / 2;
    let element = |i: usize| {
        let (head, i) = (i / head_dim, i % head_dim);
        vector[head * head_dim + 2 * (i % half) + i / half]
    };
    (0..heads * head_dim).map(element).collect()
}

fn rope_divisors(gguf: &mut Gguf) -> Result<Option<Vec<f32>>, ModelError> {
    match gguf.shape(ROPE_DIVISORS) {
        None => Ok(None),
        Some([_]) => Ok(Some(gguf.tensor(ROPE_DIVISORS)?.dequantize(&Device::Cpu)?.to_vec1::<f32>()?)),
        Some(shape) => Err(ModelError::Unusable(format!(
            "tensor {ROPE_DIVISORS} has the shape {shape:?}, and is no vector"
        ))),
    }
}
