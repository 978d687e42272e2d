//! The port by which turns reach an engine ([`EngineHandle`]), and the engine: the step loop, on an OS thread of its own.
//!
//! Owns: scheduler, model, the replies being made, and the copies of blocks between the pool and memory. The async side sends
//! commands through one bounded channel ([`EngineChannel`]) and gets each turn's tokens through a channel of the turn's own, which
//! has room for every token the turn may make. So the engine never waits for the async side, and nothing async runs inside a step.

mod channel;
mod export;
mod guide;
mod import;
mod offload;
mod pace;
mod reply;
mod samples;
mod sink;
mod step_loop;

use std::future::Future;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::mpsc;
use turnmill_schema::{Part, Priority, Sampling, TokenLogprobs};

pub use channel::EngineChannel;
pub use export::Saving;
pub use guide::{Begin, Guide, Thinking};
pub use reply::{Added, Form, Reply};
pub use sink::SegmentSink;
pub use step_loop::{Pause, StepLoop};

use self::pace::Pace;
use crate::kv::{SegmentData, TokenChain};
use crate::lifecycle::Lifecycle;
use crate::model::Engine;
use crate::schedule::{Limits, SequenceId, Speculation};
use crate::surroundings::Surroundings;

/// A turn to be computed.
pub struct Start {
    /// Unique in this worker.
    pub id: SequenceId,
    /// Its prompt, at least one token, and then all tokens of `reply`. The engine owns them until the turn is over: they come
    /// back with the last token or in [`Progress::Stopped`], and are dropped if the turn is refused or fails.
    pub chain: TokenChain,
    /// The reply so far: empty, or what earlier attempts published.
    pub reply: Reply,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Tokens of prompt and reply at most.
    pub max_total_tokens: u32,
    /// Who is admitted first.
    pub priority: Priority,
    /// Give it steps of its own.
    pub alone: bool,
    /// How many of its first blocks may come from elsewhere. If fewer are in the pool when it is admitted,
    /// [`Progress::Room`] says so, and it is computed after [`EngineHandle::end_restore`].
    pub restorable_blocks: usize,
    /// What of its blocks is kept outside the pool; none: nothing.
    pub saving: Option<Saving>,
    /// Where its progress goes; with room for every token it may make, and three more entries: [`Progress::Room`],
    /// [`Progress::Admitted`], and a last one if the turn is stopped, refused or fails. No entry follows the last token, so
    /// there is never more to say.
    pub progress: mpsc::Sender<Progress>,
}

/// What becomes of a turn in the engine. The last entry is a token with [`MadeToken::finished`], or one of
/// [`Progress::Stopped`], [`Progress::Refused`] and [`Progress::Failed`].
pub enum Progress {
    /// The turn was admitted, and there is room for the blocks that come from elsewhere.
    Room {
        /// How many were found in the pool.
        blocks: usize,
    },
    /// It was admitted.
    Admitted {
        /// Prompt tokens that were not computed again.
        cached_tokens: u32,
        /// When.
        at: Instant,
    },
    /// A token was made.
    Token(MadeToken),
    /// It was stopped, and its tokens come back: the prompt, and all tokens of its reply.
    Stopped(TokenChain),
    /// It can never be computed here; the sentence is for the turn's result.
    Refused(String),
    /// Computing it failed; another attempt may do better.
    Failed(String),
}

/// A token of a reply.
pub struct MadeToken {
    /// Its id.
    pub id: u32,
    /// When it was sampled.
    pub at: Instant,
    /// The text it completed, in pieces of one part each.
    pub pieces: Vec<(Part, String)>,
    /// Log-probabilities, where the turn asked for them.
    pub logprobs: Option<TokenLogprobs>,
    /// What comes back with the last token.
    pub finished: Option<Box<Finished>>,
}

/// A turn whose reply has ended.
pub struct Finished {
    /// The whole reply.
    pub reply: Reply,
    /// The prompt, and all tokens of the reply.
    pub chain: TokenChain,
}

/// Extent and limits of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineSettings {
    /// Bounds of steps and sequences.
    pub limits: Limits,
    /// Blocks of the pool, all of which the model holds.
    pub blocks: u32,
    /// Tokens a block.
    pub block_tokens: u32,
    /// Bytes copied between pool and memory, at most, between two steps; a segment that is begun is copied whole.
    pub transfer_bytes: usize,
    /// Bytes of preempted sequences' blocks that are kept in memory.
    pub offload_bytes: usize,
    /// Tokens that are proposed and verified in the same step; none: one token a sequence and step.
    pub speculation: Option<Speculation>,
}

/// The engine is gone: its thread ended, which only a bug in it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine's thread has ended; restart the worker and report its log")]
pub struct EngineGone;

/// The port to the engine: a runner gives it turns, and hears of them through [`Start::progress`]. When every clone
/// is dropped, the engine ends.
pub trait EngineHandle: Clone + Send + Sync + 'static {
    /// Queues a turn. What the engine logs about it is logged in the caller's span.
    fn start(&self, start: Start) -> impl Future<Output = Result<(), EngineGone>> + Send;

    /// Gives a restoring turn its next segment, and waits until it is in the pool. False: the turn is not restoring any more,
    /// or lacks what comes before the segment.
    fn import(
        &self,
        id: SequenceId,
        data: SegmentData,
    ) -> impl Future<Output = Result<bool, EngineGone>> + Send;

    /// All that comes back for a restoring turn has come; it is computed from now on.
    fn end_restore(&self, id: SequenceId) -> impl Future<Output = Result<(), EngineGone>> + Send;

    /// Drops a turn, which ends with [`Progress::Stopped`]; its blocks are free before the next step. With `keep`, what was
    /// computed is saved first, as at its end.
    fn stop(&self, id: SequenceId, keep: bool) -> impl Future<Output = Result<(), EngineGone>> + Send;

    /// Prompt tokens that this engine computes in a second, as far as it has shown.
    fn prefill_rate(&self) -> f64;

    /// Whether the engine has ended.
    fn is_gone(&self) -> bool;

    /// Completes when the engine has ended.
    fn ended(&self) -> impl Future<Output = ()> + Send;
}

/// An engine and the way to it. It computes nothing until somebody runs the loop: [`spawn`] does on a thread, a simulation between
/// two of its own steps. Segments of turns that ask for it are saved to `sink`.
pub fn new<M: Engine>(
    model: M,
    settings: EngineSettings,
    sink: Option<Arc<dyn SegmentSink>>,
    lifecycle: Arc<Lifecycle>,
    surroundings: Surroundings,
) -> (EngineChannel, StepLoop<M>) {
    // A worker claims few more turns than it may run at once; one that finds the channel full waits for a step.
    let (commands, inbox) = mpsc::channel(2 * settings.limits.max_sequences);
    let pace = Arc::new(Pace::default());
    let reports = (lifecycle, pace);
    let step_loop = StepLoop::new(model, settings, sink, inbox, (reports.clone(), surroundings.clone()));
    (EngineChannel::new(commands, reports, surroundings), step_loop)
}

/// Starts the engine's thread.
pub fn spawn(
    model: impl Engine + 'static,
    settings: EngineSettings,
    sink: Option<Arc<dyn SegmentSink>>,
    lifecycle: Arc<Lifecycle>,
    surroundings: Surroundings,
) -> std::io::Result<(EngineChannel, JoinHandle<()>)> {
    let (channel, step_loop) = new(model, settings, sink, lifecycle, surroundings);
    let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || step_loop.run())?;
    Ok((channel, thread))
}
