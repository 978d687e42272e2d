//! When segments were used since this was last noted in the folder.
//!
//! Invariant: memory is bounded; noting a use never waits for the disk, so that the engine's thread may do it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::kv::SegmentId;

/// Most segments whose use is remembered: more than a pool holds.
const MOST: usize = 32 * 1024;

/// Segments that were used lately.
#[derive(Debug, Default)]
pub(super) struct Uses(Mutex<HashMap<SegmentId, SystemTime>>);

impl Uses {
    /// The segment is used now. While too many wait to be noted, this one is not: it looks older than it is.
    pub fn add(&self, id: SegmentId) {
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if uses.len() < MOST || uses.contains_key(&id) {
            uses.insert(id, SystemTime::now());
        }
    }

    /// All of them, which are no longer remembered here.
    pub fn take(&self) -> HashMap<SegmentId, SystemTime> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
