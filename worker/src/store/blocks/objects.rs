//! Segments as objects: their names, and what is asked of the client.
//!
//! Invariants: every call here ends within its time; an object is written once and never changed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, GetResult, ObjectStore, ObjectStoreExt, PutMode};
use turnmill_schema::Name;
use uuid::Uuid;

use super::BlockStoreSettings;
use crate::config::StoreUrl;
use crate::kv::SegmentId;
use crate::store::inventory::SegmentName;
use crate::store::open::{Patience, open_with};
use crate::store::{DAMAGED, StoreError};
use crate::surroundings::Surroundings;

/// The folder that checks write to.
const PROBES: &str = "kv-probe";
/// How long a check waits; clients of remote stores would try again for minutes.
const CHECK: Duration = Duration::from_secs(10);
/// A write may take at least this long: it is large, and no turn waits for all of it.
const WRITE: Duration = Duration::from_secs(30);
/// A connection is made or refused in this time.
const CONNECT: Duration = Duration::from_secs(5);

/// The segments of one queue in a store.
#[derive(Debug)]
pub(super) struct Objects {
    store: Arc<dyn ObjectStore>,
    url: StoreUrl,
    queue: Name,
    /// How long a read may take.
    read: Duration,
    /// How long a write may take.
    write: Duration,
    surroundings: Surroundings,
}

impl Objects {
    pub fn open(settings: &BlockStoreSettings, surroundings: Surroundings) -> Result<Self, StoreError> {
        let (read, write) = patience(settings);
        let patience = Patience { connect: read.min(CONNECT), request: write, retries: read };
        Ok(Self::over(open_with(&settings.url, patience)?, settings, surroundings))
    }

    /// The same through this client.
    pub fn over(
        store: Arc<dyn ObjectStore>,
        settings: &BlockStoreSettings,
        surroundings: Surroundings,
    ) -> Self {
        let (read, write) = patience(settings);
        Self { store, url: settings.url.clone(), queue: settings.queue.clone(), read, write, surroundings }
    }

    /// The segment's object, if there is one; its bytes are still to be read. Reading ends with the fetch's time.
    pub async fn get(&self, id: &SegmentId) -> Result<GetResult, Error> {
        self.store.get(&self.path(id)).await
    }

    /// Writes a segment's object if there is none; false: there is one. Another worker's with the same name holds the same
    /// segment.
    pub async fn put(&self, id: &SegmentId, object: Bytes) -> Result<bool, String> {
        let path = self.path(id);
        let put = self.store.put_opts(&path, object.into(), PutMode::Create.into());
        match self.surroundings.timeout(self.write, put).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(Error::AlreadyExists { .. })) => Ok(false),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(silent_for(self.write)),
        }
    }

    /// Takes a damaged object out of the way so that the segment can be written anew, and keeps it where it harms nobody.
    /// What cannot be moved is removed; what cannot be removed either is a miss again next time.
    pub async fn set_aside(&self, id: &SegmentId, damage: &str) {
        let path = self.path(id);
        let aside = path_aside(&path);
        let moved = async {
            match self.store.rename(&path, &aside).await {
                Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
                Err(_) => self.store.delete(&path).await,
            }
        };
        let moved = match self.surroundings.timeout(self.read, moved).await {
            Ok(moved) => moved.map_err(|error| error.to_string()),
            Err(_) => Err(silent_for(self.read)),
        };
        match moved {
            Ok(()) => tracing::warn!(%path, %aside, damage, "a stored segment is damaged; it was set aside"),
            Err(error) => {
                tracing::warn!(%path, damage, error, "a stored segment is damaged and stays where it is")
            }
        }
    }

    /// Whether the store takes, gives back and removes an object.
    #[allow(clippy::disallowed_methods, reason = "an object that no other check has; not simulated")]
    pub async fn check(&self) -> Result<(), StoreError> {
        let path = Path::from(format!("{PROBES}/{}/{}", self.queue, Uuid::now_v7()));
        let unreachable =
            |reason| StoreError::Unreachable { url: self.url.clone(), path: path.to_string(), reason };
        match self.surroundings.timeout(CHECK, self.probe(&path)).await {
            Ok(probed) => probed.map_err(unreachable),
            Err(_) => Err(unreachable(silent_for(CHECK))),
        }
    }

    async fn probe(&self, path: &Path) -> Result<(), String> {
        let written = Bytes::from(path.to_string());
        let put = self.store.put_opts(path, written.clone().into(), PutMode::Create.into());
        put.await.map_err(|error| format!("it cannot be written: {error}"))?;
        let read = async { self.store.get(path).await?.bytes().await };
        let read = read.await.map_err(|error| format!("it cannot be read: {error}"))?;
        if read != written {
            return Err("other bytes came back than were written".into());
        }
        self.store.delete(path).await.map_err(|error| format!("it cannot be removed: {error}"))
    }

    fn path(&self, id: &SegmentId) -> Path {
        SegmentName::from(id).path(&self.queue)
    }
}

/// How long a read and a write may take.
fn patience(settings: &BlockStoreSettings) -> (Duration, Duration) {
    (settings.timeout, settings.timeout.max(WRITE))
}

/// The place of the segment at `path` once it is known to be damaged: the same under another folder.
fn path_aside(path: &Path) -> Path {
    Path::from_iter(std::iter::once(DAMAGED.into()).chain(path.parts().skip(1)))
}

pub(super) fn silent_for(time: Duration) -> String {
    format!("no answer within {:.1} s", time.as_secs_f64())
}
