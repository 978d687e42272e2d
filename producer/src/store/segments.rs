//! Objects of K and V in the store that the queue's workers share: reading those an agent's manifest reaches, and
//! putting them elsewhere. What is inside is their readers' affair, who verify it.

use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode};
use turnmill_schema::agent_file::MAX_OBJECT_BYTES;
use turnmill_schema::kv_object::{self, HeaderStart};
use turnmill_schema::{Digest, Manifest};

use super::PayloadStore;
use crate::error::ClientError;

/// Tokens of a block, the least that a segment has.
const BLOCK_TOKENS: u32 = 16;

/// Walks the segments that a manifest reaches, from the last one to the first.
#[derive(Debug)]
pub(crate) struct Segments<'a> {
    store: &'a PayloadStore,
    namespace: Digest,
    next: Option<Digest>,
    /// Segments there can be at most: a chain that names itself comes to an end.
    left: u32,
}

impl PayloadStore {
    /// The segments that `manifest` reaches.
    pub(crate) fn segments(&self, manifest: &Manifest) -> Segments<'_> {
        let Manifest { namespace, tokens, last, .. } = *manifest;
        Segments { store: self, namespace, next: Some(last), left: tokens / BLOCK_TOKENS }
    }

    /// Puts an object in its place, unless there is one.
    pub(crate) async fn put_segment(&self, object: Vec<u8>) -> Result<(), ClientError> {
        let Some(start) = HeaderStart::read(&object) else {
            let reason = "it holds no K and V".to_owned();
            return Err(ClientError::Unreadable { what: "an object".to_owned(), reason });
        };
        let path = self.segment_path(&start.namespace, &start.hash);
        let bytes = object.len() as u64;
        let put = self.store.put_opts(&path, object.into(), PutMode::Create.into());
        match self.within(bytes, put).await {
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn segment_path(&self, namespace: &Digest, hash: &Digest) -> Path {
        kv_object::path(&self.queue, namespace, hash).into()
    }

    fn failed(&self, error: &object_store::Error) -> ClientError {
        ClientError::KvStore { url: self.url.to_string(), reason: self.reason(error) }
    }
}

impl Segments<'_> {
    /// The next object, or why there is none though the chain goes on: the rest costs prefill, and nothing else.
    pub(crate) async fn next(&mut self) -> Result<Option<Result<Vec<u8>, String>>, ClientError> {
        let Some(hash) = self.next.take() else { return Ok(None) };
        let missing = |what: &str| Ok(Some(Err(format!("object {hash} {what}"))));
        if self.left == 0 {
            return missing("is one more than the manifest has room for");
        }
        self.left -= 1;
        let path = self.store.segment_path(&self.namespace, &hash);
        let found = match self.store.within(0, self.store.store.get(&path)).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return missing("is not in the store"),
            Err(error) => return Err(self.store.failed(&error)),
        };
        if found.meta.size > MAX_OBJECT_BYTES as u64 {
            return missing("is larger than any object of K and V");
        }
        let (bytes, read) = (found.meta.size, found.bytes());
        let object = self.store.within(bytes, read).await.map_err(|error| self.store.failed(&error))?;
        match HeaderStart::read(&object) {
            Some(start) if start.hash == hash && start.namespace == self.namespace => {
                self.next = start.parent;
                Ok(Some(Ok(object.into())))
            }
            _ => missing("is not what its name says"),
        }
    }
}
