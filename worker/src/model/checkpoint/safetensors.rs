//! A folder as it is published for the transformers library: config.json, weights in one or more safetensors files, and
//! the tokenizer's files.
//!
//! Files are read, not mapped, and one tensor at a time: a file that changes or shrinks while it is loaded is an error and
//! nothing worse. Invariant: each file is as long as its header says, and no tensor is in two of them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Shape};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;

use super::digest::each_chunk;
use crate::model::ModelError;
use crate::model::error::{damaged, unreadable};

/// Bytes before the header: its length.
const LENGTH_BYTES: u64 = 8;
/// No header is longer; the format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Names of weights in one file, and of the list of files where there are more.
const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// An opened folder.
pub struct SafetensorsFolder {
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Location>,
}

struct Shard {
    path: PathBuf,
    /// Where its data begins.
    data: u64,
}

/// Where a tensor lies, and what it is.
struct Location {
    shard: usize,
    start: u64,
    bytes: usize,
    shape: Vec<usize>,
    dtype: Dtype,
}

/// The list of files.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl SafetensorsFolder {
    /// Reads the headers of all weight files in the folder `path`.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let mut folder = Self { path: path.to_owned(), shards: Vec::new(), tensors: BTreeMap::new() };
        for name in weight_files(path)? {
            folder.add(path.join(name))?;
        }
        Ok(folder)
    }

    /// The weight files, in order of their names.
    pub fn files(&self) -> Vec<PathBuf> {
        self.shards.iter().map(|shard| shard.path.clone()).collect()
    }

    /// The text of the file `name`; none where there is no such file.
    pub fn text(&self, name: &str) -> Result<Option<String>, ModelError> {
        let path = self.path.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => Ok(Some(text)),
                Err(_) => Err(damaged(&path, "text", "it is not UTF-8".to_owned())),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(&path)(error)),
        }
    }

    /// The text of the file `name`, which the model needs.
    pub fn required_text(&self, name: &str) -> Result<String, ModelError> {
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        self.text(name)?.ok_or_else(|| unreadable(&self.path.join(name))(missing()))
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of the tensor `name`; none where there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|location| location.shape.as_slice())
    }

    /// Loads the tensor `name`.
    pub fn tensor(&self, name: &str) -> Result<QTensor, ModelError> {
        let unusable = |text: String| ModelError::Unusable(format!("tensor {name} {text}"));
        let location = self.tensors.get(name).ok_or_else(|| unusable("is missing".to_owned()))?;
        let dtype = match location.dtype {
            Dtype::F32 => GgmlDType::F32,
            Dtype::F16 => GgmlDType::F16,
            Dtype::BF16 => GgmlDType::BF16,
            other => return Err(unusable(format!("is of type {other:?}; F32, F16 and BF16 are supported"))),
        };
        let path = &self.shards[location.shard].path;
        let mut file = File::open(path).map_err(unreadable(path))?;
        file.seek(SeekFrom::Start(location.start)).map_err(unreadable(path))?;
        let mut data = vec![0; location.bytes];
        file.read_exact(&mut data).map_err(unreadable(path))?;
        let storage = QStorage::from_data(Cow::Owned(data), &Device::Cpu, dtype)?;
        Ok(QTensor::new(storage, Shape::from(location.shape.clone()))?)
    }

    /// BLAKE3 of everything that decides what the weights compute: tensor names, shapes, types and data.
    pub fn weights_digest(&self) -> Result<[u8; 32], ModelError> {
        let mut hasher = blake3::Hasher::new();
        for (name, at) in &self.tensors {
            let line = format!("{name} {:?} {:?} {} {}\n", at.shape, at.dtype, at.shard, at.start);
            hasher.update(line.as_bytes());
        }
        for shard in &self.shards {
            each_chunk(&shard.path, shard.data, |chunk| {
                hasher.update(chunk);
            })?;
        }
        Ok(*hasher.finalize().as_bytes())
    }

    fn add(&mut self, path: PathBuf) -> Result<(), ModelError> {
        let (header, data) = read_header(&path)?;
        for (name, info) in header.tensors() {
            let (start, end) = info.data_offsets;
            let location = Location {
                shard: self.shards.len(),
                start: data + start as u64,
                bytes: end - start,
                shape: info.shape.clone(),
                dtype: info.dtype,
            };
            if self.tensors.insert(name.clone(), location).is_some() {
                return Err(ModelError::Unusable(format!("two of its files hold the tensor {name}")));
            }
        }
        self.shards.push(Shard { path, data });
        Ok(())
    }
}

/// Names of the files with weights, sorted.
fn weight_files(folder: &Path) -> Result<Vec<String>, ModelError> {
    if folder.join(WHOLE).is_file() {
        return Ok(vec![WHOLE.to_owned()]);
    }
    let path = folder.join(INDEX);
    let text = std::fs::read_to_string(&path).map_err(|e| {
        let reason = if e.kind() == std::io::ErrorKind::NotFound {
            format!("the folder has neither {WHOLE} nor {INDEX}")
        } else {
            e.to_string()
        };
        ModelError::Unreadable { path: folder.to_owned(), reason }
    })?;
    let index: Index = serde_json::from_str(&text).map_err(|e| damaged(&path, "JSON", e.to_string()))?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort_unstable();
    names.dedup();
    // An index may come from anywhere; it has no business outside its folder.
    match names.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
        Some(name) => Err(damaged(&path, "JSON", format!("it names the file {name:?}"))),
        None => Ok(names),
    }
}

/// The header of the safetensors file `path`, and where its data begins.
fn read_header(path: &Path) -> Result<(Metadata, u64), ModelError> {
    let broken = |reason: String| damaged(path, "safetensors", reason);
    let mut file = File::open(path).map_err(unreadable(path))?;
    let bytes = file.metadata().map_err(unreadable(path))?.len();
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(|_| broken(format!("it has {bytes} bytes")))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length > bytes - LENGTH_BYTES {
        return Err(broken(format!(
            "its header would have {length} bytes, the file has {bytes} (truncated?)"
        )));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(unreadable(path))?;
    let header: Metadata = serde_json::from_slice(&header).map_err(|e| broken(e.to_string()))?;
    let data = LENGTH_BYTES + length;
    let end = data.saturating_add(header.data_len() as u64);
    if end != bytes {
        return Err(broken(format!("its data ends at byte {end}, the file at {bytes} (truncated?)")));
    }
    Ok((header, data))
}
