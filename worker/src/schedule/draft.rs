//! A step plan being filled, within its token budget.
//!
//! Sequences note their own rows until the plan is complete, because what is proposed is added to rows planned before.

use std::collections::HashSet;

use super::sequence::Sequence;
use super::{PlannedSequence, StepPlan};
use crate::kv::PrefixHash;

/// The budget that is left, and what is computed by what was planned.
#[derive(Debug)]
pub(super) struct Draft {
    rows: usize,
    budget: usize,
    /// Blocks that are full once the step has run.
    completing: HashSet<PrefixHash>,
}

impl Draft {
    /// An empty plan of at most `budget` rows.
    pub fn new(budget: usize) -> Self {
        Self { rows: 0, budget, completing: HashSet::new() }
    }

    /// Whether another row fits.
    pub fn has_room(&self) -> bool {
        self.budget > self.rows
    }

    /// How many more rows fit, where the plan is to have at most `rows`.
    pub fn room_up_to(&self, rows: usize) -> usize {
        rows.min(self.budget).saturating_sub(self.rows)
    }

    /// Whether the plan computes the block of this hash.
    pub fn completes(&self, hash: &PrefixHash) -> bool {
        self.completing.contains(hash)
    }

    /// Plans as many of the sequence's pending tokens as the budget allows; none of one that still waits for blocks. Its
    /// blocks have room for all of them.
    pub fn push(&mut self, sequence: &mut Sequence) {
        let rows = sequence.pending().min(self.budget - self.rows);
        if rows == 0 || sequence.restoring {
            return;
        }
        self.completing.extend(sequence.completed_by(rows));
        self.rows += rows;
        sequence.planned = rows;
    }

    /// Plans rows for what a planned sequence may go on with. Its blocks have room for them, and the plan too.
    pub fn propose(&mut self, sequence: &mut Sequence, tokens: Vec<u32>) {
        self.rows += tokens.len();
        sequence.proposed = tokens;
    }

    /// The plan of what the `running` sequences have noted, unless it has no rows.
    pub fn finish(self, running: &[Sequence]) -> Option<StepPlan> {
        if self.rows == 0 {
            return None;
        }
        let mut plan = StepPlan::default();
        running.iter().filter(|sequence| sequence.planned > 0).for_each(|sequence| add(&mut plan, sequence));
        Some(plan)
    }
}

fn add(plan: &mut StepPlan, sequence: &Sequence) {
    let (first, known) = (sequence.computed, sequence.computed + sequence.planned);
    let context = known + sequence.proposed.len();
    plan.tokens.extend(&sequence.chain.tokens()[first..known]);
    plan.tokens.extend(&sequence.proposed);
    plan.positions.extend(first as u32..context as u32);
    plan.slots.extend((first..context).map(|position| sequence.table.write_slot(position)));
    let samples = if known == sequence.chain.len() { 1 + sequence.proposed.len() } else { 0 };
    plan.sequences.push(PlannedSequence {
        id: sequence.id,
        query_tokens: (context - first) as u32,
        context_tokens: context as u32,
        blocks: sequence.table.blocks(context),
        samples: samples as u32,
    });
}
