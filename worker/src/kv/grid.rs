//! Which segments a sequence is stored as: the one formula that those who save, look for and name them share.
//!
//! Invariant: the grid of a conversation is a function of its tokens, so every worker cuts it in the same places.

use std::ops::Range;
use std::sync::Arc;

use super::{Namespace, PrefixHash, SEGMENT_TOKENS, Segment, SegmentId, segment_bounds};

/// How one conversation is cut into segments, and whose they are.
#[derive(Clone, Debug)]
pub struct SegmentGrid {
    /// The tenant's namespace.
    pub namespace: Namespace,
    /// Whose the segments are.
    pub tenant: Arc<str>,
    /// Tokens a block.
    pub block_tokens: usize,
    /// Full blocks of the system prompt: segments are counted anew after them.
    pub shared_blocks: usize,
}

impl SegmentGrid {
    /// The segments of the first `blocks` blocks, as ranges of blocks.
    pub fn bounds(&self, blocks: usize) -> Vec<Range<usize>> {
        segment_bounds(blocks, self.shared_blocks, self.segment_blocks())
    }

    /// Whether the segment stays as it is however long the conversation gets.
    pub fn is_final(&self, segment: &Range<usize>) -> bool {
        segment.len() == self.segment_blocks() || segment.end == self.shared_blocks
    }

    /// The name of the segment over `blocks`; `hashes` are those of the sequence's full blocks, from the first one on.
    ///
    /// # Panics
    /// Where the range is empty or there is no hash for its end.
    pub fn id(&self, hashes: &[PrefixHash], blocks: &Range<usize>) -> SegmentId {
        let parent = blocks.start.checked_sub(1).map_or(PrefixHash::ROOT, |before| hashes[before]);
        SegmentId { namespace: self.namespace, parent, last: hashes[blocks.end - 1] }
    }

    /// The segment over `blocks` of the sequence of `tokens`.
    ///
    /// # Panics
    /// As [`Self::id`], and where the sequence ends before the segment.
    pub fn segment(&self, tokens: &[u32], hashes: &[PrefixHash], blocks: &Range<usize>) -> Segment {
        let tokens = &tokens[blocks.start * self.block_tokens..blocks.end * self.block_tokens];
        Segment {
            id: self.id(hashes, blocks),
            tenant: self.tenant.clone(),
            first_block: blocks.start,
            tokens: tokens.to_vec(),
        }
    }

    fn segment_blocks(&self) -> usize {
        (SEGMENT_TOKENS / self.block_tokens).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{Identity, TokenChain};

    #[test]
    fn a_segment_is_named_after_its_last_block_and_follows_the_one_before() {
        let namespace = Namespace::new(&Identity::example());
        let grid = SegmentGrid { namespace, tenant: "t".into(), block_tokens: 16, shared_blocks: 3 };
        let tokens: Vec<u32> = (0..16 * 21).collect();
        let chain = TokenChain::new(namespace, 16, tokens.clone());
        let hashes = chain.hashes();
        let bounds = grid.bounds(21);
        assert_eq!(bounds, [0..3, 3..19, 19..21]);
        assert_eq!(
            bounds.iter().map(|segment| grid.is_final(segment)).collect::<Vec<_>>(),
            [true, true, false]
        );
        assert_eq!(grid.id(hashes, &bounds[0]).parent, PrefixHash::ROOT);
        let segment = grid.segment(&tokens, hashes, &bounds[1]);
        assert_eq!((segment.id.parent, segment.id.last), (hashes[2], hashes[18]));
        assert_eq!((segment.first_block, &segment.tokens[..]), (3, &tokens[48..304]));
        // A system prompt that is not all there yet has a short last segment.
        assert!(!grid.is_final(&grid.bounds(2)[0]));
    }
}
