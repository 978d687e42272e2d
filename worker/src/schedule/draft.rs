//! A step plan being filled, within its token budget.

use std::collections::HashSet;

use super::sequence::Sequence;
use super::{PlannedSequence, StepPlan};
use crate::kv::PrefixHash;

/// Rows so far and the budget that is left.
#[derive(Debug)]
pub(super) struct Draft {
    plan: StepPlan,
    budget: usize,
    /// Blocks that are full once the step has run.
    completing: HashSet<PrefixHash>,
}

impl Draft {
    /// An empty plan of at most `budget` rows.
    pub fn new(budget: usize) -> Self {
        Self { plan: StepPlan::default(), budget, completing: HashSet::new() }
    }

    /// Whether another row fits.
    pub fn has_room(&self) -> bool {
        self.budget > 0
    }

    /// Whether the plan computes the block of this hash.
    pub fn completes(&self, hash: &PrefixHash) -> bool {
        self.completing.contains(hash)
    }

    /// Plans as many of the sequence's pending tokens as the budget allows; none of one that still waits for blocks. Its
    /// blocks have room for all of them.
    pub fn push(&mut self, sequence: &mut Sequence) {
        let rows = sequence.pending().min(self.budget);
        if rows == 0 || sequence.restoring {
            return;
        }
        let (first, context) = (sequence.computed, sequence.computed + rows);
        self.plan.tokens.extend(&sequence.tokens[first..context]);
        self.plan.positions.extend(first as u32..context as u32);
        self.plan.slots.extend((first..context).map(|position| sequence.table.write_slot(position)));
        self.plan.sequences.push(PlannedSequence {
            id: sequence.id,
            query_tokens: rows as u32,
            context_tokens: context as u32,
            blocks: sequence.table.blocks(context),
            samples: u32::from(context == sequence.tokens.len()),
        });
        self.completing.extend(sequence.completed_by(rows));
        self.budget -= rows;
        sequence.planned = rows;
    }

    /// The plan, unless it has no rows.
    pub fn finish(self) -> Option<StepPlan> {
        (self.plan.rows() > 0).then_some(self.plan)
    }
}
