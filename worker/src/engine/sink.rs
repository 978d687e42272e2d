//! The port through which segments leave the engine for good.

use crate::kv::{Segment, SegmentData, SegmentId};

/// Takes segments to be kept. No call waits: the engine's thread makes them between two steps.
pub trait SegmentSink: Send + Sync {
    /// Says that a segment comes. False: it is kept, or on its way, and need not come. After true exactly one of
    /// [`Self::save`] and [`Self::withdraw`] follows.
    fn announce(&self, id: &SegmentId) -> bool;

    /// Whether there is room for the segment now. While there is none it waits in the pool, where it may be evicted. True of one
    /// that can never fit.
    fn has_room(&self, segment: &Segment) -> bool;

    /// The announced segment. Where there is no room for it, it is dropped and counted.
    fn save(&self, data: SegmentData);

    /// The announced segment does not come: its blocks are gone.
    fn withdraw(&self, id: &SegmentId);
}
