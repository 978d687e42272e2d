//! Which tokens may be sampled next.

/// Tokens of one word of a mask.
const BITS: usize = u32::BITS as usize;

/// A set of tokens, one bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    /// Bit `id % 32` of word `id / 32`, `vocabulary` bits; those above are zero.
    words: Vec<u32>,
    vocabulary: usize,
}

impl TokenMask {
    /// No token of `vocabulary`.
    pub fn none(vocabulary: usize) -> Self {
        Self { words: vec![0; vocabulary.div_ceil(BITS)], vocabulary }
    }

    /// The tokens in `words`, one bit each.
    pub fn from_words(mut words: Vec<u32>, vocabulary: usize) -> Self {
        words.resize(vocabulary.div_ceil(BITS), 0);
        if let Some(last) = words.last_mut().filter(|_| !vocabulary.is_multiple_of(BITS)) {
            *last &= (1 << (vocabulary % BITS)) - 1;
        }
        Self { words, vocabulary }
    }

    /// All tokens of `vocabulary`.
    pub fn all(vocabulary: usize) -> Self {
        Self::from_words(vec![u32::MAX; vocabulary.div_ceil(BITS)], vocabulary)
    }

    /// Those of `tokens` that are in `vocabulary`.
    pub fn of(tokens: &[u32], vocabulary: usize) -> Self {
        let mut mask = Self::none(vocabulary);
        tokens.iter().for_each(|id| mask.allow(*id));
        mask
    }

    /// Allows `id`, if it is in the vocabulary.
    pub fn allow(&mut self, id: u32) {
        if (id as usize) < self.vocabulary {
            self.words[id as usize / BITS] |= 1 << (id as usize % BITS);
        }
    }

    /// Allows `id` no longer.
    pub fn forbid(&mut self, id: u32) {
        if let Some(word) = self.words.get_mut(id as usize / BITS) {
            *word &= !(1 << (id as usize % BITS));
        }
    }

    /// Whether no token is allowed.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Whether `id` may come next; ids outside the vocabulary may not.
    pub fn allows(&self, id: u32) -> bool {
        let word = self.words.get(id as usize / BITS);
        word.is_some_and(|word| word >> (id as usize % BITS) & 1 == 1)
    }

    /// Entries of the vocabulary, allowed or not.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// How many tokens are allowed.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The allowed tokens, smallest first.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.words.iter().enumerate().flat_map(|(index, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some((index * BITS) as u32 + bit)
            })
        })
    }

    /// Sets the logits of tokens that are not allowed to minus infinity, those of rows beyond the vocabulary too.
    pub fn apply(&self, logits: &mut [f32]) {
        let known = logits.len().min(self.words.len() * BITS);
        let (rows, beyond) = logits.split_at_mut(known);
        for (rows, word) in rows.chunks_mut(BITS).zip(&self.words) {
            match *word {
                0 => rows.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                word => {
                    for (bit, logit) in rows.iter_mut().enumerate() {
                        *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
                    }
                }
            }
        }
        beyond.fill(f32::NEG_INFINITY);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_mask_is_the_set_it_was_made_of(
            vocabulary in 0usize..200,
            tokens in prop::collection::vec(0u32..250, 0..80),
            forbidden in prop::collection::vec(0u32..250, 0..10),
            rows in 0usize..260,
        ) {
            let mut mask = TokenMask::of(&tokens, vocabulary);
            forbidden.iter().for_each(|id| mask.forbid(*id));
            let is_in = |id: &u32| (*id as usize) < vocabulary && !forbidden.contains(id);
            let set: BTreeSet<u32> = tokens.into_iter().filter(is_in).collect();
            prop_assert_eq!(mask.is_empty(), set.is_empty());
            prop_assert!(mask.iter().eq(set.iter().copied()));
            prop_assert_eq!((mask.count(), mask.vocabulary()), (set.len(), vocabulary));
            prop_assert!((0..300).all(|id| mask.allows(id) == set.contains(&id)));
            let mut logits = vec![1.0f32; rows];
            mask.apply(&mut logits);
            for (id, logit) in logits.iter().enumerate() {
                let expected = if set.contains(&(id as u32)) { 1.0 } else { f32::NEG_INFINITY };
                prop_assert_eq!(*logit, expected);
            }
            let every = TokenMask::from_words(vec![u32::MAX; vocabulary.div_ceil(BITS) + 1], vocabulary);
            prop_assert_eq!(&every, &TokenMask::all(vocabulary));
            prop_assert_eq!(every.count(), vocabulary);
        }
    }
}
