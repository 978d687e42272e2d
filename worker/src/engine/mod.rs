//! The step loop on its own OS thread, and the handle by which turns reach it.
//!
//! Owns: scheduler, model and the replies being made. The async side sends commands through one bounded channel
//! and gets each turn's tokens through a channel of the turn's own, which has room for every token the turn
//! may make. So the engine never waits for the async side, and nothing async runs inside a step.

mod reply;
mod step_loop;

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::mpsc;
use turnmill_schema::{FinishReason, Priority, Sampling, TokenLogprobs};

pub use reply::{Added, Reply};

use crate::kv::{BlockPool, Namespace};
use crate::lifecycle::Lifecycle;
use crate::model::Engine;
use crate::schedule::{Limits, Scheduler, SequenceId};

/// A turn to be computed.
pub struct Start {
    /// Unique in this worker.
    pub id: SequenceId,
    /// Its prompt, at least one token.
    pub prompt: Vec<u32>,
    /// The reply so far: empty, or what earlier attempts published.
    pub reply: Reply,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Tokens of prompt and reply at most.
    pub max_total_tokens: u32,
    /// Whose blocks it shares.
    pub namespace: Namespace,
    /// Who is admitted first.
    pub priority: Priority,
    /// Give it steps of its own.
    pub alone: bool,
    /// Where its progress goes; with room for every token it may make, and two more entries.
    pub progress: mpsc::Sender<Progress>,
}

/// What becomes of a turn in the engine. The last entry is a token with a finish, or a failure.
pub enum Progress {
    /// It was admitted; so many prompt tokens were found in the pool.
    Admitted {
        /// Prompt tokens that were not computed again.
        cached_tokens: u32,
    },
    /// A token was made.
    Token(MadeToken),
    /// It can never be computed here; the sentence is for the turn's result.
    Refused(String),
    /// Computing it failed; another attempt may do better.
    Failed(String),
}

/// A token of a reply.
pub struct MadeToken {
    /// Its id.
    pub id: u32,
    /// The text it completed.
    pub text: String,
    /// Log-probabilities, where the turn asked for them.
    pub logprobs: Option<TokenLogprobs>,
    /// Set with the last token.
    pub finish: Option<FinishReason>,
    /// The whole reply, with the last token.
    pub reply: Option<Box<Reply>>,
}

enum Command {
    Start(Box<Start>),
    Stop(SequenceId),
}

/// The engine is gone: its thread ended, which only a bug in it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine's thread has ended; restart the worker and report its log")]
pub struct EngineGone;

/// Sends turns to the engine. When every handle is dropped, the engine's thread ends.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::Sender<Command>,
    lifecycle: Arc<Lifecycle>,
}

impl EngineHandle {
    /// Queues a turn.
    pub async fn start(&self, start: Start) -> Result<(), EngineGone> {
        // Busy from here on: an engine that never takes the turn up is stalled too.
        self.lifecycle.engine().set_busy(true, std::time::Instant::now());
        self.commands.send(Command::Start(Box::new(start))).await.map_err(|_| EngineGone)
    }

    /// Drops a turn; its blocks are free before the next step.
    pub async fn stop(&self, id: SequenceId) -> Result<(), EngineGone> {
        self.commands.send(Command::Stop(id)).await.map_err(|_| EngineGone)
    }

    /// Whether the engine's thread has ended.
    pub fn is_gone(&self) -> bool {
        self.commands.is_closed()
    }

    /// Completes when the engine's thread has ended.
    pub async fn ended(&self) {
        self.commands.closed().await;
    }
}

/// Starts the engine's thread over a pool of `blocks` blocks, all of which `model` holds.
pub fn spawn(
    model: impl Engine + 'static,
    limits: Limits,
    blocks: u32,
    block_tokens: u32,
    lifecycle: Arc<Lifecycle>,
) -> std::io::Result<(EngineHandle, JoinHandle<()>)> {
    // A worker claims no more turns than it may run at once, each with one start and at most one stop.
    let (commands, inbox) = mpsc::channel(2 * limits.max_sequences);
    let scheduler = Scheduler::new(limits, BlockPool::new(blocks, block_tokens));
    let step_loop = step_loop::StepLoop::new(model, scheduler, inbox, lifecycle.clone());
    let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || step_loop.run())?;
    Ok((EngineHandle { commands, lifecycle }, thread))
}
