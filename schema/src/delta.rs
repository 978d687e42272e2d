//! Some tokens of a reply, and where they can be cut.
//!
//! Invariant: however the tokens of a reply were divided into deltas, cutting and joining them gives the same reply: the same
//! tokens, text, lengths and log-probabilities. Writers that record no lengths, or wrong ones, cost the lengths alone.

use serde::{Deserialize, Serialize};

/// Some tokens of a reply, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// Index in the reply of the first token here, from 0.
    pub index: u32,
    /// Token ids, exactly as sampled.
    pub tokens: Vec<u32>,
    /// The text these tokens made visible. Never half a character; text that may turn out to be a stop string is held
    /// back until it is not.
    pub text: String,
    /// For each token, how many bytes of `text` it made visible: 0 if its text is held back, and then a later token has the
    /// bytes of several. Each ends with a character. Lengths stay small where positions would grow, and joining deltas
    /// joins them as they are.
    ///
    /// Empty if the writer recorded none. Such a delta can only be cut at its ends, unless it has no text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lengths: Vec<u32>,
    /// One entry a token, when asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprobs>,
}

/// Log-probabilities at one position, natural logarithm, before temperature and penalties.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// Of the token that was sampled.
    pub logprob: f32,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Why a delta cannot be cut between its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CutError {
    /// An older writer.
    #[error("a delta does not say how many bytes of its text belong to each token; upgrade its writer")]
    NoLengths,
    /// Not one length a token.
    #[error("a delta has {lengths} lengths for {tokens} tokens; repair its writer")]
    Count {
        /// How many lengths there are.
        lengths: usize,
        /// How many tokens.
        tokens: usize,
    },
    /// The lengths are not those of the text.
    #[error("the lengths of a delta add up to {sum} bytes, and its text has {bytes}; repair its writer")]
    Sum {
        /// What they add up to.
        sum: u64,
        /// Size of the text.
        bytes: usize,
    },
    /// A length ends in the middle of a character.
    #[error("a length of a delta ends within a character, after {at} bytes of its text; repair its writer")]
    Character {
        /// Where in the text.
        at: usize,
    },
}

impl Delta {
    /// How many tokens of the reply are published once this delta is.
    pub fn published(&self) -> u32 {
        self.index.saturating_add(self.tokens.len() as u32)
    }

    /// Adds a token and the text it made visible.
    pub fn push(&mut self, token: u32, text: &str, logprobs: Option<TokenLogprobs>) {
        if self.spell_out_lengths() {
            self.lengths.push(text.len() as u32);
        }
        self.tokens.push(token);
        self.text.push_str(text);
        self.logprobs.extend(logprobs);
    }

    /// Appends the delta that starts where this one ends; an empty one becomes it. If either does not say how long the text of
    /// its tokens is, the whole does not, either.
    pub fn extend(&mut self, mut next: Self) {
        if next.check_lengths().is_err() {
            next.lengths.clear();
        }
        if self.tokens.is_empty() && self.text.is_empty() {
            *self = next;
            return;
        }
        // Checked as they came, so that a long reply is not checked again with each delta.
        if self.spell_out_lengths() && next.spell_out_lengths() {
            self.lengths.append(&mut next.lengths);
        } else {
            self.lengths.clear();
        }
        self.tokens.append(&mut next.tokens);
        self.text.push_str(&next.text);
        self.logprobs.append(&mut next.logprobs);
    }

    /// Keeps the first `at` tokens with their text, and returns the rest. An error changes nothing.
    pub fn split_off(&mut self, at: usize) -> Result<Self, CutError> {
        if at >= self.tokens.len() {
            return Ok(Self { index: self.published(), ..Self::default() });
        }
        if at == 0 {
            let nothing = Self { index: self.index, ..Self::default() };
            return Ok(std::mem::replace(self, nothing));
        }
        self.check_lengths()?;
        let bytes: usize = self.lengths.iter().take(at).map(|length| *length as usize).sum();
        Ok(Self {
            index: self.index.saturating_add(at as u32),
            tokens: self.tokens.split_off(at),
            text: self.text.split_off(bytes),
            lengths: self.lengths.split_off(at.min(self.lengths.len())),
            logprobs: self.logprobs.split_off(at.min(self.logprobs.len())),
        })
    }

    /// What it adds for a reader that has the reply's first `tokens` tokens; none if nothing. A delta that starts later comes
    /// back whole: its `index` shows the gap.
    pub fn beyond(mut self, tokens: u32) -> Result<Option<Self>, CutError> {
        if self.published() <= tokens {
            return Ok(None);
        }
        self.split_off(tokens.saturating_sub(self.index) as usize).map(Some)
    }

    /// Checks that the delta can be cut between any two of its tokens.
    pub fn check_lengths(&self) -> Result<(), CutError> {
        let (lengths, tokens, bytes) = (self.lengths.len(), self.tokens.len(), self.text.len());
        if lengths == 0 && bytes == 0 {
            return Ok(());
        }
        if lengths == 0 {
            return Err(CutError::NoLengths);
        }
        if lengths != tokens {
            return Err(CutError::Count { lengths, tokens });
        }
        let sum = self.lengths.iter().map(|length| u64::from(*length)).sum();
        if sum != bytes as u64 {
            return Err(CutError::Sum { sum, bytes });
        }
        let mut at = 0;
        for length in &self.lengths {
            at += *length as usize;
            if !self.text.is_char_boundary(at) {
                return Err(CutError::Character { at });
            }
        }
        Ok(())
    }

    /// Tokens without text and lengths have the length 0. False: the lengths are not known.
    fn spell_out_lengths(&mut self) -> bool {
        if self.text.is_empty() && self.lengths.is_empty() {
            self.lengths.resize(self.tokens.len(), 0);
        }
        self.lengths.len() == self.tokens.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Event;
    use crate::envelope::{decode, encode};

    /// Token by token: its id, the text it made visible, its log-probabilities.
    type Made = (u32, String, Option<TokenLogprobs>);

    /// Texts of tokens: held back, several at once, of one to four bytes a character.
    fn made() -> impl Strategy<Value = Vec<Made>> {
        let text =
            prop_oneof![Just(""), Just("a"), Just(" naïve"), Just("⅔"), Just("🦀 ⅔ é\n"), Just("\u{0}")];
        let token = (any::<u32>(), text, -9f32..0.0, 0u32..3);
        let tokens = prop::collection::vec(token, 0..24);
        (tokens, any::<bool>()).prop_map(|(tokens, asked)| {
            let token = |(id, text, logprob, top): (u32, &str, f32, u32)| {
                let top = (0..top).map(|token| (token, logprob)).collect();
                (id, text.to_owned(), asked.then_some(TokenLogprobs { logprob, top }))
            };
            tokens.into_iter().map(token).collect()
        })
    }

    fn delta(index: usize, made: &[Made]) -> Delta {
        let mut delta = Delta { index: index as u32, ..Delta::default() };
        made.iter().for_each(|(id, text, logprobs)| delta.push(*id, text, logprobs.clone()));
        delta
    }

    fn joined(deltas: impl IntoIterator<Item = Delta>) -> Delta {
        let mut whole = Delta::default();
        deltas.into_iter().for_each(|delta| whole.extend(delta));
        whole
    }

    /// The reply in frames that end at `ends`.
    fn framed(made: &[Made], mut ends: Vec<usize>) -> Vec<Delta> {
        ends.push(made.len());
        ends.iter_mut().for_each(|end| *end = (*end).min(made.len()));
        ends.sort_unstable();
        let mut from = 0;
        let frame = |end| {
            let start = std::mem::replace(&mut from, end);
            delta(start, &made[start..end])
        };
        ends.into_iter().map(frame).collect()
    }

    fn cuts() -> impl Strategy<Value = Vec<usize>> {
        prop::collection::vec(0usize..24, 0..8)
    }

    proptest! {
        #[test]
        fn any_frames_and_any_cuts_give_the_same_reply(made in made(), ends in cuts(), cuts in cuts()) {
            let whole = delta(0, &made);
            let mut pieces = framed(&made, ends);
            prop_assert_eq!(&joined(pieces.clone()), &whole);
            for cut in cuts {
                let at = pieces.iter().position(|piece| (cut as u32) < piece.published());
                let Some(at) = at else { continue };
                let within = (cut as u32).saturating_sub(pieces[at].index) as usize;
                let rest = pieces[at].split_off(within).expect("it has lengths");
                pieces.insert(at + 1, rest);
            }
            for piece in &pieces {
                let (from, to) = (piece.index as usize, piece.published() as usize);
                prop_assert_eq!(piece, &delta(from, &made[from..to]));
            }
            prop_assert_eq!(joined(pieces), whole);
        }

        #[test]
        fn overlapping_frames_are_cut_where_the_reader_is(made in made(), froms in cuts(), ends in cuts()) {
            // Each frame starts at or before what was read: tokens come again, as after a Redis that lost its last second.
            let mut read = Delta::default();
            let frames = froms.into_iter().zip(ends).chain([(0, made.len())]);
            for (from, end) in frames {
                let end = end.min(made.len());
                let from = from.min(read.tokens.len()).min(end);
                let new = delta(from, &made[from..end]).beyond(read.published());
                if let Some(new) = new.expect("it has lengths") {
                    prop_assert_eq!(new.index, read.published());
                    read.extend(new);
                }
            }
            prop_assert_eq!(read, delta(0, &made));
        }

        #[test]
        fn foreign_deltas_never_panic_and_lose_nothing(
            index: u32,
            tokens: Vec<u32>,
            text: String,
            lengths in prop::collection::vec(prop_oneof![0u32..9, any::<u32>()], 0..5),
            at in 0usize..9,
        ) {
            let foreign = Delta { index, tokens, text, lengths, logprobs: Vec::new() };
            let _ = foreign.clone().beyond(at as u32);
            let mut first = foreign.clone();
            let cut = first.split_off(at);
            prop_assert!(cut.is_ok() || first == foreign, "an error changes nothing");
            if let Ok(rest) = cut {
                first.extend(rest);
            }
            let mut again = foreign.clone();
            again.extend(delta(0, &[(1, "é".to_owned(), None)]));
            prop_assert_eq!((&first.tokens, &first.text), (&foreign.tokens, &foreign.text));
            prop_assert_eq!(&again.text, &format!("{}é", foreign.text));
            let is_empty = foreign.tokens.is_empty() && foreign.text.is_empty();
            prop_assert_eq!(again.check_lengths().is_ok(), is_empty || foreign.check_lengths().is_ok());
        }
    }

    #[test]
    fn a_character_of_two_tokens_belongs_to_the_one_that_completes_it() {
        let mut reply = delta(3, &[(7, "a".into(), None), (8, "".into(), None), (9, "é!".into(), None)]);
        let rest = reply.split_off(2).expect("it has lengths");
        assert_eq!((reply.text.as_str(), &reply.lengths[..]), ("a", &[1, 0][..]));
        assert_eq!((rest.index, rest.text.as_str(), &rest.lengths[..]), (5, "é!", &[3][..]));
    }

    #[test]
    fn wrong_lengths_are_told_and_cut_nothing() {
        let with = |lengths: &[u32]| Delta {
            index: 0,
            tokens: vec![1, 2],
            text: "é!".into(),
            lengths: lengths.to_vec(),
            logprobs: vec![],
        };
        let refused = |lengths| with(lengths).split_off(1).expect_err("must be refused");
        assert_eq!(refused(&[]), CutError::NoLengths);
        assert_eq!(refused(&[3]), CutError::Count { lengths: 1, tokens: 2 });
        assert_eq!(refused(&[2, 2]), CutError::Sum { sum: 4, bytes: 3 });
        assert_eq!(refused(&[u32::MAX, u32::MAX]), CutError::Sum { sum: 2 * u64::from(u32::MAX), bytes: 3 });
        assert_eq!(refused(&[1, 2]), CutError::Character { at: 1 });
        for lengths in [&[][..], &[3], &[1, 2], &[2, 2]] {
            let mut frame = with(lengths);
            assert_eq!(frame.split_off(2).map(|rest| rest.index), Ok(2), "its end needs no lengths");
            assert_eq!((frame.split_off(0), frame.tokens.len()), (Ok(with(lengths)), 0));
        }
    }

    #[test]
    fn lengths_that_are_not_known_are_not_made_up() {
        let known = || delta(0, &[(1, "a".into(), None)]);
        let unknown = || Delta { lengths: vec![], ..delta(1, &[(2, "b".into(), None)]) };
        let both = joined([known(), unknown()]);
        assert_eq!((both.text.as_str(), both.lengths.len()), ("ab", 0));
        let mut other = joined([unknown(), known()]);
        other.push(3, "c", None);
        assert_eq!((other.text.as_str(), other.lengths.len()), ("bac", 0));
        // Two wrong ones would add up to the right sum.
        let wrong = |length| Delta { lengths: vec![length], ..known() };
        assert!(joined([wrong(2), wrong(0)]).lengths.is_empty());
        // What has no text needs no lengths.
        let silent = Delta { tokens: vec![4, 5], ..Delta::default() };
        assert_eq!(joined([silent, known()]).lengths, [0, 0, 1]);
    }

    #[test]
    fn golden_bytes() {
        let told = Event::Delta(delta(2, &[(7, "".into(), None), (300, "é".into(), None)]));
        let mut old =
            b"\x01\x84\xa4kind\xa5delta\xa5index\x02\xa6tokens\x92\x07\xcd\x01\x2c\xa4text\xa2".to_vec();
        old.extend("é".as_bytes());
        let mut golden = old.clone();
        golden[1] += 1;
        golden.extend(b"\xa7lengths\x92\x00\x02");
        assert_eq!(encode(&told).expect("encodes"), golden);
        assert_eq!(decode(&golden), Ok(told));
        let Ok(Event::Delta(old)) = decode(&old) else { panic!("older writers' deltas are read") };
        assert_eq!((old.text.as_str(), old.check_lengths()), ("é", Err(CutError::NoLengths)));
    }
}
