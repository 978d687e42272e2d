//! `turnmill-tests scripted-worker`: a worker whose words come from a script instead of a model. For tests of clients, pages and load, and
//! to try a client without a model.
//!
//! Only the forward pass is the script. Settings, probes, queue, leases, tokenizer, chat template, scheduler, block pool, store, sampler and
//! stop rules are those of `turnmill-worker serve`. Of the model's file, its vocabulary and its template are read and its weights are not, so
//! that it starts at once and a context of 200,000 tokens takes a few megabytes.
//!
//! | module | owns |
//! |---|---|
//! | `script` | the file: its rules, and what is refused |
//! | `frame` | which message a prompt asks, and where the reply starts |
//! | `spelling` | text to tokens that come out as that very text |
//! | `memory` | K and V: the tokens themselves |
//! | `engine` | the forward pass |

mod engine;
mod frame;
mod memory;
mod script;
mod spelling;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{ArgMatches, Args};
use turnmill_worker::app::{AppError, find_model, serve_with};
use turnmill_worker::config::{
    AutoByteSize, ConfigError, KvCodec, KvDtype, Settings, SettingsArgs, log_format,
};
use turnmill_worker::kv::{BlockShape, Identity, Namespace, SEGMENT_TOKENS};
use turnmill_worker::model::{Checkpoint, Dialogue, Model};
use turnmill_worker::observe::logs;

use self::engine::{Cast, ScriptedEngine};
use self::frame::{Frame, FrameError};
use self::memory::{Memory, TOKEN_BYTES};
pub use self::script::{Pace, Rule, Script, ScriptError};
use self::spelling::Spelling;

/// Tokens that the pool holds if nobody says how much memory it may take, unless the contexts are longer.
const POOL_TOKENS: usize = 1 << 20;
/// Contexts of full length that the pool then holds.
const POOL_CONTEXTS: usize = 4;

/// Serve a queue with words from a script instead of a model.
///
/// It takes every setting of `turnmill-worker serve`, as a flag, a variable or a key of the configuration file. Of the model that --model
/// names, only vocabulary and chat template are read. --max-context-tokens may be longer than the model's own context. Settings of what
/// computes (device, weights, threads, kv_dtype) mean nothing here.
#[derive(Args)]
pub struct ScriptedWorkerArgs {
    /// What it says: a TOML file with rules. Without one, it says what the last message was.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Tokens a second of each reply whose rule names no pace; without it, as many as come.
    #[arg(long, value_name = "N", value_parser = script::pace)]
    tokens_per_second: Option<f64>,
    #[command(flatten)]
    _settings: SettingsArgs,
}

/// Why there is no scripted worker.
#[derive(Debug, thiserror::Error)]
pub enum ScriptedError {
    /// The script.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// The model's chat template.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// K and V would come back as others.
    #[error(
        "kv_codec is {0}; a scripted worker's K and V are its tokens, so they must be kept exactly: set it to f16"
    )]
    Codec(KvCodec),
    /// The pool has no room, or more than can be counted.
    #[error(
        "pool_bytes makes {blocks} blocks of {block_tokens} tokens; give from {least} to {most} bytes, or auto"
    )]
    Pool {
        /// Blocks that fit.
        blocks: usize,
        /// Tokens a block.
        block_tokens: usize,
        /// Bytes of the smallest pool.
        least: usize,
        /// Bytes of the largest.
        most: usize,
    },
    /// The worker.
    #[error(transparent)]
    App(#[from] AppError),
    /// The operating system.
    #[error("the system refused: {0}")]
    System(#[from] std::io::Error),
}

/// Runs the command, whose own matches are `matches`, until a signal ends it.
pub fn run(args: &ScriptedWorkerArgs, matches: &ArgMatches) -> ExitCode {
    let Err(error) = serve(args, matches) else { return ExitCode::SUCCESS };
    if logs::writes_json(log_format(matches)) {
        logs::fatal(&error);
    } else {
        eprintln!("turnmill-tests: {error}");
    }
    ExitCode::FAILURE
}

fn serve(args: &ScriptedWorkerArgs, matches: &ArgMatches) -> Result<(), ScriptedError> {
    let (settings, _) = Settings::load(matches)?;
    settings.model_path()?;
    if settings.kv_codec != KvCodec::F16 {
        return Err(ScriptedError::Codec(settings.kv_codec));
    }
    let script = args.script.as_deref().map_or_else(|| Ok(Script::echo()), Script::read)?;
    let script = script.at_pace(args.tokens_per_second);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let load = move |settings: &Settings| {
        let path = find_model(settings, &|_| ())?;
        model(&path, settings, script)
    };
    let outcome = runtime.block_on(serve_with(settings, load));
    // A model that is still being fetched when a signal comes is not waited for.
    runtime.shutdown_background();
    Ok(outcome?)
}

/// The model at `path` with the script in place of its weights.
fn model(path: &Path, settings: &Settings, script: Script) -> Result<Model, AppError> {
    let own = |error: ScriptedError| AppError::Engine(Box::new(error));
    let checkpoint = Checkpoint::open(path)?;
    let config = checkpoint.config().clone();
    let (tokenizer, template) = checkpoint.tokenizer_and_template(settings.chat_template.as_deref())?;
    let tokenizer = Arc::new(tokenizer);
    let context_tokens = match settings.max_context_tokens {
        0 => config.context_tokens,
        tokens => tokens as usize,
    };
    let block_tokens = settings.block_tokens as usize;
    let blocks = pool_blocks(settings.pool_bytes, context_tokens, block_tokens).map_err(own)?;
    let frame = Frame::new(&tokenizer, &template).map_err(|error| own(error.into()))?;
    let spelling = Spelling::new(tokenizer.clone());
    let cast = Cast::new(script, frame, spelling).map_err(|error| own(error.into()))?;
    let engine = ScriptedEngine::new(cast, Memory::new(blocks, block_tokens), tokenizer.clone());
    Ok(Model {
        engine: Box::new(engine),
        namespace: namespace(&tokenizer.digest(), block_tokens),
        tokenizer,
        dialogue: Dialogue::new(template, settings.tool_format),
        context_tokens,
        blocks,
        config,
        block_shape: block_shape(block_tokens),
        compute_kind: "script",
    })
}

/// A token's K and V: four bytes each.
fn block_shape(block_tokens: usize) -> BlockShape {
    BlockShape { layers: 1, block_tokens, kv_heads: 1, head_dim: 2, dtype: KvDtype::F16 }
}

fn pool_blocks(
    bytes: AutoByteSize,
    context_tokens: usize,
    block_tokens: usize,
) -> Result<usize, ScriptedError> {
    let block_bytes = block_tokens * TOKEN_BYTES;
    let blocks = match bytes {
        AutoByteSize::Auto => POOL_TOKENS.max(POOL_CONTEXTS * context_tokens).div_ceil(block_tokens),
        AutoByteSize::Size(size) => size.bytes() as usize / block_bytes,
    };
    // Two blocks are the least that lets a turn grow past a prompt of one; slots are counted in 32 bits.
    let (least, most) = (2, u32::MAX as usize / block_tokens);
    if (least..=most).contains(&blocks) {
        return Ok(blocks);
    }
    Err(ScriptedError::Pool { blocks, block_tokens, least: least * block_bytes, most: most * block_bytes })
}

/// The identity of its K and V: those of equal tokens are equal, also under another script.
fn namespace(tokenizer_digest: &[u8; 32], block_tokens: usize) -> Namespace {
    Namespace::new(&Identity {
        weights_digest: [0; 32],
        weights_mode: "script",
        tokenizer_digest: *tokenizer_digest,
        rope_and_window: "tokens and positions",
        kv_dtype: "f16",
        codec: "f16",
        compute_kind: "script",
        numerics_revision: 1,
        block_tokens: block_tokens as u32,
        segment_tokens: SEGMENT_TOKENS as u32,
        layout_version: 1,
    })
}

#[cfg(test)]
mod tests {
    use turnmill_worker::config::ByteSize;

    use super::*;

    #[test]
    fn a_pool_holds_several_long_contexts_and_at_least_two_blocks() {
        assert_eq!(pool_blocks(AutoByteSize::Auto, 8192, 16).expect("fits"), POOL_TOKENS / 16);
        assert_eq!(pool_blocks(AutoByteSize::Auto, 1 << 20, 16).expect("fits"), 4 << 16);
        let size = |bytes| pool_blocks(ByteSize::new(bytes).into(), 8192, 256);
        assert_eq!(size(1 << 20).expect("fits"), 512);
        for bytes in [4095, u64::from(u32::MAX) * 16] {
            let refused = size(bytes).expect_err("too small or too large").to_string();
            assert!(refused.contains("give from 4096 to "), "{refused}");
        }
    }
}
