//! Reading everything back.
//!
//! Invariants: what counts as good would be a hit for the worker that wrote it; what cannot be opened for want of a key
//! counts as neither good nor damaged; no more objects are in memory than are read in parallel.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use turnmill_schema::Digest;

use super::{Folder, Inventory, Object, SegmentName};
use crate::store::StoreError;
use crate::store::keys::{Keys, TenantKey};
use crate::store::object::{Damage, header, inspect};

/// Objects that cannot be read, one after the other, before the store counts as unreachable.
const UNREADABLE_IN_A_ROW: u32 = 8;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Segments that are whole.
    pub good: u64,
    /// What was read, in bytes.
    pub bytes: u64,
    /// Segments that are damaged, by reason.
    pub damaged: BTreeMap<&'static str, u64>,
    /// Segments that no key given opens, or for which none was given: they may be whole.
    pub sealed: u64,
    /// Segments that were removed or set aside meanwhile.
    pub gone: u64,
}

/// A segment that is damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DamagedSegment {
    /// Where it is.
    pub path: String,
    /// A word for it.
    pub reason: &'static str,
    /// A sentence.
    pub detail: String,
}

/// What one object turned out to be.
enum Finding {
    Good(u64),
    Damaged(u64, Damage),
    Sealed(u64, SegmentName),
    Gone,
    Unreadable(StoreError),
}

/// Reads all segments of the queue, `parallel` at a time. `tell` is given each one that is damaged, and `progress` how many
/// were read.
///
/// # Errors
/// The store cannot be read. A few objects that cannot be read among others are counted as damaged.
pub async fn verify(
    inventory: &Inventory,
    keys: Option<&Keys>,
    parallel: usize,
    mut tell: impl FnMut(DamagedSegment),
    progress: impl Fn(u64),
) -> Result<Verified, StoreError> {
    let keyring = Arc::new(Keyring::new(keys));
    let named = |object: Object| {
        std::future::ready(Ok(inventory.segment_at(&object.path).map(|name| (object, name))))
    };
    let objects = inventory.list(Folder::Segments).try_filter_map(named);
    let findings = objects.map(|listed| async {
        let (object, name) = listed?;
        Ok::<_, StoreError>((object.path.to_string(), look_at(inventory, &keyring, object, name).await))
    });
    let mut findings = std::pin::pin!(findings.buffer_unordered(parallel.max(1)));
    let (mut verified, mut sealed, mut unreadable, mut read) = (Verified::default(), Vec::new(), 0, 0);
    while let Some((path, finding)) = findings.try_next().await? {
        unreadable = if matches!(finding, Finding::Unreadable(_)) { unreadable + 1 } else { 0 };
        match finding {
            Finding::Unreadable(error) if unreadable >= UNREADABLE_IN_A_ROW => return Err(error),
            Finding::Sealed(bytes, name) => {
                verified.bytes += bytes;
                sealed.push(name);
            }
            finding => verified.add(path, finding, &mut tell),
        }
        read += 1;
        progress(read);
    }
    // Only now is it known which keys are whose.
    for name in sealed {
        if keyring.knows(name.namespace) {
            verified.add(
                name.path(inventory.queue()).to_string(),
                Finding::Damaged(0, Damage::Sealed),
                &mut tell,
            );
        } else {
            verified.sealed += 1;
        }
    }
    Ok(verified)
}

impl Verified {
    /// Whether every segment was read and is whole.
    pub fn all_good(&self) -> bool {
        self.damaged.is_empty() && self.sealed == 0
    }

    fn add(&mut self, path: String, finding: Finding, tell: &mut impl FnMut(DamagedSegment)) {
        let damaged = |reason, detail| {
            *self.damaged.entry(reason).or_default() += 1;
            tell(DamagedSegment { path, reason, detail });
        };
        match finding {
            Finding::Gone => self.gone += 1,
            Finding::Unreadable(error) => damaged("unreadable", error.to_string()),
            Finding::Damaged(bytes, damage) => {
                damaged(damage.reason(), damage.to_string());
                self.bytes += bytes;
            }
            Finding::Sealed(bytes, _) => {
                self.sealed += 1;
                self.bytes += bytes;
            }
            Finding::Good(bytes) => {
                self.good += 1;
                self.bytes += bytes;
            }
        }
    }
}

async fn look_at(
    inventory: &Inventory,
    keyring: &Arc<Keyring>,
    object: Object,
    name: SegmentName,
) -> Finding {
    let bytes = match inventory.read(&object.path).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Finding::Gone,
        Err(error) => return Finding::Unreadable(error),
    };
    let (size, keyring) = (bytes.len() as u64, Arc::clone(keyring));
    // Checksums and ciphers take long enough to hold up the other reads.
    match tokio::task::spawn_blocking(move || check(bytes, &name, &keyring)).await {
        Ok(Ok(true)) => Finding::Good(size),
        Ok(Ok(false)) => Finding::Sealed(size, name),
        Ok(Err(damage)) => Finding::Damaged(size, damage),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Whether the object is whole; false if no key opens it.
fn check(object: Bytes, name: &SegmentName, keyring: &Keyring) -> Result<bool, Damage> {
    let start = header(&object)?;
    if start.id.namespace.as_bytes() != name.namespace.as_bytes() {
        return Err(Damage::Namespace);
    }
    if start.id.last.0 != name.hash.0 {
        return Err(Damage::Hash);
    }
    if start.encrypted { keyring.open(&object, name.namespace) } else { inspect(object, None).map(|_| true) }
}

/// Keys, and which of them is whose: a namespace does not say whose it is.
struct Keyring {
    keys: Vec<TenantKey>,
    known: Mutex<BTreeMap<Digest, TenantKey>>,
}

impl Keyring {
    fn new(keys: Option<&Keys>) -> Self {
        let keys = keys.into_iter().flat_map(Keys::all).cloned().collect();
        Self { keys, known: Mutex::default() }
    }

    /// Whether a sealed object is whole; false if no key opens it.
    fn open(&self, object: &Bytes, namespace: Digest) -> Result<bool, Damage> {
        let known = self.known().get(&namespace).cloned();
        for key in known.map_or_else(|| self.keys.clone(), |key| vec![key]) {
            match inspect(object.clone(), Some(&key)) {
                Err(Damage::Sealed) => {}
                opened => {
                    self.known().insert(namespace, key);
                    return opened.map(|_| true);
                }
            }
        }
        Ok(false)
    }

    /// Whether a key has opened a segment of `namespace`: those that it does not open are damaged.
    fn knows(&self, namespace: Digest) -> bool {
        self.known().contains_key(&namespace)
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Digest, TenantKey>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
