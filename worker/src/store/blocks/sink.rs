//! The engine's way into the store.

use super::BlockStore;
use crate::engine::RunSink;
use crate::kv::{Run, RunData, RunId};

impl RunSink for BlockStore {
    fn announce(&self, id: &RunId) -> bool {
        self.shared().ledger.begin(*id)
    }

    fn has_room(&self, run: &Run) -> bool {
        let shape = &self.shared().settings.shape;
        self.shared().room.has(run.tokens.len() / shape.block_tokens * shape.block_bytes())
    }

    fn save(&self, data: RunData) {
        // One that does not fit was counted, and has ended.
        self.0.saver.save(self.shared(), data);
    }

    fn withdraw(&self, id: &RunId) {
        self.shared().ledger.end(*id, false);
    }
}
