//! An opened GGUF file: typed metadata, tensors by name, digests.
//!
//! Invariant: every tensor named in the header lies inside the file, so that a truncated download is refused
//! before anything is computed.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file::{Content, Value};

use super::digest::each_chunk;
use crate::model::ModelError;
use crate::model::error::{damaged, first_line, unreadable};

/// A model file.
pub struct Gguf {
    path: PathBuf,
    reader: BufReader<File>,
    content: Content,
}

impl Gguf {
    /// Reads the header of `path` and checks that every tensor is there.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = File::open(path).map_err(unreadable(path))?;
        let bytes = file.metadata().map_err(unreadable(path))?.len();
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let content = read_header(&mut reader).map_err(|reason| damaged(path, "GGUF", reason))?;
        for (name, info) in &content.tensor_infos {
            let blocks = info.shape.elem_count().div_ceil(info.ggml_dtype.block_size());
            let size = (blocks * info.ggml_dtype.type_size()) as u64;
            let end = content.tensor_data_offset.saturating_add(info.offset).saturating_add(size);
            if end > bytes {
                let reason = format!("tensor {name} ends at byte {end}, the file at {bytes} (truncated?)");
                return Err(damaged(path, "GGUF", reason));
            }
        }
        Ok(Self { path: path.to_owned(), reader, content })
    }

    /// BLAKE3 of everything that decides what the weights compute: tensor names, shapes, types and data. The
    /// file's name and its other metadata are not part of it.
    pub fn weights_digest(&self) -> Result<[u8; 32], ModelError> {
        let mut hasher = blake3::Hasher::new();
        let mut infos: Vec<_> = self.content.tensor_infos.iter().collect();
        infos.sort_by_key(|(name, _)| name.as_str());
        for (name, info) in infos {
            let line = format!("{name} {:?} {:?} {}\n", info.shape.dims(), info.ggml_dtype, info.offset);
            hasher.update(line.as_bytes());
        }
        each_chunk(&self.path, self.content.tensor_data_offset, |chunk| {
            hasher.update(chunk);
        })?;
        Ok(*hasher.finalize().as_bytes())
    }

    /// The header, for candle's readers.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The metadata value `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    /// A text value.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(|value| value.to_string().ok()).map(String::as_str)
    }

    /// A whole number of any of GGUF's widths.
    pub fn number(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Value::U8(v) => Some(u64::from(*v)),
            Value::U16(v) => Some(u64::from(*v)),
            Value::U32(v) => Some(u64::from(*v)),
            Value::U64(v) => Some(*v),
            Value::I8(v) => u64::try_from(*v).ok(),
            Value::I16(v) => u64::try_from(*v).ok(),
            Value::I32(v) => u64::try_from(*v).ok(),
            Value::I64(v) => u64::try_from(*v).ok(),
            _ => None,
        }
    }

    /// A floating-point value.
    pub fn float(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            Value::F32(v) => Some(f64::from(*v)),
            Value::F64(v) => Some(*v),
            _ => None,
        }
    }

    /// Whether the file has a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.content.tensor_infos.keys().map(String::as_str)
    }

    /// The shape of the tensor `name`; none where there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.content.tensor_infos.get(name).map(|info| info.shape.dims())
    }

    /// Loads the tensor `name`.
    pub fn tensor(&mut self, name: &str) -> Result<QTensor, ModelError> {
        Ok(self.content.tensor(&mut self.reader, name, &Device::Cpu)?)
    }
}

/// Candle's reader checks lengths against the file but divides by `general.alignment`, which a damaged file
/// may give as 0; so a panic in it is one more way of being damaged.
fn read_header(reader: &mut BufReader<File>) -> Result<Content, String> {
    let read = std::panic::AssertUnwindSafe(|| Content::read(reader));
    match std::panic::catch_unwind(read) {
        Ok(Ok(content)) => Ok(content),
        Ok(Err(error)) => Err(first_line(&error)),
        Err(_) => Err("its header makes no sense".to_owned()),
    }
}
