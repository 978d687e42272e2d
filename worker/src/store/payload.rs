//! Turns too large for Redis: reading what producers wrote, and removing it when nobody needs it any more.

use std::sync::Arc;

use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt};
use turnmill_schema::{Name, PayloadError, PayloadReference, Turn};

use super::{StoreError, open};
use crate::config::StoreUrl;

/// The payloads of one queue.
#[derive(Clone, Debug)]
pub struct Payloads {
    store: Arc<dyn ObjectStore>,
    url: StoreUrl,
    queue: Name,
}

impl Payloads {
    /// Opens the store at `url`. A folder is made if there is none; other stores are not asked yet.
    pub fn open(url: &StoreUrl, queue: &Name) -> Result<Self, StoreError> {
        Ok(Self { store: open(url)?, url: url.clone(), queue: queue.clone() })
    }

    /// The turn that `reference` names, whole and as it was written.
    pub async fn get(&self, reference: &PayloadReference) -> Result<Turn, StoreError> {
        let path = self.path(reference);
        let object = self.store.get(&path).await.map_err(|error| self.error(&path, &error))?;
        let damaged = |source: PayloadError| StoreError::Damaged {
            url: self.url.clone(),
            path: path.to_string(),
            source,
        };
        // Before the bytes are read: an object that was replaced may be of any size.
        reference.check_size(object.meta.size).map_err(damaged)?;
        let bytes = object.bytes().await.map_err(|error| self.error(&path, &error))?;
        reference.open(&bytes).map_err(damaged)
    }

    /// Removes the object that `reference` names; it may be gone already.
    pub async fn remove(&self, reference: &PayloadReference) -> Result<(), StoreError> {
        let path = self.path(reference);
        match self.store.delete(&path).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.error(&path, &error)),
        }
    }

    fn path(&self, reference: &PayloadReference) -> Path {
        reference.path(&self.queue).into()
    }

    fn error(&self, path: &Path, error: &Error) -> StoreError {
        let (url, path) = (self.url.clone(), path.to_string());
        match error {
            Error::NotFound { .. } => StoreError::Missing { url, path },
            // A refusal too: it ends when somebody mends the permissions.
            error => StoreError::Unreachable { url, path, reason: error.to_string() },
        }
    }
}

#[cfg(test)]
mod tests {
    use turnmill_schema::envelope::MAX_INLINE_BYTES;
    use turnmill_schema::{EncodedTurn, Message, Role, TenantName, TurnId};

    use super::*;

    fn turn() -> Turn {
        Turn::new(
            TurnId::new(0),
            TenantName::new("default").expect("a name"),
            vec![Message::new(Role::User, "x".repeat(MAX_INLINE_BYTES))],
        )
    }

    fn large(turn: &Turn) -> (PayloadReference, Vec<u8>) {
        match EncodedTurn::new(turn).expect("encodes") {
            EncodedTurn::Large { reference, object } => (reference, object),
            EncodedTurn::Inline(_) => panic!("the turn is not large"),
        }
    }

    fn memory() -> Payloads {
        let url = StoreUrl::from("memory:///".to_owned());
        Payloads::open(&url, &Name::new("q").expect("a name")).expect("memory opens")
    }

    impl Payloads {
        async fn put(&self, reference: &PayloadReference, object: Vec<u8>) {
            self.store.put(&self.path(reference), object.into()).await.expect("memory takes it");
        }
    }

    #[tokio::test]
    async fn a_turn_is_read_as_it_was_written_until_it_is_removed() {
        let (payloads, turn) = (memory(), turn());
        let (reference, object) = large(&turn);
        payloads.put(&reference, object).await;
        assert_eq!(payloads.get(&reference).await.expect("it is there"), turn);
        payloads.remove(&reference).await.expect("removed");
        let error = payloads.get(&reference).await.expect_err("it is gone");
        let path = reference.path(&payloads.queue);
        assert!(matches!(error, StoreError::Missing { .. }) && error.to_string().contains(&path), "{error}");
        payloads.remove(&reference).await.expect("removing what is gone is no error");
    }

    #[tokio::test]
    async fn a_damaged_object_is_an_error_that_names_it() {
        let payloads = memory();
        let (reference, object) = large(&turn());
        let path = reference.path(&payloads.queue);
        let mut flipped = object.clone();
        flipped[object.len() / 2] ^= 1;
        for damaged in [flipped, object[1..].to_vec(), [&object[..], b"x"].concat(), Vec::new()] {
            payloads.put(&reference, damaged).await;
            let error = payloads.get(&reference).await.expect_err("it is damaged");
            assert!(matches!(error, StoreError::Damaged { .. }) && !error.may_pass(), "{error}");
            assert!(error.to_string().contains(&path), "{error}");
        }
    }

    #[tokio::test]
    async fn a_store_that_refuses_may_give_later() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let url = StoreUrl::from(format!("file://{}", folder.path().display()));
        let payloads = Payloads::open(&url, &Name::new("q").expect("a name")).expect("opens");
        // A file where a folder should be.
        std::fs::write(folder.path().join(turnmill_schema::payload::FOLDER), "").expect("written");
        let error = payloads.get(&large(&turn()).0).await.expect_err("refused");
        assert!(matches!(error, StoreError::Unreachable { .. }) && error.may_pass(), "{error}");
    }

    #[tokio::test]
    async fn a_queue_whose_name_means_a_folder_elsewhere_stays_in_its_own() {
        let queue = Name::new("..").expect("a name");
        let payloads = Payloads { queue, ..memory() };
        assert!(payloads.path(&large(&turn()).0).as_ref().starts_with("payloads/%2E%2E/"));
    }
}
