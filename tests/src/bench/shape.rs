//! Model files of a larger shape than the default model, with random weights: what they say is noise, how fast they say it
//! is not.
//!
//! Tokenizer and template are those of a model that is there. All layers have the same weights, each with a copy of its own
//! in the file, because quantising them takes longer than writing them.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::BenchError;

/// A decoder of the llama family.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How it is called in tables.
    pub name: &'static str,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the gated MLP.
    pub intermediate: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of K and V.
    pub kv_heads: usize,
    /// Type of the layers' matrices.
    pub dtype: GgmlDType,
    /// Type of the embedding table, which is the output head too.
    pub table: GgmlDType,
    /// What llama.cpp calls such files.
    file_type: u32,
}

impl Shape {
    /// That of Llama 3.2 1B but for the vocabulary, as its files mostly come.
    pub const ALL: [Self; 2] = [
        Self::llama_1b("1B Q8_0", GgmlDType::Q8_0, GgmlDType::Q8_0, 7),
        Self::llama_1b("1B Q4_K", GgmlDType::Q4K, GgmlDType::Q6K, 14),
    ];

    const fn llama_1b(name: &'static str, dtype: GgmlDType, table: GgmlDType, file_type: u32) -> Self {
        let (hidden, intermediate, layers) = (2048, 8192, 16);
        Self { name, hidden, intermediate, layers, heads: 32, kv_heads: 8, dtype, table, file_type }
    }

    /// Writes it to `path`, with the vocabulary of the model file `base`.
    pub fn write(&self, base: &Path, path: &Path) -> Result<(), BenchError> {
        self.try_write(base, path)
            .map_err(|error| BenchError::Shape { shape: self.name, reason: error.to_string() })
    }

    fn try_write(&self, base: &Path, path: &Path) -> candle_core::Result<()> {
        let base = Content::read(&mut File::open(base)?)?.metadata;
        let vocabulary = match base.get("tokenizer.ggml.tokens") {
            Some(tokens) => tokens.to_vec()?.len(),
            None => candle_core::bail!("the model to take the vocabulary of has none"),
        };
        let metadata = self.metadata(base);
        let metadata: Vec<(&str, &Value)> =
            metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let [one, table] =
            [self.layer()?, vec![("token_embd", self.matrix(vocabulary, self.hidden, self.table)?)]];
        let norm = ones(self.hidden)?;
        let mut tensors = vec![("token_embd.weight".to_owned(), &table[0].1)];
        for layer in 0..self.layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            tensors.extend(one.iter().map(|(part, matrix)| (name(part), matrix)));
            tensors.extend(["attn_norm", "ffn_norm"].map(|part| (name(part), &norm)));
        }
        tensors.push(("output_norm.weight".to_owned(), &norm));
        let tensors: Vec<(&str, &QTensor)> =
            tensors.iter().map(|(name, tensor)| (name.as_str(), *tensor)).collect();
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        gguf_file::write(&mut file, &metadata, &tensors)
    }

    /// The base's, with this shape for its own.
    fn metadata(&self, base: HashMap<String, Value>) -> HashMap<String, Value> {
        let mut metadata = base;
        metadata.retain(|key, _| !key.starts_with("llama.") || key.ends_with("epsilon"));
        let head_dim = self.hidden / self.heads;
        for (key, value) in [
            ("llama.context_length", 8192),
            ("llama.block_count", self.layers),
            ("llama.embedding_length", self.hidden),
            ("llama.feed_forward_length", self.intermediate),
            ("llama.attention.head_count", self.heads),
            ("llama.attention.head_count_kv", self.kv_heads),
            ("llama.rope.dimension_count", head_dim),
            ("general.file_type", self.file_type as usize),
        ] {
            metadata.insert(key.to_owned(), Value::U32(value as u32));
        }
        metadata.insert("llama.rope.freq_base".to_owned(), Value::F32(500_000.0));
        metadata.insert("general.name".to_owned(), Value::String(self.name.to_owned()));
        metadata
    }

    /// The matrices of a layer.
    fn layer(&self) -> candle_core::Result<Vec<(&'static str, QTensor)>> {
        let (hidden, kv) = (self.hidden, self.kv_heads * (self.hidden / self.heads));
        let matrix = |rows, columns| self.matrix(rows, columns, self.dtype);
        Ok(vec![
            ("attn_q", matrix(hidden, hidden)?),
            ("attn_k", matrix(kv, hidden)?),
            ("attn_v", matrix(kv, hidden)?),
            ("attn_output", matrix(hidden, hidden)?),
            ("ffn_gate", matrix(self.intermediate, hidden)?),
            ("ffn_up", matrix(self.intermediate, hidden)?),
            ("ffn_down", matrix(hidden, self.intermediate)?),
        ])
    }

    fn matrix(&self, rows: usize, columns: usize, dtype: GgmlDType) -> candle_core::Result<QTensor> {
        let mut random = ChaCha8Rng::seed_from_u64((rows * columns) as u64);
        // Outputs as large as inputs, so that nothing overflows over the layers.
        let scale = (3.0 / columns as f32).sqrt();
        let mut weight = || (random.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0) * scale;
        let weights: Vec<f32> = (0..rows * columns).map(|_| weight()).collect();
        QTensor::quantize(&Tensor::from_vec(weights, (rows, columns), &Device::Cpu)?, dtype)
    }
}

fn ones(length: usize) -> candle_core::Result<QTensor> {
    let ones = Tensor::ones(length, candle_core::DType::F32, &Device::Cpu)?;
    QTensor::quantize(&ones, GgmlDType::F32)
}

#[cfg(test)]
mod tests {
    use super::super::side::{Point, Side};
    use super::*;

    #[tokio::test]
    async fn a_made_model_is_one_that_the_worker_measures() {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let path = folder.path().join("small.gguf");
        let shape =
            Shape { hidden: 256, intermediate: 512, layers: 2, heads: 4, kv_heads: 2, ..Shape::ALL[1] };
        shape.write(Path::new(&crate::worker::model()), &path).expect("it is made");
        let points = [Point::Prefill(32), Point::Decode(2)];
        let figures = Side::turnmill(&path).figures(&points, 1).await.expect("it is measured");
        assert_eq!(figures.iter().map(|(point, _)| *point).collect::<Vec<_>>(), points);
        assert!(figures.iter().all(|(_, tok_s)| *tok_s > 0.0), "{figures:?}");
    }
}
