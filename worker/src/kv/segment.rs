//! Segments: consecutive full blocks of a sequence that are stored as one object.
//!
//! Invariants: a segment has at least one block; its name is the hash of its last block, which covers every token
//! before it; the segment that comes before it is named by the parent of its first block.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::{Namespace, PrefixHash};
use crate::config::KvDtype;

/// Tokens of a full segment, a multiple of every block's.
pub const SEGMENT_TOKENS: usize = 256;

/// Extent of one block in all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockShape {
    /// Layers of the model.
    pub layers: usize,
    /// Tokens in a block.
    pub block_tokens: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Element type of the pool.
    pub dtype: KvDtype,
}

impl BlockShape {
    /// Bytes of one block in the pool: K and V of all layers.
    pub fn block_bytes(&self) -> usize {
        self.layers * self.layer_elements() * self.element_bytes()
    }

    /// Bytes of one element in the pool.
    pub fn element_bytes(&self) -> usize {
        match self.dtype {
            KvDtype::F16 | KvDtype::Bf16 => 2,
            KvDtype::F32 => 4,
        }
    }

    /// Elements of one block in one layer, K and V together.
    pub(crate) fn layer_elements(&self) -> usize {
        2 * self.block_tokens * self.kv_heads * self.head_dim
    }
}

/// Which segment: where it may be shared, what comes before it and the hash of its last block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SegmentId {
    /// The tenant's namespace.
    pub namespace: Namespace,
    /// The last block of the segment before it, [`PrefixHash::ROOT`] for a sequence's first.
    pub parent: PrefixHash,
    /// Its own last block, which names it.
    pub last: PrefixHash,
}

/// A segment without its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its name.
    pub id: SegmentId,
    /// Whose it is.
    pub tenant: Arc<str>,
    /// Index within the sequence of its first block.
    pub first_block: usize,
    /// The tokens of all its blocks, which are full.
    pub tokens: Vec<u32>,
}

impl Segment {
    /// The block of the sequence after its last one; a block has `block_tokens` tokens.
    pub fn end_block(&self, block_tokens: usize) -> usize {
        self.first_block + self.tokens.len() / block_tokens
    }
}

/// A segment as the pool has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentData {
    /// Which.
    pub segment: Arc<Segment>,
    /// For each layer all K, then all V, each `[blocks, block_tokens, kv_heads, head_dim]` in the pool's type,
    /// little endian.
    pub data: Bytes,
}

/// The blocks of each segment of a sequence of `blocks` full blocks; a segment has `full` of them, or fewer where it is
/// the last or ends the `shared` first ones.
///
/// Segments are counted anew after the shared blocks, so that those are stored once, whatever follows them.
///
/// # Panics
/// Where `full` is 0.
pub fn segment_bounds(blocks: usize, shared: usize, full: usize) -> Vec<Range<usize>> {
    let shared = shared.min(blocks);
    let segments =
        |start: usize, end: usize| (start..end).step_by(full).map(move |first| first..end.min(first + full));
    segments(0, shared).chain(segments(shared, blocks)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_block_has_k_and_v_of_all_layers() {
        let shape =
            BlockShape { layers: 30, block_tokens: 16, kv_heads: 3, head_dim: 64, dtype: KvDtype::F16 };
        assert_eq!(shape.block_bytes(), 30 * 2 * 16 * 3 * 64 * 2);
        assert_eq!(BlockShape { dtype: KvDtype::Bf16, ..shape }.block_bytes(), shape.block_bytes());
        assert_eq!(BlockShape { dtype: KvDtype::F32, ..shape }.block_bytes(), 2 * shape.block_bytes());
    }

    #[test]
    fn segments_start_anew_after_the_shared_blocks() {
        assert!(segment_bounds(0, 0, 16).is_empty());
        assert_eq!(segment_bounds(17, 0, 16), [0..16, 16..17]);
        assert_eq!(segment_bounds(40, 20, 16), [0..16, 16..20, 20..36, 36..40]);
        assert_eq!(segment_bounds(20, 99, 16), [0..16, 16..20]);
    }

    proptest! {
        #[test]
        fn segments_cover_every_block_once(blocks in 0usize..200, shared in 0usize..220, full in 1usize..20) {
            let bounds = segment_bounds(blocks, shared, full);
            let covered: Vec<usize> = bounds.iter().cloned().flatten().collect();
            prop_assert_eq!(covered, (0..blocks).collect::<Vec<_>>());
            for segment in &bounds {
                prop_assert!((1..=full).contains(&segment.len()));
                prop_assert!(segment.len() == full || segment.end == blocks || segment.end == shared);
                prop_assert!(segment.end <= shared || segment.start >= shared);
            }
        }

        #[test]
        fn shared_segments_do_not_depend_on_what_follows(
            shared in 0usize..100, more in 0usize..100, full in 1usize..20,
        ) {
            let alone = segment_bounds(shared, shared, full);
            let followed = segment_bounds(shared + more, shared, full);
            prop_assert_eq!(&followed[..alone.len()], &alone[..]);
        }

        #[test]
        fn full_segments_stay_when_a_sequence_grows(
            blocks in 0usize..100, more in 0usize..100, shared in 0usize..50, full in 1usize..20,
        ) {
            // An agent whose system prompt is not full yet has nothing after it.
            prop_assume!(shared <= blocks);
            let (before, after) = (segment_bounds(blocks, shared, full), segment_bounds(blocks + more, shared, full));
            for segment in before.iter().filter(|segment| segment.len() == full || segment.end == shared) {
                prop_assert!(after.contains(segment));
            }
        }
    }
}
