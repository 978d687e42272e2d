//! What a sequence may go on with: what followed when its last tokens occurred before (prompt lookup).
//!
//! An index of n-grams over the sequence's own tokens, prompt and reply alike. Agents' replies repeat what their prompts
//! hold: names, paths, arguments, JSON, code. The longest earlier occurrence of the last tokens counts, the latest among
//! equals, because of two versions of a text a reply goes on with the newer one. As many tokens are proposed as occurred
//! before: short matches are often chance, and copying makes matches longer with every token that is accepted.
//!
//! Invariants: proposals are a function of the tokens and the bound alone; taking a token in costs the same however many
//! came before; a search looks at [`CANDIDATES`] occurrences at most; memory is a few words a token.

use std::collections::HashMap;

/// Tokens that have to occur again, at least. Two occur again by chance in any text.
const LEAST: usize = 3;
/// Earlier occurrences that are compared, latest first.
const CANDIDATES: usize = 16;
/// No occurrence.
const NONE: u32 = u32::MAX;

/// Where each n-gram of [`LEAST`] tokens occurs: the heads of lists that lead from each occurrence to the one before it
/// (as compressors of the LZ77 family find matches).
#[derive(Debug, Default)]
pub(super) struct Lookup {
    /// Where the n-gram's latest occurrence ends.
    latest: HashMap<[u32; LEAST], u32>,
    /// By the end of an occurrence, less [`LEAST`]: where the one before it ends, or [`NONE`].
    earlier: Vec<u32>,
}

impl Lookup {
    /// At most `most` tokens that may follow `tokens`, which are those of earlier calls and any number more.
    pub fn propose(&mut self, tokens: &[u32], most: usize) -> Vec<u32> {
        self.take_in(tokens);
        let Some((end, length)) = self.longest(tokens, most) else { return Vec::new() };
        let mut proposed = Vec::with_capacity(length.min(most));
        // An occurrence that overlaps with the last tokens is a loop: it goes on with what is proposed itself.
        for index in end..end + length.min(most) {
            let token = tokens.get(index).copied().unwrap_or_else(|| proposed[index - tokens.len()]);
            proposed.push(token);
        }
        proposed
    }

    /// Takes in all n-grams that something follows.
    fn take_in(&mut self, tokens: &[u32]) {
        let first = self.earlier.len();
        for end in LEAST + first..tokens.len() {
            let Some(last) = tokens[..end].last_chunk() else { continue };
            let before = self.latest.insert(*last, end as u32);
            self.earlier.push(before.unwrap_or(NONE));
        }
    }

    /// Where the earlier occurrence ends that shares most of the last tokens, and how many; more than `most` count the
    /// same.
    fn longest(&self, tokens: &[u32], most: usize) -> Option<(usize, usize)> {
        let last = tokens.last_chunk::<LEAST>()?;
        let first = self.latest.get(last).copied();
        let occurrences = std::iter::successors(first, |end| {
            Some(self.earlier[*end as usize - LEAST]).filter(|end| *end != NONE)
        });
        let mut best: Option<(usize, usize)> = None;
        for end in occurrences.take(CANDIDATES).map(|end| end as usize) {
            let length = shared_end(&tokens[..end], tokens, most.max(LEAST));
            if best.is_none_or(|(_, longest)| length > longest) {
                best = Some((end, length));
            }
            if length >= most {
                break;
            }
        }
        best
    }
}

/// How many tokens at the ends of both are the same, at most `most`.
fn shared_end(one: &[u32], other: &[u32], most: usize) -> usize {
    one.iter().rev().zip(other.iter().rev()).take(most).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn propose(tokens: &[u32], most: usize) -> Vec<u32> {
        Lookup::default().propose(tokens, most)
    }

    #[test]
    fn what_followed_the_last_tokens_before_is_proposed() {
        assert_eq!(propose(&[1, 2, 3, 4, 5, 6, 9, 1, 2, 3], 8), [4, 5, 6]);
        assert_eq!(propose(&[1, 2, 3, 4, 5, 6, 9, 1, 2, 3], 2), [4, 5]);
        assert!(propose(&[1, 2, 3, 4, 5, 6, 9, 1, 2, 4], 8).is_empty());
        assert!(propose(&[1, 2], 8).is_empty() && propose(&[], 8).is_empty());
    }

    #[test]
    fn a_longer_match_goes_before_a_later_one_and_a_later_one_among_equals() {
        assert_eq!(propose(&[7, 1, 2, 3, 4, 9, 8, 1, 2, 3, 5, 6, 7, 1, 2, 3], 8), [4, 9, 8, 1]);
        assert_eq!(propose(&[1, 2, 3, 4, 9, 8, 1, 2, 3, 5, 6, 7, 1, 2, 3], 8), [5, 6, 7]);
    }

    #[test]
    fn as_many_are_proposed_as_occurred_before() {
        let mut tokens: Vec<u32> = (0..40).chain(100..103).chain(10..13).collect();
        for length in 3..12 {
            assert_eq!(propose(&tokens, 8).len(), length.min(8));
            tokens.push(10 + length as u32);
        }
    }

    #[test]
    fn a_loop_goes_round() {
        assert_eq!(propose(&[5, 1, 2, 1, 2, 1, 2, 1, 2], 6), [1, 2, 1, 2, 1, 2]);
        assert_eq!(propose(&[7; 9], 8), [7; 8]);
    }

    #[test]
    fn a_search_looks_at_few_occurrences() {
        // The longest match is the first of very many.
        let mut tokens = vec![9, 8, 7, 6, 1, 2, 3, 4];
        (0..50).for_each(|i| tokens.extend([100 + i, 1, 2, 3, 5]));
        tokens.extend([9, 8, 7, 6, 1, 2, 3]);
        assert_eq!(propose(&tokens, 8)[0], 5);
    }

    /// The same without an index.
    fn slow(tokens: &[u32], most: usize) -> Vec<u32> {
        let lengths =
            (LEAST..tokens.len()).map(|end| (shared_end(&tokens[..end], tokens, most.max(LEAST)), end));
        // The last of the longest ones.
        let Some((length, end)) = lengths.filter(|(length, _)| *length >= LEAST).max() else {
            return Vec::new();
        };
        let mut all = tokens.to_vec();
        (0..length.min(most)).for_each(|i| all.push(all[end + i]));
        all.split_off(tokens.len())
    }

    proptest! {
        /// However the tokens come, and whatever was asked before. (No n-gram occurs more than [`CANDIDATES`] times but in
        /// loops, whose latest occurrence is the longest.)
        #[test]
        fn an_index_finds_what_a_search_of_everything_finds(
            tokens in prop::collection::vec(0u32..4, 0..60),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            most in 1usize..12,
        ) {
            let mut lookup = Lookup::default();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(tokens.len() + 1)).collect();
            cuts.push(tokens.len());
            cuts.sort_unstable();
            for cut in cuts {
                prop_assert_eq!(lookup.propose(&tokens[..cut], most), slow(&tokens[..cut], most));
            }
            prop_assert!(lookup.earlier.len() <= tokens.len() && lookup.latest.len() <= tokens.len());
        }
    }
}
