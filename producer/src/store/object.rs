//! The store itself: opening it, and payloads in it.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt, parse_url_opts};
use tracing::warn;
use turnmill_schema::{Name, PayloadReference, Turn};
use url::Url;

use crate::error::ClientError;

/// How long a store may take for an answer, and how much longer for each piece of what is sent or read. Its client
/// tries again by itself, which this bounds too.
const ANSWER: Duration = Duration::from_secs(5);
const ANSWER_PER_PIECE: Duration = Duration::from_secs(1);
const PIECE_BYTES: u64 = 256 << 10;
/// How long the store's client waits for a connection, before it tries again.
const CONNECT: (&str, &str) = ("connect_timeout", "2 s");

/// Variables that name a store and hold its credentials, by the names that the store's own tools read.
const STORE_VARIABLES: [&str; 3] = ["AWS_", "AZURE_", "GOOGLE_"];

/// Where the payloads of a queue are.
#[derive(Clone, Debug)]
pub(crate) struct PayloadStore {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// For messages: without a password.
    pub(crate) url: Url,
    pub(crate) queue: Name,
}

impl PayloadStore {
    /// Opens the store at `url`. A folder that does not exist is made; other stores are not asked yet.
    pub(crate) fn open(url: &str, queue: &Name) -> Result<Self, ClientError> {
        let invalid = |reason: &dyn ToString| ClientError::InvalidStore { reason: reason.to_string() };
        let mut url = Url::parse(url).map_err(|error| invalid(&error))?;
        // Stores read credentials from the environment; an error means that a URL of its kind has none.
        let _ = url.set_password(None);
        turnmill_redis::choose_cryptography();
        let store: Arc<dyn ObjectStore> = match url.to_file_path() {
            Ok(folder) if url.scheme() == "file" => Arc::new(folder_store(&folder).map_err(|e| invalid(&e))?),
            _ => {
                // The environment has the last word.
                let connect = std::iter::once(CONNECT).map(|(name, value)| (name.into(), value.into()));
                let options = connect.chain(store_variables());
                let (store, prefix) = parse_url_opts(&url, options).map_err(|e| invalid(&e))?;
                Arc::new(PrefixStore::new(store, prefix))
            }
        };
        Ok(Self { store, url, queue: queue.clone() })
    }

    /// Writes an object. Repeating it writes the same again.
    pub(crate) async fn put(&self, reference: &PayloadReference, object: Vec<u8>) -> Result<(), ClientError> {
        let path = self.path(reference);
        let put = self.within(reference.bytes, self.store.put(&path, object.into())).await;
        put.map(drop)
            .map_err(|error| ClientError::Store { url: self.url.to_string(), reason: self.reason(&error) })
    }

    /// Reads the turn of an object.
    pub(crate) async fn get(&self, reference: &PayloadReference) -> Result<Turn, ClientError> {
        let what = || format!("the payload of turn {} in {}", reference.turn, self.url);
        let failed = |reason| ClientError::Unreadable { what: what(), reason };
        let (path, refused) = (self.path(reference), |error| failed(self.reason(&error)));
        let found = self.within(0, self.store.get(&path)).await.map_err(refused)?;
        reference.check_size(found.meta.size).map_err(|error| failed(error.to_string()))?;
        let object = self.within(reference.bytes, found.bytes()).await.map_err(refused)?;
        reference.open(&object).map_err(|error| failed(error.to_string()))
    }

    /// Removes an object that no turn in the queue refers to; one that stays is only in the way.
    pub(crate) async fn remove(&self, reference: &PayloadReference) {
        if let Err(error) = self.within(0, self.store.delete(&self.path(reference))).await {
            let (turn, reason) = (reference.turn, self.reason(&error));
            warn!(%turn, reason, "an object that is not needed stays in the store");
        }
    }

    /// What the store answers, if it does so in the time that moving `bytes` bytes may take.
    pub(crate) async fn within<T>(
        &self,
        bytes: u64,
        answer: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        let pieces = u32::try_from(bytes / PIECE_BYTES).unwrap_or(u32::MAX);
        let time = ANSWER.saturating_add(ANSWER_PER_PIECE.saturating_mul(pieces));
        tokio::time::timeout(time, answer).await.unwrap_or_else(|_| {
            // It may have answered with errors of its own, and the store's client tries again by itself.
            let source = format!("it gave no good answer within {} s", time.as_secs()).into();
            Err(object_store::Error::Generic { store: "remote", source })
        })
    }

    /// What went wrong, without what the store's client tells of its own doings.
    pub(crate) fn reason(&self, error: &object_store::Error) -> String {
        let mut cause: &dyn Error = error;
        // A folder's errors name the file; what is behind them does not.
        while self.url.scheme() != "file"
            && let Some(source) = cause.source()
        {
            cause = source;
        }
        cause.to_string()
    }

    fn path(&self, reference: &PayloadReference) -> object_store::path::Path {
        reference.path(&self.queue).into()
    }
}

/// A folder whose files survive a power failure once they are written, as the objects of other stores do.
fn folder_store(folder: &Path) -> object_store::Result<LocalFileSystem> {
    let refused = |source| object_store::Error::Generic { store: "folder", source: Box::new(source) };
    std::fs::create_dir_all(folder).map_err(|error: std::io::Error| refused(error))?;
    Ok(LocalFileSystem::new_with_prefix(folder)?.with_fsync(true))
}

fn store_variables() -> impl Iterator<Item = (String, String)> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    let ours = |(name, _): &(String, String)| STORE_VARIABLES.iter().any(|start| name.starts_with(start));
    std::env::vars_os().filter_map(text).filter(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> String {
        let queue = Name::new("q").expect("a name");
        PayloadStore::open(url, &queue).expect_err(url).to_string()
    }

    #[test]
    fn what_is_no_store_is_refused_with_what_one_looks_like() {
        for url in ["/var/lib/turnmill", "redis://127.0.0.1", "ftp://h/x", "s3://", "az://c:s3cret@h/x", ""] {
            let said = refused(url);
            assert!(said.contains("file:///var/lib/turnmill") && !said.contains("s3cret"), "{said}");
        }
    }

    #[tokio::test]
    async fn every_kind_of_store_is_opened_without_being_asked() {
        let queue = Name::new("q").expect("a name");
        for url in ["s3://bucket/a", "gs://bucket/a", "az://c@account.blob.core.windows.net/a", "memory:///"]
        {
            assert!(PayloadStore::open(url, &queue).is_ok(), "{:?}", PayloadStore::open(url, &queue));
        }
        let store = PayloadStore::open("s3://id:s3cret@bucket/a", &queue).expect("opens");
        assert!(!store.url.as_str().contains("s3cret"), "{}", store.url);
    }
}
