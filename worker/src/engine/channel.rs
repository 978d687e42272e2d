//! The handle of a step loop: commands go to it through one bounded channel.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use super::import::Import;
use super::pace::Pace;
use super::{EngineGone, EngineHandle, Start};
use crate::kv::SegmentData;
use crate::lifecycle::Lifecycle;
use crate::schedule::SequenceId;
use crate::surroundings::Surroundings;

/// What a step loop is told.
pub(super) enum Command {
    /// With the span that log lines about the turn are written in.
    Start(Box<Start>, Span),
    Import(Import),
    EndRestore(SequenceId),
    Stop {
        id: SequenceId,
        keep: bool,
    },
}

/// Sends turns to a step loop. When every clone is dropped, the loop ends.
#[derive(Clone)]
pub struct EngineChannel {
    commands: mpsc::Sender<Command>,
    lifecycle: Arc<Lifecycle>,
    pace: Arc<Pace>,
    surroundings: Surroundings,
}

impl EngineChannel {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        (lifecycle, pace): (Arc<Lifecycle>, Arc<Pace>),
        surroundings: Surroundings,
    ) -> Self {
        Self { commands, lifecycle, pace, surroundings }
    }

    async fn send(&self, command: Command) -> Result<(), EngineGone> {
        self.commands.send(command).await.map_err(|_| EngineGone)
    }
}

impl EngineHandle for EngineChannel {
    async fn start(&self, start: Start) -> Result<(), EngineGone> {
        // Busy from here on: an engine that never takes the turn up is stalled too.
        self.lifecycle.engine().set_busy(true, self.surroundings.now());
        self.send(Command::Start(Box::new(start), Span::current())).await
    }

    async fn import(&self, id: SequenceId, data: SegmentData) -> Result<bool, EngineGone> {
        let (answer, taken) = oneshot::channel();
        self.send(Command::Import(Import { id, data, span: Span::current(), answer })).await?;
        taken.await.map_err(|_| EngineGone)
    }

    async fn end_restore(&self, id: SequenceId) -> Result<(), EngineGone> {
        self.send(Command::EndRestore(id)).await
    }

    async fn stop(&self, id: SequenceId, keep: bool) -> Result<(), EngineGone> {
        self.send(Command::Stop { id, keep }).await
    }

    fn prefill_rate(&self) -> f64 {
        self.pace.prefill_rate()
    }

    fn is_gone(&self) -> bool {
        self.commands.is_closed()
    }

    async fn ended(&self) {
        self.commands.closed().await;
    }
}
