//! What one queue has in the object store, for the commands that count, check and remove it.
//!
//! Invariants: a listing is read as it comes, however long it is; what is not named as this queue's objects are is left
//! alone; nothing here is asked for on behalf of a turn.

#![allow(clippy::disallowed_methods, reason = "operators' commands; not simulated")]

mod count;
mod verify;

use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt};
use futures::{TryFutureExt, TryStreamExt};
use object_store::path::Path;
use object_store::{Error, ObjectMeta, ObjectStore, ObjectStoreExt};
use turnmill_schema::kv_object::{self, HEADER_START_BYTES, HeaderStart};
use turnmill_schema::{Digest, Name, TurnId, payload};

use super::{DAMAGED, StoreError, open};
use crate::config::StoreUrl;
use crate::kv::SegmentId;

pub use count::{NamespaceCount, count};
pub use verify::{DamagedSegment, Verified, verify};

/// The kinds of objects that a queue has, a folder each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Folder {
    Segments,
    /// Segments that were damaged when a worker read them.
    Damaged,
    /// Turns too large for Redis.
    Payloads,
}

/// An object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub path: Path,
    pub bytes: u64,
    /// When it was written, or last used if the store is a folder; in Unix milliseconds by the store's clock.
    pub modified_ms: u64,
}

/// Which segment an object is, by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SegmentName {
    pub namespace: Digest,
    pub hash: Digest,
}

impl SegmentName {
    /// The segment that `path` names; none if no segment of `queue` is named so.
    pub fn at(queue: &Name, path: &Path) -> Option<Self> {
        let mut parts = path.prefix_match(&folder_of(queue, Folder::Segments))?;
        let namespace = digest(parts.next()?.as_ref())?;
        let hash = digest(parts.nth(1)?.as_ref())?;
        let name = Self { namespace, hash };
        // One spelling: another would be another object.
        (name.path(queue) == *path).then_some(name)
    }

    /// Its path among the objects of `queue`.
    pub fn path(&self, queue: &Name) -> Path {
        Path::from(kv_object::path(queue, &self.namespace, &self.hash))
    }

    /// Whether an object that starts with `header` is the segment of this name.
    pub fn matches(&self, header: &HeaderStart) -> bool {
        header.namespace == self.namespace && header.hash == self.hash
    }
}

impl From<&SegmentId> for SegmentName {
    fn from(id: &SegmentId) -> Self {
        Self { namespace: Digest(*id.namespace.as_bytes()), hash: Digest(id.last.0) }
    }
}

/// What became of objects that were to be removed.
#[derive(Debug, Default)]
pub(super) struct Removed {
    pub paths: Vec<Path>,
    /// How many were not there any more.
    pub gone: u64,
    /// One of the reasons why others stayed.
    pub error: Option<StoreError>,
}

/// The objects of one queue.
#[derive(Clone, Debug)]
pub struct Inventory {
    store: Arc<dyn ObjectStore>,
    url: StoreUrl,
    queue: Name,
}

impl Inventory {
    /// Opens the store at `url`. A folder is made if there is none; other stores are not asked yet.
    pub fn open(url: &StoreUrl, queue: &Name) -> Result<Self, StoreError> {
        Ok(Self { store: open(url)?, url: url.clone(), queue: queue.clone() })
    }

    /// The queue.
    pub fn queue(&self) -> &Name {
        &self.queue
    }

    /// Removes every segment, for tools whose queue is their own.
    pub async fn clear(&self) -> Result<(), StoreError> {
        let paths = self.list(Folder::Segments).map_ok(|object| object.path).try_collect().await?;
        self.remove(paths).await.error.map_or(Ok(()), Err)
    }

    /// Where the objects are.
    pub fn url(&self) -> &StoreUrl {
        &self.url
    }

    /// Whether the queue has no objects at all.
    pub async fn is_empty(&self) -> Result<bool, StoreError> {
        for folder in [Folder::Segments, Folder::Damaged, Folder::Payloads] {
            if self.list(folder).try_next().await?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Every object of a kind, in no order.
    pub(super) fn list(&self, folder: Folder) -> BoxStream<'static, Result<Object, StoreError>> {
        let prefix = self.folder(folder);
        let (this, at) = (self.clone(), prefix.clone());
        let listed = self.store.list(Some(&prefix));
        listed.map(move |found| found.map(Object::from).map_err(|error| this.error(&at, &error))).boxed()
    }

    /// Which segment `path` is; none if no segment of this queue is named so.
    pub(super) fn segment_at(&self, path: &Path) -> Option<SegmentName> {
        SegmentName::at(&self.queue, path)
    }

    /// Which turn's payload `path` is; none if no payload of this queue is named so.
    pub(super) fn payload_at(&self, path: &Path) -> Option<TurnId> {
        let mut parts = path.prefix_match(&self.folder(Folder::Payloads))?;
        let name = parts.next()?;
        let (turn, hash) = name.as_ref().rsplit_once('-')?;
        (digest(hash).is_some() && parts.next().is_none()).then(|| turn.parse().ok())?
    }

    /// The start of a segment's header; none if the object is gone, or is not the segment that its path says.
    pub(super) async fn header_of(&self, name: &SegmentName) -> Result<Option<HeaderStart>, StoreError> {
        let path = name.path(&self.queue);
        let start = match self.store.get_range(&path, 0..HEADER_START_BYTES as u64).await {
            Ok(start) => start,
            Err(Error::NotFound { .. }) => return Ok(None),
            // Stores refuse a range that starts where the object ends.
            Err(error) => match self.store.head(&path).await {
                Ok(found) if found.size >= HEADER_START_BYTES as u64 => return Err(self.error(&path, &error)),
                Ok(_) | Err(Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(self.error(&path, &error)),
            },
        };
        Ok(HeaderStart::read(&start).filter(|header| name.matches(header)))
    }

    /// A whole object; none if it is gone.
    async fn read(&self, path: &Path) -> Result<Option<bytes::Bytes>, StoreError> {
        match self.store.get(path).and_then(|found| found.bytes()).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error(path, &error)),
        }
    }

    /// Removes objects, as many as it can.
    pub(super) async fn remove(&self, paths: Vec<Path>) -> Removed {
        let folder = Path::from(self.queue.as_str());
        let mut outcomes = self.store.delete_stream(futures::stream::iter(paths.into_iter().map(Ok)).boxed());
        let mut removed = Removed::default();
        while let Some(outcome) = outcomes.next().await {
            match outcome {
                Ok(path) => removed.paths.push(path),
                Err(Error::NotFound { .. }) => removed.gone += 1,
                Err(error) => removed.error = Some(self.error(&folder, &error)),
            }
        }
        removed
    }

    fn folder(&self, folder: Folder) -> Path {
        folder_of(&self.queue, folder)
    }

    fn error(&self, path: &Path, error: &Error) -> StoreError {
        let (url, path, reason) = (self.url.clone(), path.to_string(), error.to_string());
        StoreError::Unreachable { url, path, reason }
    }
}

/// Where a queue's objects of a kind are.
pub(super) fn folder_of(queue: &Name, folder: Folder) -> Path {
    let name = match folder {
        Folder::Segments => kv_object::FOLDER,
        Folder::Damaged => DAMAGED,
        Folder::Payloads => payload::FOLDER,
    };
    Path::from(format!("{name}/{queue}"))
}

impl From<ObjectMeta> for Object {
    fn from(found: ObjectMeta) -> Self {
        let modified_ms = u64::try_from(found.last_modified.timestamp_millis()).unwrap_or_default();
        Self { path: found.location, bytes: found.size, modified_ms }
    }
}

fn digest(text: &str) -> Option<Digest> {
    blake3::Hash::from_hex(text).ok().map(|hash| Digest(*hash.as_bytes()))
}

#[cfg(test)]
pub(super) mod tests;
