//! The engine's way into the store.

use super::BlockStore;
use crate::engine::SegmentSink;
use crate::kv::{Segment, SegmentData, SegmentId};

impl SegmentSink for BlockStore {
    fn announce(&self, id: &SegmentId) -> bool {
        self.shared().begin(*id)
    }

    fn has_room(&self, segment: &Segment) -> bool {
        let shape = &self.shared().settings.shape;
        self.shared().room.has(segment.tokens.len() / shape.block_tokens * shape.block_bytes())
    }

    fn save(&self, data: SegmentData) {
        // One that does not fit was counted, and has ended.
        self.0.saver.save(self.shared(), data);
    }

    fn withdraw(&self, id: &SegmentId) {
        self.shared().ledger.end(*id, false);
    }
}
