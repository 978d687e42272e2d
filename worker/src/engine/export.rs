//! Segments that are to be saved, until their blocks were copied out of the pool.
//!
//! Invariants: blocks are read by their hash between two steps, so what is saved is what the hash says; a segment that was
//! announced is saved or withdrawn, whatever happens; copies keep to the step's [`Budget`]; the queue is bounded.

use std::collections::VecDeque;
use std::sync::Arc;

use tracing::Span;

use super::SegmentSink;
use crate::kv::{BlockPool, PrefixHash, Segment, SegmentData, SegmentGrid};
use crate::model::Engine;
use crate::observe::metrics;

/// Segments that wait to be copied. At 256 tokens a segment: more than fit most pools.
const LONGEST: usize = 1024;

/// Bytes that may still be copied between pool and memory before the next step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget(usize);

impl Budget {
    pub fn new(bytes: usize) -> Self {
        Self(bytes)
    }

    /// No step is held up: as much as there is.
    pub fn unlimited() -> Self {
        Self(usize::MAX)
    }

    /// Whether anything more may be copied. What is begun is copied whole.
    pub fn is_left(self) -> bool {
        self.0 > 0
    }

    pub fn spend(&mut self, bytes: usize) {
        self.0 = self.0.saturating_sub(bytes);
    }
}

/// Which of a sequence's segments are to be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Those that stay as they are however long the conversation gets.
    Final,
    /// The short last one as well.
    All,
    /// All of them, because another worker goes on with the turn.
    Checkpoint,
}

/// What of a turn's K and V is kept outside the pool.
#[derive(Clone, Debug)]
pub struct Saving {
    /// How its tokens are cut into segments.
    pub grid: SegmentGrid,
    /// Nobody comes back to the conversation: only what it shares with others is worth keeping.
    pub only_shared: bool,
}

/// The queue.
pub(super) struct Exports {
    sink: Option<Arc<dyn SegmentSink>>,
    queue: VecDeque<Export>,
}

/// A segment that was announced; withdrawn when it is dropped.
struct Export {
    sink: Arc<dyn SegmentSink>,
    segment: Arc<Segment>,
    blocks: Vec<PrefixHash>,
    /// Of the turn that offered it.
    span: Span,
    saved: bool,
}

impl Drop for Export {
    fn drop(&mut self) {
        if !self.saved {
            metrics::segment_withdrawn();
            self.sink.withdraw(&self.segment.id);
        }
    }
}

impl Exports {
    pub fn new(sink: Option<Arc<dyn SegmentSink>>) -> Self {
        Self { sink, queue: VecDeque::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether the sink has no room for the next segment.
    pub fn is_held_up(&self) -> bool {
        self.queue.front().is_some_and(|next| !next.sink.has_room(&next.segment))
    }

    /// Queues the wanted segments of a sequence whose full blocks have `hashes`, from block `from` on, but for those that are
    /// kept already. Returns the first block that is not in a final segment. To be called in the turn's span.
    pub fn offer(
        &mut self,
        saving: &Saving,
        (tokens, hashes): (&[u32], &[PrefixHash]),
        wanted: Wanted,
        from: usize,
    ) -> usize {
        let Some(sink) = &self.sink else { return from };
        let grid = &saving.grid;
        let shared_only = saving.only_shared && wanted != Wanted::Checkpoint;
        let blocks = if shared_only { hashes.len().min(grid.shared_blocks) } else { hashes.len() };
        let mut next = from;
        for segment in grid.bounds(blocks) {
            let is_final = grid.is_final(&segment);
            if (is_final && segment.end <= from) || (wanted == Wanted::Final && !is_final) {
                continue;
            }
            if self.queue.len() >= LONGEST {
                // Offered again after the next step, unless this was the last.
                if wanted != Wanted::Final {
                    metrics::segment_withdrawn();
                }
                break;
            }
            if is_final {
                next = segment.end;
            }
            if sink.announce(&grid.id(hashes, &segment)) {
                let export = Export {
                    sink: sink.clone(),
                    blocks: hashes[segment.clone()].to_vec(),
                    segment: Arc::new(grid.segment(tokens, hashes, &segment)),
                    span: Span::current(),
                    saved: false,
                };
                self.queue.push_back(export);
            }
        }
        next
    }

    /// Copies queued segments out of the pool while there is budget.
    pub fn copy(&mut self, pool: &BlockPool, model: &impl Engine, budget: &mut Budget) {
        while budget.is_left()
            && !self.is_held_up()
            && let Some(mut export) = self.queue.pop_front()
        {
            // Evicted meanwhile: a turn that needs it computes it.
            let Some(blocks) = pool.find(&export.blocks) else { continue };
            match model.read_blocks(&blocks) {
                Ok(data) => {
                    budget.spend(data.len());
                    export.saved = true;
                    export.sink.save(SegmentData { segment: export.segment.clone(), data: data.into() });
                }
                Err(error) => {
                    export.span.in_scope(|| tracing::warn!(%error, "a segment of blocks is not saved"));
                }
            }
        }
    }
}
