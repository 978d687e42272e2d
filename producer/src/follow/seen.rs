//! Which part of a reply a reader already has, and what a delta adds to it.
//!
//! A delta can repeat tokens, for example after Redis lost its last second. Every token has one index, so repeated ones are
//! dropped. A delta that starts within what was seen is cut there: it says where the text of each token ends.
//!
//! Invariant: what `add` hands out, concatenated, has every token once, in order, without a gap.

use turnmill_schema::{CutError, Delta};

/// What a reader has of one reply.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    tokens: u32,
    /// Whether the reader itself saw the last of them. If not, the first delta may start later.
    is_sure: bool,
}

/// Why a delta does not join what was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// The stream goes on after tokens that it does not hold.
    Gap {
        /// First missing token.
        expected: u32,
        /// First token there is.
        found: u32,
    },
    /// It starts within what was seen, and its text cannot be cut there.
    Uncut(CutError),
}

impl Seen {
    /// A reader that has nothing and reads from the start.
    pub(super) fn nothing() -> Self {
        Self { tokens: 0, is_sure: true }
    }

    /// A reader that starts after an entry. Its id says how many tokens were published by then, if a worker made it.
    pub(super) fn up_to(published: u64) -> Self {
        Self { tokens: u32::try_from(published).unwrap_or(0), is_sure: false }
    }

    /// The end of a reply of `published` tokens comes next: all of them must have been seen, as far as that is known.
    pub(super) fn finish(&self, published: u64) -> Result<(), Misfit> {
        let found = u32::try_from(published).unwrap_or(u32::MAX);
        if self.is_sure && self.tokens < found {
            return Err(Misfit::Gap { expected: self.tokens, found });
        }
        Ok(())
    }

    /// What `delta` adds; none when it adds nothing.
    pub(super) fn add(&mut self, delta: Delta) -> Result<Option<Delta>, Misfit> {
        let found = delta.index;
        if self.is_sure && found > self.tokens {
            return Err(Misfit::Gap { expected: self.tokens, found });
        }
        let added = delta.beyond(self.tokens).map_err(Misfit::Uncut)?;
        if let Some(added) = &added {
            *self = Self { tokens: added.published(), is_sure: true };
        }
        Ok(added)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reply in which token `i` is the `i`th character.
    fn delta(index: usize, end: usize) -> Delta {
        let mut delta = Delta { index: index as u32, ..Delta::default() };
        let characters = "naïve ⅔ words".chars().enumerate().skip(index).take(end - index);
        characters.for_each(|(token, character)| delta.push(token as u32, &character.to_string(), None));
        delta
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
        assert_eq!((seen.finish(3), seen.finish(2), Seen::up_to(4).finish(9)), (Ok(()), Ok(()), Ok(())));
    }

    #[test]
    fn a_reader_that_starts_after_an_entry_has_what_was_published_by_then() {
        let mut seen = Seen::up_to(4);
        assert_eq!(seen.add(delta(2, 4)), Ok(None));
        assert_eq!(seen.add(delta(2, 6)), Ok(Some(delta(4, 6))));
        assert_eq!(seen.add(delta(4, 6)), Ok(None));
        assert_eq!(seen.add(delta(3, 8)), Ok(Some(delta(6, 8))));
        // An id that no worker made says nothing of tokens: the first delta does.
        for foreign in [0, u64::MAX] {
            let mut seen = Seen::up_to(foreign);
            assert_eq!(seen.add(delta(4, 6)), Ok(Some(delta(4, 6))));
            assert_eq!(seen.add(delta(7, 8)), Err(Misfit::Gap { expected: 6, found: 7 }));
        }
    }

    #[test]
    fn an_overlap_without_lengths_is_told_and_changes_nothing() {
        let without = |index, end| Delta { lengths: vec![], ..delta(index, end) };
        let mut seen = Seen::nothing();
        assert_eq!(seen.add(without(0, 6)), Ok(Some(without(0, 6))));
        assert_eq!(seen.add(without(4, 8)), Err(Misfit::Uncut(CutError::NoLengths)));
        assert_eq!(seen.add(without(0, 6)), Ok(None), "at its ends it can be cut");
        assert_eq!(seen.add(delta(4, 8)), Ok(Some(delta(6, 8))));
    }

    #[test]
    fn a_delta_without_new_text_is_still_counted() {
        let silent = Delta { index: 0, tokens: vec![1], ..Delta::default() };
        assert_eq!(Seen::nothing().add(silent.clone()), Ok(Some(silent)));
    }
}
