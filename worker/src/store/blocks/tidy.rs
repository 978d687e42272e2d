//! The store as a folder that keeps to its limit: what is used there, and what was removed.

use std::sync::{Arc, PoisonError};

use super::{BlockStore, BlockStoreSettings, Shared};
use crate::kv::SegmentId;
use crate::observe::metrics;
use crate::store::StoreError;
use crate::store::folder::{Folder, Look, Trimmed};
use crate::surroundings::Surroundings;

/// The files of the queue; none if the store is no folder.
pub(super) fn folder(settings: &BlockStoreSettings, surroundings: Surroundings) -> Option<Arc<Folder>> {
    let root = settings.url.folder()?;
    Some(Folder::new(root, settings.queue.clone(), settings.folder_bytes, surroundings))
}

impl Shared {
    /// The segment is to be written; false: it is stored or on its way, and wanted again.
    pub fn begin(&self, id: SegmentId) -> bool {
        let is_new = self.ledger.begin(id);
        if !is_new {
            self.used(&id);
        }
        is_new
    }

    /// The segment is used: the last to leave a folder that is full. Never waits.
    pub fn used(&self, id: &SegmentId) {
        if let Some(folder) = &self.folder {
            folder.used(id);
        }
    }

    /// What is not in the folder may be saved again.
    pub fn looked(&self, look: &Look) {
        self.ledger.listed(&look.left, look.began);
        metrics::store_trimmed(look.trimmed.bytes);
        let mut trimmed = self.trimmed.lock().unwrap_or_else(PoisonError::into_inner);
        trimmed.objects += look.trimmed.objects;
        trimmed.bytes += look.trimmed.bytes;
    }
}

impl BlockStore {
    /// Whether the store is a folder, which [`Self::tidy`] is for.
    pub fn is_folder(&self) -> bool {
        self.shared().folder.is_some()
    }

    /// Notes in a folder what was used lately, removes what it has over its limit, and forgets which segments were there and
    /// are not. What was removed since the last call, also before writes.
    ///
    /// # Errors
    /// The folder cannot be read, or it is over its limit and something in it cannot be removed.
    pub async fn tidy(&self) -> Result<Trimmed, StoreError> {
        self.look().await?;
        let mut trimmed = self.shared().trimmed.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut trimmed))
    }

    pub(super) async fn look(&self) -> Result<(), StoreError> {
        let Some(folder) = self.shared().folder.clone() else { return Ok(()) };
        let looked = self.run(async move { folder.tidy().await }).await.flatten();
        let url = &self.shared().settings.url;
        let unreachable =
            |reason| StoreError::Unreachable { url: url.clone(), path: "its files".into(), reason };
        if let Some(look) = looked.map_err(unreachable)? {
            self.shared().looked(&look);
            look.has_room.map_err(unreachable)?;
        }
        Ok(())
    }
}
