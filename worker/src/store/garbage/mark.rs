//! Which segments manifests reach.
//!
//! Invariant: a header is read once, however many chains go through its segment.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::{StreamExt, TryStreamExt};
use turnmill_schema::Digest;

use crate::broker::Root;
use crate::store::StoreError;
use crate::store::inventory::{Inventory, SegmentName};

/// The segments reached so far. A hash covers its namespace, so it names one segment.
#[derive(Debug, Default)]
pub(super) struct Marks {
    reached: Mutex<HashSet<Digest>>,
    broken: AtomicU64,
}

impl Marks {
    /// Marks what can be walked to from `roots`, `parallel` chains at a time.
    pub async fn add(
        &self,
        inventory: &Inventory,
        roots: impl IntoIterator<Item = Root>,
        parallel: usize,
    ) -> Result<(), StoreError> {
        let walks = futures::stream::iter(roots).map(|root| Ok(self.walk(inventory, root)));
        walks.try_buffer_unordered(parallel.max(1)).try_collect().await
    }

    async fn walk(&self, inventory: &Inventory, root: Root) -> Result<(), StoreError> {
        let namespace = root.namespace;
        let mut next = Some(root.last);
        while let Some(hash) = next {
            if !self.reached().insert(hash) {
                return Ok(());
            }
            next = match inventory.header_of(&SegmentName { namespace, hash }).await? {
                Some(header) => header.parent,
                None => {
                    self.broken.fetch_add(1, Ordering::Relaxed);
                    None
                }
            };
        }
        Ok(())
    }

    pub fn contains(&self, hash: &Digest) -> bool {
        self.reached().contains(hash)
    }

    /// Chains that ended at a segment that is missing or damaged.
    pub fn broken(&self) -> u64 {
        self.broken.load(Ordering::Relaxed)
    }

    /// Segments reached that are there.
    pub fn len(&self) -> u64 {
        (self.reached().len() as u64).saturating_sub(self.broken())
    }

    fn reached(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
