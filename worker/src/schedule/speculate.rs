//! Proposed tokens: rows that decoding sequences get for tokens they may go on with, so that one step makes several.
//!
//! The sampler of the rows accepts a proposed token if it is the one sampled before it, so what a sequence says does
//! not depend on what was proposed; what follows a rejected one is overwritten by the next step.
//!
//! Invariants: proposals take what decoding sequences and prompts leave of the budget, so nobody's row waits for one; a
//! step has at most [`Speculation::rows`] rows with them, so that steps with prompts or many sequences have none; blocks
//! taken for them leave one for every running sequence to grow by, and are taken only while nobody waits for blocks.
//! A sequence that runs alone gets none.

use super::draft::Draft;
use super::{Scheduler, SequenceId};

/// How much is proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speculation {
    /// Tokens for a sequence in a step, at most.
    pub tokens: usize,
    /// Rows of a step, at most, for it to have proposals. Beyond, a row costs a step about what it saves.
    pub rows: usize,
}

impl Speculation {
    /// Rows of a step at which a further one stops being almost free on a CPU: its weights are read once for all of them, and
    /// products take about this many rows in one pass.
    const ROWS: usize = 16;

    /// At most `tokens` for a sequence.
    pub fn new(tokens: usize) -> Self {
        Self { tokens, rows: Self::ROWS.max(1 + tokens) }
    }
}

/// Changes what is proposed for a sequence: it may cut the tokens, or put at most as many others as it is told in their place.
pub type Judge<'a> = &'a mut dyn FnMut(SequenceId, &mut Vec<u32>, usize);

impl Scheduler {
    /// From now on decoding sequences get proposals as `speculation` says, or none.
    pub fn speculate(&mut self, speculation: Option<Speculation>) {
        self.speculation = speculation;
    }

    /// Shares out rows among what decoding sequences of the plan may go on with.
    pub(super) fn propose(&mut self, draft: &mut Draft, judge: Judge<'_>) {
        let Some(Speculation { tokens, rows }) = self.speculation else { return };
        let room = draft.room_up_to(rows);
        if room == 0 {
            return;
        }
        let decoding = self.running.iter_mut().enumerate().filter(|(_, sequence)| sequence.decodes());
        let guesses = decoding.map(|(index, sequence)| {
            let most = tokens.min(sequence.room_for_guesses());
            let mut guess = sequence.guess(most);
            judge(sequence.id, &mut guess, most);
            guess.truncate(most);
            (index, guess)
        });
        let guesses: Vec<(usize, Vec<u32>)> = guesses.filter(|(_, guess)| !guess.is_empty()).collect();
        let wanted: Vec<usize> = guesses.iter().map(|(_, guess)| guess.len()).collect();
        for ((index, mut guess), share) in guesses.into_iter().zip(share_out(&wanted, room)) {
            guess.truncate(self.room_in_blocks(index, share));
            draft.propose(&mut self.running[index], guess);
        }
    }

    /// How many of `wanted` tokens beyond its known ones the sequence has blocks for, or gets blocks for.
    fn room_in_blocks(&mut self, index: usize, wanted: usize) -> usize {
        let nobody_waits = self.waiting.len() == 0;
        let spare = self.pool.available().saturating_sub(self.running.len());
        let sequence = &mut self.running[index];
        let missing = sequence.table.missing_blocks(sequence.chain.len() + wanted);
        if nobody_waits
            && missing <= spare
            && let Some(blocks) = self.pool.allocate(missing)
        {
            sequence.table.grow(blocks);
        }
        let capacity = sequence.table.len() * self.pool.block_tokens() as usize;
        wanted.min(capacity - sequence.chain.len())
    }
}

/// Gives everyone the same share of `room`, but nobody more than is wanted; what is left over goes to the first ones.
fn share_out(wanted: &[usize], room: usize) -> Vec<usize> {
    let mut shares = vec![0; wanted.len()];
    let mut left = room;
    while left > 0 && shares != wanted {
        for (share, wanted) in shares.iter_mut().zip(wanted) {
            if *share < *wanted && left > 0 {
                *share += 1;
                left -= 1;
            }
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_equal_and_nobody_gets_more_than_is_wanted() {
        assert_eq!(share_out(&[7, 2, 7], 8), [3, 2, 3]);
        assert_eq!(share_out(&[7, 7], 3), [2, 1]);
        assert_eq!(share_out(&[1, 2], 8), [1, 2]);
        assert_eq!(share_out(&[], 8), [0; 0]);
        assert_eq!(share_out(&[3], 0), [0]);
    }
}
