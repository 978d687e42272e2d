//! Which runs a sequence is stored as: the one formula that those who save, look for and name them share.
//!
//! Invariant: the grid of a conversation is a function of its tokens, so every worker cuts it in the same places.

use std::ops::Range;
use std::sync::Arc;

use super::{CHUNK_TOKENS, Namespace, PrefixHash, Run, RunId, run_bounds};

/// How one conversation is cut into runs, and whose they are.
#[derive(Clone, Debug)]
pub struct RunGrid {
    /// The tenant's namespace.
    pub namespace: Namespace,
    /// Whose the runs are.
    pub tenant: Arc<str>,
    /// Tokens a block.
    pub block_tokens: usize,
    /// Full blocks of the system prompt: runs are counted anew after them.
    pub shared_blocks: usize,
}

impl RunGrid {
    /// The runs of the first `blocks` blocks, as ranges of blocks.
    pub fn bounds(&self, blocks: usize) -> Vec<Range<usize>> {
        run_bounds(blocks, self.shared_blocks, self.chunk_blocks())
    }

    /// Whether the run stays as it is however long the conversation gets.
    pub fn is_final(&self, run: &Range<usize>) -> bool {
        run.len() == self.chunk_blocks() || run.end == self.shared_blocks
    }

    /// The name of the run over `blocks`; `hashes` are those of the sequence's full blocks, from the first one on.
    ///
    /// # Panics
    /// Where the range is empty or there is no hash for its end.
    pub fn id(&self, hashes: &[PrefixHash], blocks: &Range<usize>) -> RunId {
        let parent = blocks.start.checked_sub(1).map_or(PrefixHash::ROOT, |before| hashes[before]);
        RunId { namespace: self.namespace, parent, last: hashes[blocks.end - 1] }
    }

    /// The run over `blocks` of the sequence of `tokens`.
    ///
    /// # Panics
    /// As [`Self::id`], and where the sequence ends before the run.
    pub fn run(&self, tokens: &[u32], hashes: &[PrefixHash], blocks: &Range<usize>) -> Run {
        let tokens = &tokens[blocks.start * self.block_tokens..blocks.end * self.block_tokens];
        Run {
            id: self.id(hashes, blocks),
            tenant: self.tenant.clone(),
            first_block: blocks.start,
            tokens: tokens.to_vec(),
        }
    }

    fn chunk_blocks(&self) -> usize {
        (CHUNK_TOKENS / self.block_tokens).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{HashChain, Identity};

    #[test]
    fn a_run_is_named_after_its_last_block_and_follows_the_one_before() {
        let namespace = Namespace::new(&Identity::example());
        let grid = RunGrid { namespace, tenant: "t".into(), block_tokens: 16, shared_blocks: 3 };
        let tokens: Vec<u32> = (0..16 * 21).collect();
        let mut chain = HashChain::new(namespace, 16);
        chain.extend(&tokens);
        let hashes = chain.hashes();
        let bounds = grid.bounds(21);
        assert_eq!(bounds, [0..3, 3..19, 19..21]);
        assert_eq!(bounds.iter().map(|run| grid.is_final(run)).collect::<Vec<_>>(), [true, true, false]);
        assert_eq!(grid.id(hashes, &bounds[0]).parent, PrefixHash::ROOT);
        let run = grid.run(&tokens, hashes, &bounds[1]);
        assert_eq!((run.id.parent, run.id.last), (hashes[2], hashes[18]));
        assert_eq!((run.first_block, &run.tokens[..]), (3, &tokens[48..304]));
        // A system prompt that is not all there yet has a short last run.
        assert!(!grid.is_final(&grid.bounds(2)[0]));
    }
}
