//! How much there is, by namespace.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use serde::Serialize;

use super::{Folder, Inventory};
use crate::store::StoreError;
use turnmill_schema::Digest;

/// The segments of one namespace: of one tenant, one model and one way of computing it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NamespaceCount {
    /// How many.
    pub objects: u64,
    /// What they take.
    pub bytes: u64,
    /// When the oldest was written, or last used if the store is a folder; in Unix milliseconds by the store's clock.
    pub oldest_ms: u64,
    /// The same of the newest.
    pub newest_ms: u64,
}

impl NamespaceCount {
    /// Both together.
    pub fn and(self, other: Self) -> Self {
        if self.objects == 0 {
            return other;
        }
        Self {
            objects: self.objects + other.objects,
            bytes: self.bytes + other.bytes,
            oldest_ms: self.oldest_ms.min(other.oldest_ms),
            newest_ms: self.newest_ms.max(other.newest_ms),
        }
    }
}

/// The segments of a queue, by namespace; and how many objects lie among them that are none.
pub async fn count(inventory: &Inventory) -> Result<(BTreeMap<Digest, NamespaceCount>, u64), StoreError> {
    let (mut counts, mut foreign) = (BTreeMap::<_, NamespaceCount>::new(), 0);
    let mut objects = inventory.list(Folder::Segments);
    while let Some(object) = objects.try_next().await? {
        let Some(name) = inventory.segment_at(&object.path) else {
            foreign += 1;
            continue;
        };
        let (oldest_ms, newest_ms) = (object.modified_ms, object.modified_ms);
        let one = NamespaceCount { objects: 1, bytes: object.bytes, oldest_ms, newest_ms };
        let count = counts.entry(name.namespace).or_default();
        *count = count.and(one);
    }
    Ok((counts, foreign))
}
