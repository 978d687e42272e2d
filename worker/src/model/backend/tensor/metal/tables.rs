//! A step's work as the kernels want it told: sequences, their blocks, and who computes what.
//!
//! Invariant: every query vector of the step is in exactly one join or exactly one prefill task.

use super::records::{Join, PARTITION_TOKENS, SIMDGROUPS, Sequence, Task, vectors_per_simdgroup};
use crate::schedule::StepPlan;

/// A step's addresses and tasks, the same for all layers.
#[derive(Debug, Default)]
pub struct Tables {
    /// Blocks of all sequences, one after the other.
    pub block_tables: Vec<u32>,
    /// One a sequence of the plan.
    pub sequences: Vec<Sequence>,
    /// Partitions of sequences with few query vectors, grouped by their vectors, in order of position.
    pub decode: Vec<Task>,
    /// One a group of partitions.
    pub joins: Vec<Join>,
    /// Tiles of query vectors of all other sequences.
    pub prefill: Vec<Task>,
}

impl Tables {
    /// The work of `plan` where `group` query heads share a KV head.
    pub fn new(plan: &StepPlan, group: usize, head_dim: usize) -> Self {
        let mut tables = Self::default();
        let mut first_row = 0;
        for (index, planned) in plan.sequences.iter().enumerate() {
            let rows = planned.query_tokens as usize;
            tables.sequences.push(Sequence {
                first_row,
                rows: planned.query_tokens,
                first_position: planned.context_tokens - planned.query_tokens,
                first_block: tables.block_tables.len() as u32,
            });
            tables.block_tables.extend(planned.blocks.iter().map(|block| block.0));
            first_row += planned.query_tokens;
            let (vectors, task_vectors) = (rows * group, vectors_per_simdgroup(head_dim));
            // A prefill task keeps all its simdgroups busy only with many vectors, and never cuts the context.
            if rows == 1 || vectors <= 2 * task_vectors {
                let partitions = (planned.context_tokens as usize).div_ceil(PARTITION_TOKENS);
                tables.decode(index as u32, vectors, task_vectors, partitions as u32);
            } else {
                let task =
                    |vector| Task { sequence: index as u32, first_vector: vector as u32, partition: 0 };
                tables.prefill.extend((0..vectors).step_by(SIMDGROUPS * task_vectors).map(task));
            }
        }
        tables
    }

    fn decode(&mut self, sequence: u32, vectors: usize, task_vectors: usize, partitions: u32) {
        for first_vector in (0..vectors as u32).step_by(task_vectors) {
            let first_task = self.decode.len() as u32;
            self.joins.push(Join { sequence, first_vector, first_task, partitions });
            self.decode.extend((0..partitions).map(|partition| Task { sequence, first_vector, partition }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::BlockId;
    use crate::schedule::{PlannedSequence, SequenceId};

    fn plan(sequences: &[(u32, u32)]) -> StepPlan {
        let planned = sequences.iter().zip(0..).map(|((query_tokens, context_tokens), id)| PlannedSequence {
            id: SequenceId(id),
            query_tokens: *query_tokens,
            context_tokens: *context_tokens,
            blocks: (0..context_tokens.div_ceil(16)).map(|block| BlockId(100 * id as u32 + block)).collect(),
            samples: 1,
        });
        StepPlan { sequences: planned.collect(), ..StepPlan::default() }
    }

    #[test]
    fn every_query_vector_is_computed_once_over_its_whole_context() {
        let sequences = [(1, 1), (1, 700), (3, 256), (5, 257), (90, 1000), (2, 2)];
        for (group, head_dim) in [(1, 64), (3, 64), (4, 256), (9, 128), (40, 32)] {
            let tables = Tables::new(&plan(&sequences), group, head_dim);
            let width = vectors_per_simdgroup(head_dim);
            for (index, (rows, context)) in sequences.iter().enumerate() {
                let vectors = *rows as usize * group;
                let mut covered = vec![0; vectors];
                for join in tables.joins.iter().filter(|join| join.sequence as usize == index) {
                    let first = join.first_vector as usize;
                    covered[first..vectors.min(first + width)].iter_mut().for_each(|times| *times += 1);
                    let tasks = &tables.decode[join.first_task as usize..][..join.partitions as usize];
                    assert_eq!(join.partitions as usize, (*context as usize).div_ceil(PARTITION_TOKENS));
                    for (partition, task) in (0..).zip(tasks) {
                        let Join { sequence, first_vector, .. } = *join;
                        assert_eq!(*task, Task { sequence, first_vector, partition });
                    }
                }
                for task in tables.prefill.iter().filter(|task| task.sequence as usize == index) {
                    let first = task.first_vector as usize;
                    let end = vectors.min(first + SIMDGROUPS * width);
                    covered[first..end].iter_mut().for_each(|times| *times += 1);
                    assert_eq!(task.partition, 0);
                }
                assert_eq!(covered, vec![1; vectors], "{group} {head_dim} {index}");
            }
        }
    }

    #[test]
    fn sequences_know_their_rows_positions_and_blocks() {
        let tables = Tables::new(&plan(&[(1, 20), (4, 30), (1, 1)]), 3, 64);
        let fields = |sequence: &Sequence| sequence.words().collect::<Vec<_>>();
        let found: Vec<_> = tables.sequences.iter().map(fields).collect();
        assert_eq!(found, [[0, 1, 19, 0], [1, 4, 26, 2], [5, 1, 0, 4]]);
        assert_eq!(tables.block_tables, [0, 1, 100, 101, 200]);
    }
}
