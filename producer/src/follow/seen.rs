//! Which part of a reply a reader already has, and what a delta adds to it.
//!
//! A delta can repeat tokens: after Redis lost its last second, or when a reader goes back in the stream. Every
//! token has one index, so repeated ones are dropped. A delta may also start in the middle of what was
//! seen; its text is then cut at the byte where the seen text ends, which is known because the text's
//! length at each boundary between deltas is kept.
//!
//! Invariant: what `add` hands out, concatenated, has every token once, in order, without a gap.

use std::collections::BTreeMap;

use turnmill_schema::Delta;

/// What a reader has of one reply.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Tokens seen, where known: a reader that starts within a stream learns it from its first entry.
    tokens: Option<u32>,
    /// Bytes of text handed out.
    text_bytes: usize,
    /// Bytes of text before the token of each index at which a delta started or ended.
    boundaries: BTreeMap<u32, usize>,
}

/// Why a delta does not join what was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misfit {
    /// The stream goes on after tokens that it does not hold.
    Gap {
        /// First missing token.
        expected: u32,
        /// First token there is.
        found: u32,
    },
    /// It starts within seen tokens where no delta ended, so its text cannot be cut. Reading again from where
    /// the reader started brings the deltas before it, whose ends are then known.
    Unaligned,
}

impl Seen {
    /// A reader that has nothing and reads from the start.
    pub(crate) fn nothing() -> Self {
        Self { tokens: Some(0), text_bytes: 0, boundaries: BTreeMap::from([(0, 0)]) }
    }

    /// A reader that starts somewhere within the stream.
    pub(crate) fn unknown() -> Self {
        Self::default()
    }

    /// Nothing was read yet and where the reader stands is not known.
    pub(crate) fn is_unknown(&self) -> bool {
        self.tokens.is_none()
    }

    /// The end of a reply of `published` tokens comes next: all of them must have been seen, as far as that is known.
    pub(crate) fn finish(&self, published: u64) -> Result<(), Misfit> {
        let found = u32::try_from(published).unwrap_or(u32::MAX);
        match self.tokens {
            Some(expected) if expected < found => Err(Misfit::Gap { expected, found }),
            _ => Ok(()),
        }
    }

    /// What `delta` adds; none when it adds nothing.
    pub(crate) fn add(&mut self, mut delta: Delta) -> Result<Option<Delta>, Misfit> {
        let seen = *self.tokens.get_or_insert_with(|| {
            self.boundaries.insert(delta.index, 0);
            delta.index
        });
        if delta.index > seen {
            return Err(Misfit::Gap { expected: seen, found: delta.index });
        }
        let start = *self.boundaries.get(&delta.index).ok_or(Misfit::Unaligned)?;
        self.boundaries.insert(delta.published(), start + delta.text.len());
        let repeated = (seen - delta.index) as usize;
        if repeated >= delta.tokens.len() {
            return Ok(None);
        }
        delta.tokens.drain(..repeated);
        delta.logprobs.drain(..repeated.min(delta.logprobs.len()));
        delta.text.drain(..cut(&delta.text, self.text_bytes.saturating_sub(start)));
        delta.index = seen;
        self.tokens = Some(delta.published());
        self.text_bytes += delta.text.len();
        Ok(Some(delta))
    }
}

/// The character boundary of `text` at or before byte `at`.
fn cut(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reply in which token `i` is the `i`th character.
    fn delta(index: usize, end: usize) -> Delta {
        let text = "naïve ⅔ words".chars().skip(index).take(end - index).collect();
        Delta { index: index as u32, tokens: (index as u32..end as u32).collect(), text, logprobs: vec![] }
    }

    fn read(deltas: impl IntoIterator<Item = Delta>) -> (Vec<u32>, String) {
        let mut seen = Seen::nothing();
        let mut whole = (vec![], String::new());
        for delta in deltas {
            if let Some(new) = seen.add(delta).expect("no gap") {
                assert_eq!(new.index as usize, whole.0.len());
                whole.0.extend(new.tokens);
                whole.1.push_str(&new.text);
            }
        }
        whole
    }

    #[test]
    fn every_overlap_is_trimmed_to_the_byte() {
        let whole = read([delta(0, 13)]);
        assert_eq!(read([delta(0, 3), delta(3, 13)]), whole);
        assert_eq!(read([delta(0, 3), delta(0, 3), delta(3, 13), delta(3, 13)]), whole);
        assert_eq!(read([delta(0, 3), delta(3, 7), delta(3, 5), delta(5, 13)]), whole);
        assert_eq!(read([delta(0, 3), delta(3, 8), delta(3, 13)]), whole);
        assert_eq!(read([delta(0, 9), delta(0, 2), delta(2, 4), delta(4, 13)]), whole);
    }

    #[test]
    fn random_cuts_read_twice_give_the_reply_once() {
        // Every pair of cuts, read as [0,a)[a,b), rolled back to a, and read again as [a,c)[c,13).
        for (a, b, c) in (1..12).flat_map(|a| (a..12).flat_map(move |b| (a..12).map(move |c| (a, b, c)))) {
            let cuts = [delta(0, a), delta(a, b), delta(a, c), delta(c, 13)];
            assert_eq!(read(cuts), read([delta(0, 13)]), "cuts {a} {b} {c}");
        }
    }

    #[test]
    fn a_gap_is_told_and_changes_nothing() {
        let mut seen = Seen::nothing();
        seen.add(delta(0, 2)).expect("no gap");
        assert_eq!(seen.add(delta(5, 6)), Err(Misfit::Gap { expected: 2, found: 5 }));
        assert_eq!(seen.add(delta(2, 3)).map(|new| new.map(|new| new.index)), Ok(Some(2)));
        assert_eq!(
            seen.finish(9),
            Err(Misfit::Gap { expected: 3, found: 9 }),
            "the end says how many there are"
        );
        assert_eq!((seen.finish(3), seen.finish(2), Seen::unknown().finish(9)), (Ok(()), Ok(()), Ok(())));
    }

    #[test]
    fn a_reader_within_the_stream_takes_the_first_delta_whole() {
        let mut seen = Seen::unknown();
        assert_eq!(seen.add(delta(4, 6)), Ok(Some(delta(4, 6))));
        assert_eq!(seen.add(delta(4, 6)), Ok(None));
        assert_eq!(seen.add(delta(4, 8)), Ok(Some(delta(6, 8))));
    }

    #[test]
    fn an_overlap_at_an_unknown_byte_is_read_again() {
        let mut seen = Seen::nothing();
        seen.add(delta(0, 6)).expect("joins");
        assert_eq!(seen.add(delta(4, 8)), Err(Misfit::Unaligned));
        assert_eq!(seen.add(delta(0, 4)), Ok(None));
        assert_eq!(seen.add(delta(4, 8)), Ok(Some(delta(6, 8))));
    }

    #[test]
    fn a_delta_without_new_text_is_still_counted() {
        let silent = Delta { index: 0, tokens: vec![1], ..Delta::default() };
        assert_eq!(Seen::nothing().add(silent.clone()), Ok(Some(silent)));
    }
}
