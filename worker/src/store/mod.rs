//! What lies in the object store: the payloads of turns too large for Redis, and segments of KV blocks.
//!
//! Invariants: what is read is checked before it is used; no error text carries a password. This is the only room that
//! knows the object_store crate.

mod blocks;
mod folder;
pub mod garbage;
pub mod inventory;
pub mod keys;
pub mod object;
mod open;
mod payload;

use turnmill_schema::PayloadError;

use crate::config::StoreUrl;

pub use blocks::{BlockStore, BlockStoreSettings, FetchCost, Miss};
pub use folder::Trimmed;
pub use open::open;
pub use payload::Payloads;

/// Where damaged segments are put, under the same names: out of the way of what is written anew, until they are collected.
const DAMAGED: &str = "kv-damaged";

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
    /// Encryption was asked for and is not possible.
    #[error(transparent)]
    Keys(#[from] keys::KeysError),
    /// The threads that do the store's work cannot be made.
    #[error("cannot start the object store's threads: {0}; the limit on threads or files may be reached")]
    Threads(std::io::Error),
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}
