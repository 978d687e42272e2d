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
    /// How many of its tokens, proposed ones included, are in the pool once the step ran; its rows are the last of these.
    pub context_tokens: u32,
    /// Its blocks, first to last; they hold at least `context_tokens`.
    pub blocks: Vec<BlockId>,
    /// How many of its rows, the last ones, go through the output head and are sampled: none where more of its prompt follows,
    /// else that of its last known token and one for each proposed token.
    pub samples: u32,
}

impl StepPlan {
    /// Rows in the plan.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Indices of the rows whose logits are wanted, in order.
    pub fn sampled_rows(&self) -> Vec<u32> {
        let mut end = 0;
        let mut rows = Vec::new();
        for sequence in &self.sequences {
            end += sequence.query_tokens;
            rows.extend(end - sequence.samples..end);
        }
        rows
    }

    /// The sequences that sample, each with the tokens of the rows that do: the last one known, then those proposed to
    /// follow it.
    pub fn sampling(&self) -> impl Iterator<Item = (SequenceId, &[u32])> {
        let mut end = 0;
        self.sequences.iter().filter_map(move |sequence| {
            end += sequence.query_tokens as usize;
            let tokens = &self.tokens[end - sequence.samples as usize..end];
            (!tokens.is_empty()).then_some((sequence.id, tokens))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rows_of_a_sequence_sample() {
        let sequence = |id, query_tokens, samples| PlannedSequence {
            id: SequenceId(id),
            query_tokens,
            context_tokens: query_tokens,
            blocks: Vec::new(),
            samples,
        };
        let plan = StepPlan {
            tokens: (10..19).collect(),
            sequences: vec![sequence(1, 1, 1), sequence(2, 3, 0), sequence(3, 3, 3), sequence(4, 2, 1)],
            ..StepPlan::default()
        };
        assert_eq!(plan.sampled_rows(), [0, 4, 5, 6, 8]);
        let sampling: Vec<_> = plan.sampling().map(|(id, tokens)| (id.0, tokens.to_vec())).collect();
        assert_eq!(sampling, [(1, vec![10]), (3, vec![14, 15, 16]), (4, vec![18])]);
    }
}
