//! Block pool, block tables, a turn's tokens with their prefix hashes, segments and how they are encoded. Pure: no I/O, no clock, no
//! tensors.
//!
//! A block goes from free to mutable (one writer), to shared (full, immutable, counted holders, findable by
//! its prefix hash), to cached (no holder, still findable) and back to free when its room is needed.

mod chain;
pub mod codec;
mod grid;
mod hash;
mod pool;
mod segment;
mod table;

pub use chain::TokenChain;
pub use grid::SegmentGrid;
pub use hash::{Identity, Namespace, PrefixHash};
pub use pool::{BlockPool, MutableBlock, PoolCounts, SharedBlock};
pub use segment::{BlockShape, SEGMENT_TOKENS, Segment, SegmentData, SegmentId, segment_bounds};
pub use table::BlockTable;

/// Index of a block in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);
