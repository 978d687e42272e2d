//! An engine, a store and conversations that have their K and V there: what benches of stored K and V run on.
//!
//! Everything is what a worker runs, but for the queue and the tokenizer: prompts are token ids that look random.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use turnmill_schema::{Name, Priority, Sampling};

use super::scramble;
use crate::config::{KvCodec, StoreUrl};
use crate::engine::{
    self, EngineChannel, EngineGone, EngineHandle, EngineSettings, Form, Progress, Reply, Saving,
    SegmentSink, Start,
};
use crate::kv::{Namespace, Segment, SegmentGrid, TokenChain};
use crate::lifecycle::{HeadroomLimits, Lifecycle};
use crate::model::{EngineError, LoadOptions, Model, ModelChoice, ModelError, Tokenizer};
use crate::runner::{RestoreSettings, Restorer};
use crate::schedule::{Limits, SequenceId};
use crate::store::{BlockStore, BlockStoreSettings, StoreError};
use crate::surroundings::Surroundings;

/// Tokens a block.
pub(super) const BLOCK_TOKENS: usize = 16;
/// Everything as a worker has it unless it is told otherwise.
const PARALLEL: usize = 8;
const HOST_CACHE_BYTES: usize = 256 << 20;
const SAVE_QUEUE_BYTES: usize = 64 << 20;
const TRANSFER_BYTES: usize = 8 << 20;
const TIMEOUT: Duration = Duration::from_secs(30);

/// What is measured.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The model file.
    pub model: ModelChoice,
    /// Where K and V are kept.
    pub store: StoreUrl,
    /// How.
    pub codec: KvCodec,
    /// Under which name, so that a process finds what another one stored.
    pub queue: Name,
}

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The first steps failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine's thread ended.
    #[error(transparent)]
    Gone(#[from] EngineGone),
    /// The store cannot be opened or cleared.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operating system.
    #[error("the system refused a thread or a process: {0}")]
    System(#[from] std::io::Error),
    /// The engine did not compute a prompt.
    #[error("the engine did not compute the prompt: {0}")]
    Failed(String),
    /// Something that was stored is not there.
    #[error("only {came} of {wanted} stored tokens came back; look after the object store")]
    NotThere {
        /// Tokens that came back.
        came: usize,
        /// Tokens that were stored.
        wanted: usize,
    },
    /// A process that measured a part ended otherwise than it should.
    #[error("a process that measures a part failed: {0}")]
    Part(String),
    /// Nothing that another process could find.
    #[error("{0} is gone with its process; give a store that others can read")]
    NotShared(StoreUrl),
}

/// Where a prompt's blocks come from and go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// They are computed, and gone with the pool.
    Nowhere,
    /// They are computed and saved.
    Computed,
    /// They come back from the store where the pool lacks them, and what is new is saved.
    Stored,
}

/// A worker's inside.
pub(super) struct Inside {
    pub engine: EngineChannel,
    pub restorer: Restorer<EngineChannel>,
    tokenizer: Arc<Tokenizer>,
    namespace: Namespace,
    vocabulary: u64,
    sequences: u64,
    fresh: u64,
}

/// A prompt, and how it is stored.
pub(super) struct Prompt {
    pub tokens: Vec<u32>,
    pub grid: SegmentGrid,
    /// All segments of its full blocks: what is stored once it was computed.
    pub segments: Vec<Arc<Segment>>,
}

impl Inside {
    /// Loads the model with a pool of `pool_tokens` tokens. `wrap` makes the engine's sink of the store.
    pub fn start(
        subject: &Subject,
        pool_tokens: usize,
        max_sequences: usize,
        wrap: impl FnOnce(&BlockStore) -> Arc<dyn SegmentSink>,
    ) -> Result<Self, BenchError> {
        let load = subject.model.load_options();
        let mut load = LoadOptions { block_tokens: BLOCK_TOKENS, kv_codec: subject.codec, ..load };
        load.pool_bytes = pool_tokens * load.token_bytes(&subject.model.path)?;
        let mut model = Model::load(&subject.model.path, &load, &|_, _| ())?;
        model.warm_up()?;
        let store = BlockStore::open(BlockStoreSettings {
            url: subject.store.clone(),
            queue: subject.queue.clone(),
            shape: model.block_shape,
            codec: subject.codec,
            keys: None,
            save_queue_bytes: SAVE_QUEUE_BYTES,
            host_cache_bytes: HOST_CACHE_BYTES,
            parallel: PARALLEL,
            timeout: TIMEOUT,
            folder_bytes: None,
        })?;
        let settings = EngineSettings {
            limits: Limits {
                max_sequences,
                batch_tokens: 512,
                max_context_tokens: model.context_tokens as u32,
            },
            blocks: model.blocks as u32,
            block_tokens: BLOCK_TOKENS as u32,
            transfer_bytes: TRANSFER_BYTES,
            offload_bytes: 0,
            speculation: None,
        };
        let headroom = HeadroomLimits { low: 0.05, high: 0.1 };
        let lifecycle = Arc::new(Lifecycle::new(headroom, TIMEOUT, Instant::now()));
        let (engine, _thread) =
            engine::spawn(model.engine, settings, Some(wrap(&store)), lifecycle, Surroundings::machine())?;
        let restore = RestoreSettings {
            block_tokens: BLOCK_TOKENS,
            parallel: PARALLEL,
            base: TIMEOUT,
            host_cache_bytes: HOST_CACHE_BYTES,
            choose: false,
        };
        Ok(Self {
            restorer: Restorer::new(store, engine.clone(), restore, Surroundings::machine()),
            engine,
            tokenizer: model.tokenizer,
            namespace: model.namespace.for_tenant("bench"),
            vocabulary: model.config.vocabulary as u64,
            sequences: 0,
            fresh: 0,
        })
    }

    /// The prompt number `seed` of `tokens` tokens: the same in every process.
    pub fn prompt(&self, seed: u64, tokens: usize) -> Prompt {
        let token = |index: u64| (scramble(seed << 32 | index) % self.vocabulary) as u32;
        let tokens: Vec<u32> = (0..tokens as u64).map(token).collect();
        let namespace = self.namespace;
        let grid =
            SegmentGrid { namespace, tenant: "bench".into(), block_tokens: BLOCK_TOKENS, shared_blocks: 0 };
        let chain = TokenChain::new(namespace, BLOCK_TOKENS, tokens.clone());
        let blocks = tokens.len() / BLOCK_TOKENS;
        let segment = |blocks| Arc::new(grid.segment(&tokens, chain.hashes(), &blocks));
        let segments = grid.bounds(blocks).into_iter().map(segment).collect();
        Prompt { tokens, grid, segments }
    }

    /// A prompt that nobody has met.
    pub fn fresh_prompt(&mut self, tokens: usize) -> Prompt {
        self.fresh += 1;
        self.prompt(self.fresh, tokens)
    }

    /// Starts a turn over the prompt that makes `replies` tokens.
    pub async fn begin(
        &mut self,
        prompt: &Prompt,
        replies: u32,
        kept: Kept,
    ) -> Result<(SequenceId, mpsc::Receiver<Progress>), EngineGone> {
        self.sequences += 1;
        let id = SequenceId(self.sequences);
        let sampling = Sampling { temperature: 0.0, ignore_eos: true, ..Sampling::default() };
        let (sender, progress) = mpsc::channel(replies as usize + 3);
        let start = Start {
            id,
            chain: TokenChain::new(self.namespace, BLOCK_TOKENS, prompt.tokens.clone()),
            reply: Reply::new(self.tokenizer.clone(), &sampling, replies, Form::default()),
            sampling,
            max_total_tokens: prompt.tokens.len() as u32 + replies,
            priority: Priority::Interactive,
            alone: false,
            restorable_blocks: if kept == Kept::Stored { usize::MAX } else { 0 },
            saving: (kept != Kept::Nowhere).then(|| Saving { grid: prompt.grid.clone(), only_shared: false }),
            progress: sender,
        };
        self.engine.start(start).await?;
        Ok((id, progress))
    }

    /// Time from a prompt to its first token, its segments restored where the pool lacks them; and the tokens that came back.
    pub async fn first_token(
        &mut self,
        prompt: &Prompt,
        kept: Kept,
    ) -> Result<(Duration, usize), BenchError> {
        let began = Instant::now();
        let (id, mut progress) = self.begin(prompt, 1, kept).await?;
        let mut came = 0;
        loop {
            match progress.recv().await {
                Some(Progress::Room { blocks }) => {
                    came = self.restorer.restore(id, &prompt.segments, blocks).await.tokens;
                    self.engine.end_restore(id).await?;
                }
                Some(Progress::Admitted { .. }) => {}
                Some(Progress::Token(_)) => return Ok((began.elapsed(), came)),
                Some(Progress::Refused(text) | Progress::Failed(text)) => {
                    return Err(BenchError::Failed(text));
                }
                Some(Progress::Stopped(_)) | None => return Err(EngineGone.into()),
            }
        }
    }
}
