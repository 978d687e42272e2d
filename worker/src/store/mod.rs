//! What lies in the object store: today the payloads of turns too large for Redis.
//!
//! Invariants: what is read is checked before it is used; no error text carries a password. This is the only room that
//! knows the object_store crate.

mod payload;

use std::sync::Arc;

use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, parse_url_opts};
use turnmill_schema::PayloadError;
use url::Url;

use crate::config::StoreUrl;
use crate::cryptography;

pub use payload::Payloads;

/// Variables that say who we are to a store and where it is, by the names that its own tools read.
const STORE_VARIABLES: [&str; 3] = ["AWS_", "AZURE_", "GOOGLE_"];

/// What can go wrong between a worker and its object store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The setting is not the address of a store, or its folder cannot be made.
    #[error("the object store {url} cannot be opened: {reason}; correct the setting store")]
    Unusable {
        /// The setting.
        url: StoreUrl,
        /// What is wrong.
        reason: String,
    },
    /// A turn went by reference and the worker was not told where to.
    #[error(
        "the turn is in an object store, and this worker has none: give it the producers' with --store or TURNMILL_STORE"
    )]
    NotConfigured,
    /// The store does not answer, or refuses to; that may pass.
    #[error("cannot get at {path} in the object store {url}: {reason}")]
    Unreachable {
        /// The store.
        url: StoreUrl,
        /// The object.
        path: String,
        /// The client's words.
        reason: String,
    },
    /// The object was removed, or is in another store.
    #[error("there is no {path} in the object store {url}; is it the store that the producer writes to?")]
    Missing {
        /// The store.
        url: StoreUrl,
        /// The object.
        path: String,
    },
    /// The object is not the one that was written.
    #[error("{path} in the object store {url}: {source}")]
    Damaged {
        /// The store.
        url: StoreUrl,
        /// The object.
        path: String,
        /// What is wrong with it.
        source: PayloadError,
    },
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// Opens a store. A folder is made where there is none; other stores are not asked yet.
fn open(url: &StoreUrl) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let unusable =
        |reason: &dyn ToString| StoreError::Unusable { url: url.clone(), reason: reason.to_string() };
    let mut parsed = Url::parse(url.expose()).map_err(|error| unusable(&error))?;
    // Stores read credentials from the environment; an error means that a URL of its kind has none.
    let _ = parsed.set_password(None);
    if let ("file", Ok(folder)) = (parsed.scheme(), parsed.to_file_path()) {
        std::fs::create_dir_all(folder).map_err(|error| unusable(&error))?;
    }
    cryptography::choose();
    let (store, prefix) = parse_url_opts(&parsed, store_variables()).map_err(|error| unusable(&error))?;
    Ok(Arc::new(PrefixStore::new(store, prefix)))
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

    #[test]
    fn every_kind_of_store_is_opened_without_being_asked() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = format!("file://{}/made/here", folder.path().display());
        for url in
            [&file, "s3://bucket/a", "gs://bucket/a", "az://c@account.blob.core.windows.net/a", "memory:///"]
        {
            let opened = open(&StoreUrl::from(url.to_owned()));
            assert!(opened.is_ok(), "{url}: {opened:?}");
        }
        assert!(folder.path().join("made/here").is_dir());
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        for url in [format!("file://{}/x", file.path().display()), "redis://127.0.0.1".into(), "s3://".into()]
        {
            let error = open(&StoreUrl::from(url.clone())).expect_err(&url);
            assert!(error.to_string().contains(&url) && !error.may_pass(), "{error}");
        }
        let secret = StoreUrl::from("az://c:s3cret@h/a".to_owned());
        let error = open(&secret).expect_err("no account");
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}
