//! From a URL to a client.
//!
//! Invariants: no error text carries a password; opening asks a remote store nothing; every `memory:///` of a process is
//! one store, as two clients of one server are.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use super::StoreError;
use crate::config::StoreUrl;
use crate::cryptography;

/// Variables that name a store and hold its credentials, by the names that the store's own tools read.
const STORE_VARIABLES: [&str; 3] = ["AWS_", "AZURE_", "GOOGLE_"];

/// How long the client of a remote store may try; left alone, it goes on for minutes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Until a connection stands.
    pub connect: Duration,
    /// One request with its answer.
    pub request: Duration,
    /// No request is sent again after this time.
    pub retries: Duration,
}

impl Default for Patience {
    /// A dead address is known in seconds; a large object may take longer, if it comes.
    fn default() -> Self {
        let [connect, request, retries] = [2, 30, 5].map(Duration::from_secs);
        Self { connect, request, retries }
    }
}

impl Patience {
    fn retry(self) -> RetryConfig {
        RetryConfig { retry_timeout: self.retries, ..RetryConfig::default() }
    }

    fn options(self) -> [(String, String); 2] {
        let text = |name: &str, time: Duration| (name.to_owned(), format!("{} ms", time.as_millis()));
        [text("connect_timeout", self.connect), text("timeout", self.request)]
    }
}

/// Opens the store at `url`. A folder is made if there is none; other stores are not asked yet.
pub fn open(url: &StoreUrl) -> Result<Arc<dyn ObjectStore>, StoreError> {
    open_with(url, Patience::default())
}

/// The same with a client that gives up after `patience`.
pub(super) fn open_with(url: &StoreUrl, patience: Patience) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let unusable =
        |reason: &dyn ToString| StoreError::Unusable { url: url.clone(), reason: reason.to_string() };
    let mut parsed = Url::parse(url.expose()).map_err(|error| unusable(&error))?;
    // Stores read credentials from the environment; an error means that a URL of its kind has none.
    let _ = parsed.set_password(None);
    if let ("file", Ok(folder)) = (parsed.scheme(), parsed.to_file_path()) {
        std::fs::create_dir_all(folder).map_err(|error| unusable(&error))?;
    }
    cryptography::choose();
    let (store, prefix) = client(&parsed, patience).map_err(|error| unusable(&error))?;
    Ok(Arc::new(PrefixStore::new(store, prefix)))
}

/// A builder with everything that the environment says about its store.
macro_rules! remote {
    ($builder:ty, $url:expr, $patience:expr) => {{
        let mut builder = <$builder>::new().with_url($url.to_string());
        // The environment has the last word.
        for (name, value) in $patience.options().into_iter().chain(store_variables()) {
            if let Ok(key) = name.to_ascii_lowercase().parse() {
                builder = builder.with_config(key, value);
            }
        }
        Arc::new(builder.with_retry($patience.retry()).build()?)
    }};
}

/// What `object_store::parse_url_opts` does; that has no way to bound retries.
fn client(url: &Url, patience: Patience) -> Result<(Arc<dyn ObjectStore>, Path), object_store::Error> {
    let (scheme, prefix) = ObjectStoreScheme::parse(url)?;
    let store: Arc<dyn ObjectStore> = match scheme {
        // A put writes `<name>#<number>` first and then links that to the name, so an object is there whole or not at
        // all, and put-if-absent holds between processes. Nothing is synced: after a power cut an object may be short
        // or full of zeros, which its checksums find. A writer that dies leaves the numbered file behind; listings
        // pass over it.
        ObjectStoreScheme::Local => Arc::new(LocalFileSystem::new()),
        ObjectStoreScheme::Memory => memory(),
        ObjectStoreScheme::AmazonS3 => remote!(AmazonS3Builder, url, patience),
        ObjectStoreScheme::GoogleCloudStorage => remote!(GoogleCloudStorageBuilder, url, patience),
        ObjectStoreScheme::MicrosoftAzure => remote!(MicrosoftAzureBuilder, url, patience),
        other => {
            let source = format!("there is no client for {other:?}").into();
            return Err(object_store::Error::Generic { store: "turnmill", source });
        }
    };
    Ok((store, prefix))
}

/// The store in this process's memory; it is gone with the last who has it.
fn memory() -> Arc<InMemory> {
    static MEMORY: Mutex<Weak<InMemory>> = Mutex::new(Weak::new());
    let mut memory = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    memory.upgrade().unwrap_or_else(|| {
        let store = Arc::new(InMemory::new());
        *memory = Arc::downgrade(&store);
        store
    })
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
    use object_store::ObjectStoreExt;

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
        for url in [
            format!("file://{}/x", file.path().display()),
            "redis://127.0.0.1".into(),
            "s3://".into(),
            "http://h/a".into(),
        ] {
            let error = open(&StoreUrl::from(url.clone())).expect_err(&url);
            assert!(error.to_string().contains(&url) && !error.may_pass(), "{error}");
        }
        let secret = StoreUrl::from("az://c:s3cret@h/a".to_owned());
        let error = open(&secret).expect_err("no account");
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }

    /// An option whose name or unit the client does not know would be passed over in silence.
    #[test]
    fn the_client_takes_our_patience() {
        use object_store::aws::AmazonS3ConfigKey;
        let mut builder = AmazonS3Builder::new().with_url("s3://bucket/a");
        for (name, value) in Patience::default().options() {
            let key: AmazonS3ConfigKey = name.parse().expect("a known option");
            builder = builder.with_config(key, value);
            assert!(builder.get_config_value(&key).is_some_and(|value| value.ends_with('s')), "{name}");
        }
        builder.build().expect("the units are known");
    }

    #[tokio::test]
    async fn memory_is_one_store_with_folders() {
        let at = |url: &str| open(&StoreUrl::from(url.to_owned())).expect("memory opens");
        let (here, there) = (at("memory:///one-store/here"), at("memory:///one-store/there"));
        let name = Path::from("x");
        here.put(&name, "1".into()).await.expect("memory takes it");
        assert!(at("memory:///one-store/here").get(&name).await.is_ok());
        assert!(there.get(&name).await.is_err());
    }
}
