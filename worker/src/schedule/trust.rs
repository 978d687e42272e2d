//! Whether a sequence's proposals pay.
//!
//! A proposed row that is rejected was computed for nothing; one that is accepted saves the sequence a step. So there is a
//! balance: rejected rows take from it, accepted ones add to it several times over. Once it is spent, nothing is proposed
//! for some tokens, then a smaller balance is tried, and each time that fails the pause is twice as long.
//!
//! Invariants: integers only, so every worker decides alike; of a sequence whose proposals are never accepted,
//! [`BALANCE`] and its longest proposal at first, and then half of it and a proposal a pause are computed in vain.

/// What an accepted row adds; a rejected one takes 1. So proposals pay from one in four on: where few rows run, a further
/// one costs the step less than that.
const ACCEPTED: i32 = 3;
/// What there is to begin with, and at most.
const BALANCE: i32 = 24;
/// Tokens without a proposal, the first time, and at most.
const PAUSES: (usize, usize) = (16, 512);

/// The books of one sequence.
#[derive(Debug)]
pub(super) struct Trust {
    balance: i32,
    /// How long the next pause is, in tokens.
    pause: usize,
    /// Nothing is proposed for a shorter sequence.
    resumes_at: usize,
}

impl Default for Trust {
    fn default() -> Self {
        Self { balance: BALANCE, pause: PAUSES.0, resumes_at: 0 }
    }
}

impl Trust {
    /// Whether a sequence of `tokens` tokens gets proposals.
    pub fn allows(&self, tokens: usize) -> bool {
        tokens >= self.resumes_at
    }

    /// Of `proposed` rows `accepted` were right, and the sequence now has `tokens` tokens.
    pub fn verified(&mut self, proposed: usize, accepted: usize, tokens: usize) {
        let rejected = proposed - accepted;
        self.balance = (self.balance + ACCEPTED * accepted as i32 - rejected as i32).min(BALANCE);
        if self.balance == BALANCE {
            self.pause = PAUSES.0;
        }
        if self.balance <= 0 {
            self.resumes_at = tokens + self.pause;
            self.pause = (2 * self.pause).min(PAUSES.1);
            self.balance = BALANCE / 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Rows computed in vain while a sequence grows to `length`, if each proposal of `proposed` has `accepted` right.
    fn in_vain(proposed: usize, accepted: usize, length: usize) -> usize {
        let (mut trust, mut tokens, mut rows) = (Trust::default(), 0, 0);
        while tokens < length {
            if trust.allows(tokens) {
                rows += proposed - accepted;
                tokens += accepted + 1;
                trust.verified(proposed, accepted, tokens);
            } else {
                tokens += 1;
            }
        }
        rows
    }

    #[test]
    fn what_is_never_right_is_soon_left_off() {
        assert!(in_vain(1, 0, 1000) < 100, "{}", in_vain(1, 0, 1000));
        assert!(in_vain(7, 0, 1000) < 150, "{}", in_vain(7, 0, 1000));
        // In the long run one row in forty.
        assert!(in_vain(7, 0, 100_000) < 100_000 / 25, "{}", in_vain(7, 0, 100_000));
    }

    #[test]
    fn what_is_right_often_enough_goes_on() {
        let mut trust = Trust::default();
        for tokens in 0..1000 {
            trust.verified(7, 2, tokens);
            assert!(trust.allows(tokens));
        }
    }

    #[test]
    fn it_is_tried_again_and_believed_again() {
        let mut trust = Trust::default();
        (0..3).for_each(|_| trust.verified(8, 0, 10));
        assert!(!trust.allows(25) && trust.allows(26));
        (0..2).for_each(|_| trust.verified(8, 0, 30));
        assert!(!trust.allows(61) && trust.allows(62), "twice as long");
        (0..4).for_each(|_| trust.verified(8, 8, 100));
        assert!(trust.allows(100));
        (0..3).for_each(|_| trust.verified(8, 0, 200));
        assert!(!trust.allows(215) && trust.allows(216), "as the first time");
    }

    proptest! {
        #[test]
        fn no_pause_is_too_long_and_no_balance_too_large(outcomes in prop::collection::vec((0usize..9, 0usize..9), 0..200)) {
            let (mut trust, mut tokens) = (Trust::default(), 0);
            for (proposed, accepted) in outcomes {
                tokens += 1;
                if trust.allows(tokens) {
                    trust.verified(proposed.max(accepted), accepted, tokens);
                }
                prop_assert!(trust.allows(tokens + PAUSES.1));
                prop_assert!((1..=BALANCE).contains(&trust.balance));
            }
        }
    }
}
