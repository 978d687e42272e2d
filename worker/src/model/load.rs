//! From a checkpoint to everything a worker needs of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::backend::cpu::CpuBackend;
use super::backend::tensor::TensorBackend;
use super::backend::{Backend, KvShape};
use super::checkpoint::Checkpoint;
use super::config::DecoderConfig;
use super::decoder::{Decoder, DecoderEngine};
use super::device::ComputeDevice;
use super::dialogue::{Dialogue, FormatChoice};
use super::tokenizer::Tokenizer;
use super::{Engine, EngineError, ModelError};
use crate::config::{DeviceKind, KvCodec, KvDtype, WeightsMode};
use crate::kv::{BlockShape, Identity, Namespace, SEGMENT_TOKENS};

/// Bumped when a kernel changes the bits it computes, so that stored blocks of older workers are not mixed in.
const NUMERICS_REVISION: u32 = 2;
/// Version of the order of elements within a block.
const LAYOUT_VERSION: u32 = 1;

/// Which model, where it computes and how it is held: all that commands are told which need nothing else of the settings.
#[derive(Clone, Debug)]
pub struct ModelChoice {
    /// Its file or folder.
    pub path: PathBuf,
    /// What computes.
    pub device: DeviceKind,
    /// How weights are held.
    pub weights: WeightsMode,
    /// Element type of the block pool.
    pub kv_dtype: KvDtype,
}

impl ModelChoice {
    /// To load it with, everything else as tools want it.
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions { device: self.device, ..LoadOptions::new(self.weights, self.kv_dtype) }
    }
}

/// How to load a model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// What computes.
    pub device: DeviceKind,
    /// How weights are held.
    pub weights: WeightsMode,
    /// Element type of the block pool.
    pub kv_dtype: KvDtype,
    /// Tokens in a block.
    pub block_tokens: usize,
    /// Bytes of the block pool; 0 for as much as suits the device.
    pub pool_bytes: usize,
    /// Longest context to serve; 0 for the model's own.
    pub max_context_tokens: usize,
    /// How blocks are written outside the pool, which is a part of what they are.
    pub kv_codec: KvCodec,
    /// Blocks of other kinds of machine are as good.
    pub kv_any_compute: bool,
    /// A file with the chat template to use in place of the model's own.
    pub chat_template: Option<PathBuf>,
    /// The format in which it calls tools.
    pub tool_format: FormatChoice,
}

impl LoadOptions {
    /// For tools: blocks of 16 tokens, the model's own context, and the device and a pool as they suit.
    pub fn new(weights: WeightsMode, kv_dtype: KvDtype) -> Self {
        Self {
            device: DeviceKind::Auto,
            weights,
            kv_dtype,
            block_tokens: 16,
            pool_bytes: 0,
            max_context_tokens: 0,
            kv_codec: KvCodec::F16,
            kv_any_compute: false,
            chat_template: None,
            tool_format: FormatChoice::Auto,
        }
    }

    /// Bytes of the pool that a token of the model at `path` takes.
    pub fn token_bytes(&self, path: &Path) -> Result<usize, ModelError> {
        Ok(self.kv_shape(Checkpoint::open(path)?.config(), 0).token_bytes())
    }

    fn kv_shape(&self, config: &DecoderConfig, blocks: usize) -> KvShape {
        KvShape {
            layers: config.layers,
            blocks,
            block_tokens: self.block_tokens,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            dtype: self.kv_dtype,
        }
    }
}

/// A loaded model.
pub struct Model {
    /// Runs steps.
    pub engine: Box<dyn Engine>,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Conversation to text.
    pub dialogue: Dialogue,
    /// Identity of its KV blocks, before the tenant.
    pub namespace: Namespace,
    /// Longest context it serves, in tokens.
    pub context_tokens: usize,
    /// Blocks in its pool.
    pub blocks: usize,
    /// The model's shape.
    pub config: DecoderConfig,
    /// What a block of its pool looks like.
    pub block_shape: BlockShape,
    /// What computes it: part of what its K and V are.
    pub compute_kind: &'static str,
}

impl Model {
    /// Loads the GGUF file or the safetensors folder `path`; `progress` is called with layers done and layers in all.
    pub fn load(
        path: &Path,
        options: &LoadOptions,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self, ModelError> {
        Self::load_on(&ComputeDevice::open(options.device)?, path, options, progress)
    }

    /// The same on a device that was opened before, whatever `options` say.
    pub fn load_on(
        device: &ComputeDevice,
        path: &Path,
        options: &LoadOptions,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self, ModelError> {
        let mut checkpoint = Checkpoint::open(path)?;
        let config = checkpoint.config().clone();
        let (tokenizer, template) = checkpoint.tokenizer_and_template(options.chat_template.as_deref())?;
        let context_tokens = match options.max_context_tokens {
            0 => config.context_tokens,
            limit => limit.min(config.context_tokens),
        };
        let pool_bytes = match options.pool_bytes {
            0 => device.pool_bytes(bytes_of(path)),
            bytes => bytes,
        };
        let blocks = pool_blocks(&config, options, pool_bytes)?;
        let ours = options.weights == WeightsMode::Fast && CpuBackend::multiplies(&config);
        let compute_kind = device.compute_kind(ours);
        let namespace = namespace(&checkpoint, &tokenizer, options, compute_kind)?;
        let layers = config.layers;
        let done = |layer| progress(layer, layers);
        let (kv, weights, heads) = (options.kv_shape(&config, blocks), options.weights, config.heads);
        let source = (&mut checkpoint, context_tokens);
        let engine = match device {
            ComputeDevice::Cpu => engine(CpuBackend::new(kv, weights)?, source, &done)?,
            ComputeDevice::Tensor(device) => {
                engine(TensorBackend::new(device.clone(), weights, kv, heads)?, source, &done)?
            }
        };
        let block_shape = BlockShape {
            layers,
            block_tokens: options.block_tokens,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            dtype: options.kv_dtype,
        };
        Ok(Self {
            engine,
            tokenizer: Arc::new(tokenizer),
            dialogue: Dialogue::new(template, options.tool_format),
            namespace,
            context_tokens,
            blocks,
            config,
            block_shape,
            compute_kind,
        })
    }

    /// Makes the first steps as fast as later ones.
    pub fn warm_up(&mut self) -> Result<(), EngineError> {
        self.engine.warm_up()
    }
}

/// An engine that computes with `backend`, from a checkpoint, for contexts of some length.
fn engine<B: Backend + 'static>(
    backend: B,
    (checkpoint, context_tokens): (&mut Checkpoint, usize),
    done: &dyn Fn(usize),
) -> Result<Box<dyn Engine>, ModelError> {
    let decoder = Decoder::load(checkpoint, &backend, context_tokens, done)?;
    Ok(Box::new(DecoderEngine::new(decoder, backend)))
}

/// Bytes of a file, or of the files in a folder; what cannot be read is refused where it is needed.
fn bytes_of(path: &Path) -> u64 {
    let length = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
    match path.read_dir() {
        Ok(entries) => entries.flatten().map(|entry| length(&entry.path())).sum(),
        Err(_) => length(path),
    }
}

/// How many blocks `pool_bytes` holds.
fn pool_blocks(
    config: &DecoderConfig,
    options: &LoadOptions,
    pool_bytes: usize,
) -> Result<usize, ModelError> {
    let token = options.kv_shape(config, 0).token_bytes();
    let blocks = pool_bytes / (token * options.block_tokens);
    // Two blocks are the least that lets a turn grow past a prompt of one.
    if blocks < 2 || blocks > u32::MAX as usize / options.block_tokens {
        return Err(ModelError::Unusable(format!(
            "pool_bytes {pool_bytes} makes {blocks} blocks of {} tokens at {token} bytes a token; give at least {}",
            options.block_tokens,
            2 * token * options.block_tokens
        )));
    }
    Ok(blocks)
}

fn namespace(
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    options: &LoadOptions,
    compute_kind: &str,
) -> Result<Namespace, ModelError> {
    Ok(Namespace::new(&Identity {
        weights_digest: checkpoint.weights_digest()?,
        weights_mode: &options.weights.to_string(),
        tokenizer_digest: tokenizer.digest(),
        rope_and_window: &checkpoint.config().identity(),
        kv_dtype: &options.kv_dtype.to_string(),
        codec: &options.kv_codec.to_string(),
        compute_kind: if options.kv_any_compute { "any" } else { compute_kind },
        numerics_revision: NUMERICS_REVISION,
        block_tokens: options.block_tokens as u32,
        segment_tokens: SEGMENT_TOKENS as u32,
        layout_version: LAYOUT_VERSION,
    }))
}
