//! A step's addresses, shared by all layers: where its rows write, what they read, and who reads the same.
//!
//! Invariant: a sequence is read split by split, or by its rows, and never both ways; which of them changes no bit.

use std::collections::HashMap;
use std::ops::Range;

use crate::schedule::StepPlan;

/// Positions in a context split of attention. Changing it changes bits: bump the numerics revision.
pub const SPLIT_TOKENS: usize = 256;
/// A sequence with more rows than this has enough of them to read its context alone.
const FEW_ROWS: usize = 8;
/// Rows that read a shared split together at most.
const ROWS_TOGETHER: usize = 64;

/// Where the rows of a step write and what they read.
pub struct StepAddresses {
    /// Position of each row, `[T]`.
    pub positions: Vec<u32>,
    /// Slot of each row, `[T]`.
    pub slots: Vec<u32>,
    /// Whose rows these are, in order.
    pub sequences: Vec<SequenceRows>,
    /// Every split of those sequences that are read split by split.
    pub splits: Vec<SplitReaders>,
}

/// One sequence's rows in a step.
pub struct SequenceRows {
    /// Its rows of the step.
    pub rows: Range<usize>,
    /// Position of its first row.
    pub first_position: usize,
    /// Its blocks.
    pub blocks: Vec<u32>,
    /// Where its splits are, in order, if it is read split by split: it has few rows, and either a long context or one that it
    /// shares. Otherwise nothing.
    pub by_split: Vec<SplitPlace>,
}

/// Where a sequence's part of a split is.
pub struct SplitPlace {
    /// Index into [`StepAddresses::splits`].
    pub index: usize,
    /// Its first row among those of all readers.
    pub first_row: usize,
}

/// A split and who reads it together.
pub struct SplitReaders {
    /// Which split.
    pub split: usize,
    /// Indices of sequences that have the same blocks there.
    pub sequences: Vec<usize>,
}

impl SequenceRows {
    /// Position of a row of the step.
    pub fn position(&self, row: usize) -> usize {
        self.first_position + row - self.rows.start
    }

    /// Its blocks of a split that its first row sees whole, if it does.
    fn whole_split(&self, split: usize, block_tokens: usize) -> Option<&[u32]> {
        let (start, end) = (split * SPLIT_TOKENS, (split + 1) * SPLIT_TOKENS);
        (end <= self.first_position + 1)
            .then(|| &self.blocks[start / block_tokens..end.div_ceil(block_tokens)])
    }

    /// Number of splits its last row sees.
    pub fn splits(&self) -> usize {
        self.position(self.rows.end).div_ceil(SPLIT_TOKENS)
    }
}

impl StepAddresses {
    /// Collects the addresses of `plan`.
    pub fn new(plan: &StepPlan, block_tokens: usize) -> Self {
        let mut end = 0;
        let sequences = plan.sequences.iter().map(|sequence| {
            let rows = sequence.query_tokens as usize;
            end += rows;
            SequenceRows {
                rows: end - rows..end,
                first_position: sequence.context_tokens as usize - rows,
                blocks: sequence.blocks.iter().map(|block| block.0).collect(),
                by_split: Vec::new(),
            }
        });
        let mut sequences: Vec<_> = sequences.collect();
        let splits = read_by_split(&mut sequences, block_tokens);
        Self { positions: plan.positions.clone(), slots: plan.slots.clone(), sequences, splits }
    }
}

/// Finds the sequences that are read split by split, marks them, and lists their splits. A prefix is shared from its first block on
/// or not at all, so the first split tells who shares.
fn read_by_split(sequences: &mut [SequenceRows], block_tokens: usize) -> Vec<SplitReaders> {
    let first_split = |sequence: &SequenceRows| match sequence.rows.len() <= FEW_ROWS {
        true => sequence.whole_split(0, block_tokens).map(<[u32]>::to_vec),
        false => None,
    };
    let firsts: Vec<Option<Vec<u32>>> = sequences.iter().map(first_split).collect();
    let by_split: Vec<usize> = (0..sequences.len())
        .filter(|index| {
            let same = |other: usize| other != *index && firsts[other] == firsts[*index];
            firsts[*index].is_some() && (sequences[*index].splits() > 1 || (0..firsts.len()).any(same))
        })
        .collect();
    let last = by_split.iter().map(|index| sequences[*index].splits()).max().unwrap_or(0);
    let mut splits = Vec::new();
    for split in 0..last {
        let mut readers: HashMap<&[u32], Vec<usize>> = HashMap::new();
        for index in by_split.iter().copied().filter(|index| split < sequences[*index].splits()) {
            match sequences[index].whole_split(split, block_tokens) {
                Some(blocks) => readers.entry(blocks).or_default().push(index),
                None => splits.push(SplitReaders { split, sequences: vec![index] }),
            }
        }
        // In the order of their first sequence, so that a step is the same whenever it is made.
        let mut readers: Vec<Vec<usize>> = readers.into_values().collect();
        readers.sort_unstable();
        let together = ROWS_TOGETHER / FEW_ROWS;
        for sequences in readers.iter().flat_map(|readers| readers.chunks(together)) {
            splits.push(SplitReaders { split, sequences: sequences.to_vec() });
        }
    }
    for (index, readers) in splits.iter().enumerate() {
        let mut first_row = 0;
        for reader in &readers.sequences {
            let sequence = &mut sequences[*reader];
            sequence.by_split.push(SplitPlace { index, first_row });
            first_row += sequence.rows.len();
        }
    }
    splits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::BlockId;
    use crate::schedule::{PlannedSequence, SequenceId};

    const BLOCK: usize = 16;

    /// A plan of sequences, each with its rows, its context, and how many of its first blocks all sequences share.
    fn plan(sequences: &[(u32, u32, u32)]) -> StepPlan {
        let planned = sequences.iter().zip(1..).map(|((rows, context, common), index)| PlannedSequence {
            id: SequenceId(index),
            query_tokens: *rows,
            context_tokens: *context,
            blocks: (0..context.div_ceil(16))
                .map(|block| BlockId(if block < *common { block } else { index as u32 * 1000 + block }))
                .collect(),
            samples: 1,
        });
        StepPlan { sequences: planned.collect(), ..StepPlan::default() }
    }

    fn splits(sequences: &[(u32, u32, u32)]) -> Vec<(usize, Vec<usize>)> {
        let addresses = StepAddresses::new(&plan(sequences), BLOCK);
        addresses.splits.into_iter().map(|readers| (readers.split, readers.sequences)).collect()
    }

    #[test]
    fn who_has_the_same_blocks_reads_them_together() {
        // Splits 0 and 1 are everybody's; the third sequence's rows are too many; the fourth's context is short and its own.
        let found = splits(&[(1, 700, 32), (2, 600, 40), (9, 700, 40), (1, 256, 0)]);
        assert_eq!(found, [(0, vec![0, 1]), (1, vec![0, 1]), (2, vec![0]), (2, vec![1])]);
    }

    #[test]
    fn a_long_context_of_ones_own_is_read_split_by_split() {
        assert_eq!(splits(&[(1, 600, 0), (30, 600, 0)]), [(0, vec![0]), (1, vec![0]), (2, vec![0])]);
        assert!(splits(&[(1, 200, 0)]).is_empty());
    }

    #[test]
    fn a_split_that_is_not_seen_whole_is_read_alone() {
        // The rows of the second begin at position 254, which does not see 255.
        assert_eq!(splits(&[(1, 300, 16), (2, 256, 16)]), [(0, vec![0]), (1, vec![0])]);
        assert_eq!(splits(&[(1, 300, 16), (1, 256, 16)]), [(0, vec![0, 1]), (1, vec![0])]);
    }

    #[test]
    fn many_readers_are_cut_into_groups() {
        let found = splits(&[(1, 256, 16); 9]);
        let sizes: Vec<usize> = found.iter().map(|(_, sequences)| sequences.len()).collect();
        assert_eq!(sizes.iter().sum::<usize>(), 9);
        assert!(sizes.iter().all(|size| *size <= ROWS_TOGETHER / FEW_ROWS), "{sizes:?}");
    }
}
