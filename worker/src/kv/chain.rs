//! A turn's tokens and the prefix hashes of their full blocks: one value with one owner at a time.

use super::{Namespace, PrefixHash};

/// The tokens of a turn, prompt first and then the reply, with a hash for each full block.
///
/// The runner makes it, the engine owns it while it computes, and gives it back with the last token (ADR 0023).
/// It is not `Clone`, so that no path copies it by accident.
///
/// Invariant: there is exactly one hash for each full block, first to last.
#[derive(Debug)]
pub struct TokenChain {
    namespace: Namespace,
    block_tokens: usize,
    tokens: Vec<u32>,
    hashes: Vec<PrefixHash>,
}

impl TokenChain {
    /// Takes `tokens` over and hashes them in blocks of `block_tokens` tokens.
    ///
    /// # Panics
    /// If `block_tokens` is 0.
    pub fn new(namespace: Namespace, block_tokens: usize, tokens: Vec<u32>) -> Self {
        let mut chain = Self { namespace, block_tokens, tokens, hashes: Vec::new() };
        chain.hash_full_blocks();
        chain
    }

    /// Adds a token that was sampled. A proposed token must not get here before it is verified.
    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
        self.hash_full_blocks();
    }

    /// Adds tokens, as [`Self::push`] does.
    pub fn extend(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
        self.hash_full_blocks();
    }

    /// All tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// One hash for each full block, first to last.
    pub fn hashes(&self) -> &[PrefixHash] {
        &self.hashes
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Whose blocks the hashes name: the namespace of model and tenant.
    pub fn namespace(&self) -> Namespace {
        self.namespace
    }

    /// Tokens in a block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Hashes the full blocks that have no hash yet. Earlier hashes never change, because tokens are only ever added.
    fn hash_full_blocks(&mut self) {
        let unhashed = &self.tokens[self.hashes.len() * self.block_tokens..];
        for block in unhashed.chunks_exact(self.block_tokens) {
            let parent = self.hashes.last().copied().unwrap_or(PrefixHash::ROOT);
            self.hashes.push(parent.child(&self.namespace, block));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kv::Identity;

    fn chain(tokens: &[u32]) -> TokenChain {
        TokenChain::new(Namespace::new(&Identity::example()), 2, tokens.to_vec())
    }

    #[test]
    fn a_chain_without_tokens_has_no_hash() {
        let mut chain = chain(&[]);
        assert!(chain.is_empty() && chain.hashes().is_empty());
        chain.push(7);
        assert_eq!((chain.len(), chain.hashes().len()), (1, 0));
        chain.push(8);
        assert_eq!((chain.tokens(), chain.hashes().len()), (&[7, 8][..], 1));
    }

    proptest! {
        /// The hash of a block follows from the tokens up to its end, whatever came with it.
        #[test]
        fn each_full_block_has_the_hash_of_the_tokens_up_to_its_end(
            tokens in prop::collection::vec(any::<u32>(), 0..40),
        ) {
            let chain = chain(&tokens);
            prop_assert_eq!(chain.hashes().len(), tokens.len() / 2);
            for (index, hash) in chain.hashes().iter().enumerate() {
                let alone = PrefixHash::ROOT.after(&chain.namespace(), &tokens[..2 * (index + 1)], 2);
                prop_assert_eq!(*hash, alone);
            }
        }

        #[test]
        fn a_chain_grown_in_pieces_equals_one_made_at_once(
            pieces in prop::collection::vec(prop::collection::vec(any::<u32>(), 0..9), 0..9),
        ) {
            let whole = chain(&pieces.concat());
            let (mut extended, mut pushed) = (chain(&[]), chain(&[]));
            let mut begun = chain(pieces.first().map_or(&[], Vec::as_slice));
            for (index, piece) in pieces.iter().enumerate() {
                extended.extend(piece);
                piece.iter().for_each(|token| pushed.push(*token));
                if index > 0 {
                    begun.extend(piece);
                }
                let so_far = chain(&pieces[..=index].concat());
                prop_assert_eq!(extended.hashes(), so_far.hashes());
            }
            for grown in [&extended, &pushed, &begun] {
                prop_assert_eq!((grown.tokens(), grown.hashes()), (whole.tokens(), whole.hashes()));
            }
        }
    }
}
