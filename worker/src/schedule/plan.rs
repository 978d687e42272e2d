//! What one step computes: a ragged batch without padding.
//!
//! Invariant: the rows of a sequence are contiguous, in position order, and in the order of
//! [`StepPlan::sequences`].

use crate::kv::BlockId;

/// A sequence within this worker: one running turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// One forward pass over `T` token rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// Token ids, `[T]`.
    pub tokens: Vec<u32>,
    /// Position of each token in its sequence, `[T]`.
    pub positions: Vec<u32>,
    /// Where each token's K and V go, `[T]`: `block * block_tokens + offset`.
    pub slots: Vec<u32>,
    /// Whose rows these are.
    pub sequences: Vec<PlannedSequence>,
}

/// A sequence's share of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedSequence {
    /// Whose.
    pub id: SequenceId,
    /// How many rows of the plan are its.
    pub query_tokens: u32,
    /// How many of its tokens are in the pool once the step ran; its rows are the last of these.
    pub context_tokens: u32,
    /// Its blocks, first to last; they hold at least `context_tokens`.
    pub blocks: Vec<BlockId>,
    /// Whether its last row goes through the output head and is sampled.
    pub samples: bool,
}

impl StepPlan {
    /// Rows in the plan.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Index of the row whose logits are wanted, for each sampling sequence in order.
    pub fn sampled_rows(&self) -> Vec<u32> {
        let mut end = 0;
        let mut rows = Vec::new();
        for sequence in &self.sequences {
            end += sequence.query_tokens;
            if sequence.samples {
                rows.push(end - 1);
            }
        }
        rows
    }
}
