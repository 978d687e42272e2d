//! Segments that come back into the pool, for sequences that wait for them.
//!
//! Invariants: a segment is written whole before its blocks are sealed, between two steps; every import is answered; copies
//! keep to the step's [`Budget`].

use std::collections::VecDeque;

use tokio::sync::oneshot;
use tracing::Span;

use super::export::Budget;
use crate::kv::SegmentData;
use crate::model::Engine;
use crate::schedule::{Scheduler, SequenceId};

/// A segment for a sequence.
pub(super) struct Import {
    pub id: SequenceId,
    pub data: SegmentData,
    /// What log lines about it are written in.
    pub span: Span,
    /// Whether its blocks are the sequence's now.
    pub answer: oneshot::Sender<bool>,
}

/// Segments that wait for their copy, in the order they came. Who sends one waits for its answer, so there are at most as many
/// as restoring turns.
#[derive(Default)]
pub(super) struct Imports(VecDeque<Import>);

impl Imports {
    pub fn push(&mut self, import: Import) {
        self.0.push_back(import);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Copies while there is budget.
    pub fn copy(&mut self, scheduler: &mut Scheduler, model: &mut impl Engine, budget: &mut Budget) {
        while budget.is_left()
            && let Some(import) = self.0.pop_front()
        {
            if import.answer.is_closed() {
                continue;
            }
            let _of_the_turn = import.span.enter();
            let taken = take(import.id, &import.data, scheduler, model);
            budget.spend(import.data.data.len());
            // An error means that nobody waits any more.
            let _ = import.answer.send(taken);
        }
    }
}

fn take(id: SequenceId, data: &SegmentData, scheduler: &mut Scheduler, model: &mut impl Engine) -> bool {
    let first = data.segment.first_block;
    let count = data.segment.tokens.len() / scheduler.pool().block_tokens() as usize;
    let Some(blocks) = scheduler.restore(id, &(first..first + count)) else { return false };
    // The first ones may be there already, and the last token's block is not the sequence's to get.
    let sealed = scheduler.restoring().find(|(other, _)| *other == id).map_or(0, |(_, sealed)| sealed);
    let skip = (sealed - first).min(count);
    match model.write_blocks(skip, &blocks, &data.data) {
        Ok(()) => {
            scheduler.seal_restored(id, blocks.len());
            true
        }
        Err(error) => {
            tracing::warn!(%error, "a segment of blocks is not restored");
            false
        }
    }
}
