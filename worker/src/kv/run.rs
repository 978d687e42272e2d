//! Runs: consecutive full blocks of a sequence that are stored as one object.
//!
//! Invariants: a run has at least one block; its name is the hash of its last block, which covers every token
//! before it; the run that comes before it is named by the parent of its first block.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::{Namespace, PrefixHash};
use crate::config::KvDtype;

/// Tokens of a full run, a multiple of every block's.
pub const CHUNK_TOKENS: usize = 256;

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

/// Which run: where it may be shared, what comes before it and the hash of its last block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RunId {
    /// The tenant's namespace.
    pub namespace: Namespace,
    /// The last block of the run before it, [`PrefixHash::ROOT`] for a sequence's first.
    pub parent: PrefixHash,
    /// Its own last block, which names it.
    pub last: PrefixHash,
}

/// A run without its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its name.
    pub id: RunId,
    /// Whose it is.
    pub tenant: Arc<str>,
    /// Index within the sequence of its first block.
    pub first_block: usize,
    /// The tokens of all its blocks, which are full.
    pub tokens: Vec<u32>,
}

impl Run {
    /// The block of the sequence after its last one; a block has `block_tokens` tokens.
    pub fn end_block(&self, block_tokens: usize) -> usize {
        self.first_block + self.tokens.len() / block_tokens
    }
}

/// A run as the pool has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunData {
    /// Which.
    pub run: Arc<Run>,
    /// For each layer all K, then all V, each `[blocks, block_tokens, kv_heads, head_dim]` in the pool's type,
    /// little endian.
    pub data: Bytes,
}

/// The blocks of each run of a sequence of `blocks` full blocks; a run has `chunk` of them, or fewer where it is
/// the last or ends the `shared` first ones.
///
/// Runs are counted anew after the shared blocks, so that those are stored once, whatever follows them.
///
/// # Panics
/// Where `chunk` is 0.
pub fn run_bounds(blocks: usize, shared: usize, chunk: usize) -> Vec<Range<usize>> {
    let shared = shared.min(blocks);
    let runs = |start: usize, end: usize| {
        (start..end).step_by(chunk).map(move |first| first..end.min(first + chunk))
    };
    runs(0, shared).chain(runs(shared, blocks)).collect()
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
    fn runs_start_anew_after_the_shared_blocks() {
        assert!(run_bounds(0, 0, 16).is_empty());
        assert_eq!(run_bounds(17, 0, 16), [0..16, 16..17]);
        assert_eq!(run_bounds(40, 20, 16), [0..16, 16..20, 20..36, 36..40]);
        assert_eq!(run_bounds(20, 99, 16), [0..16, 16..20]);
    }

    proptest! {
        #[test]
        fn runs_cover_every_block_once(blocks in 0usize..200, shared in 0usize..220, chunk in 1usize..20) {
            let bounds = run_bounds(blocks, shared, chunk);
            let covered: Vec<usize> = bounds.iter().cloned().flatten().collect();
            prop_assert_eq!(covered, (0..blocks).collect::<Vec<_>>());
            for run in &bounds {
                prop_assert!((1..=chunk).contains(&run.len()));
                prop_assert!(run.len() == chunk || run.end == blocks || run.end == shared);
                prop_assert!(run.end <= shared || run.start >= shared);
            }
        }

        #[test]
        fn shared_runs_do_not_depend_on_what_follows(
            shared in 0usize..100, more in 0usize..100, chunk in 1usize..20,
        ) {
            let alone = run_bounds(shared, shared, chunk);
            let followed = run_bounds(shared + more, shared, chunk);
            prop_assert_eq!(&followed[..alone.len()], &alone[..]);
        }

        #[test]
        fn full_runs_stay_when_a_sequence_grows(
            blocks in 0usize..100, more in 0usize..100, shared in 0usize..50, chunk in 1usize..20,
        ) {
            // An agent whose system prompt is not full yet has nothing after it.
            prop_assume!(shared <= blocks);
            let (before, after) = (run_bounds(blocks, shared, chunk), run_bounds(blocks + more, shared, chunk));
            for run in before.iter().filter(|run| run.len() == chunk || run.end == shared) {
                prop_assert!(after.contains(run));
            }
        }
    }
}
