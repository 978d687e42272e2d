//! A folder keeps to its limit while it is written.
//!
//! Every write asks for room first. The worker adds up what it writes, and looks at the folder when that reaches the limit,
//! and otherwise once it has written a 32nd part of the limit, since others write there too. So a lone worker never exceeds the
//! limit, and each further one may exceed it by a 32nd part, or by one segment if that is more.
//!
//! Invariants: only this queue's segments are counted and removed, damaged ones and broken writes included; what
//! [`policy`] wants more than the new segment is never removed for it; a file that cannot be removed costs only the room that
//! it takes; a segment that goes costs prefill, as any that is missing. Buckets have rules of their own for what grows old, and `kv gc` knows what nobody needs.

#![allow(clippy::disallowed_methods, reason = "files carry the system's dates")]

mod disk;
mod policy;
mod uses;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Mutex;
use turnmill_schema::Name;

use self::disk::{Disk, Listing, Stored, new_on_disk};
use self::policy::{Parent, Room, Segment, plan};
use self::uses::Uses;
use super::inventory::{self, SegmentName};
use crate::kv::{PrefixHash, SegmentId};
use crate::surroundings::Surroundings;

/// What is left, of a hundred parts of the limit, so that not every new segment costs an old one.
const LEFT_PERCENT: u64 = 90;
/// Other workers' writes are looked for each time this part of the limit was written.
const UNSEEN_PART: u64 = 32;

/// One queue's segments in a folder, with a limit.
#[derive(Debug)]
pub(super) struct Folder {
    disk: Disk,
    /// Bytes; none: any.
    limit: Option<u64>,
    account: Mutex<Account>,
    uses: Uses,
    surroundings: Surroundings,
}

/// What this worker knows of the folder without looking.
#[derive(Debug)]
struct Account {
    /// What lay there at the last look, and what this worker has written since.
    bytes: u64,
    /// What this worker has written since.
    unseen: u64,
    /// The last look met files that cannot be removed: that was told.
    is_refused: bool,
}

/// What a look at the folder showed.
#[derive(Debug)]
pub(super) struct Look {
    /// When it began.
    pub began: Instant,
    /// The last blocks of the segments that are there.
    pub left: HashSet<PrefixHash>,
    /// What was removed.
    pub trimmed: Trimmed,
    /// Whether there is room for what comes, if anything comes, besides what is left: no if all of that is wanted more. An error
    /// if there is none because something cannot be removed; in the system's words.
    pub has_room: Result<bool, String>,
}

/// What was removed for the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Files.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What came of removing what is too much.
struct Trim {
    /// What comes is wanted more than what would have to go for it.
    is_wanted: bool,
    trimmed: Trimmed,
    /// Why something that should go stayed.
    refused: Option<io::Error>,
}

/// A segment that is to be written: its name, and the bytes that it will take.
type Incoming<'a> = (&'a SegmentId, u64);

impl Folder {
    /// The segments of `queue` in the store's folder `root`, which may take `limit` bytes.
    pub fn new(root: PathBuf, queue: Name, limit: Option<u64>, surroundings: Surroundings) -> Arc<Self> {
        // Nothing is known before the first look.
        let account = Mutex::new(Account { bytes: 0, unseen: u64::MAX, is_refused: false });
        Arc::new(Self { disk: Disk::new(root, queue), limit, account, uses: Uses::default(), surroundings })
    }

    /// The segment is used now. Never waits.
    pub fn used(&self, id: &SegmentId) {
        self.uses.add(*id);
    }

    /// Makes room for a segment whose object has `bytes` bytes, if need be by removing others. None: there is room. Otherwise it
    /// took a look, which says whether there is.
    ///
    /// # Errors
    /// The folder cannot be read; in the system's words.
    pub async fn make_room(self: &Arc<Self>, id: SegmentId, bytes: usize) -> Result<Option<Look>, String> {
        let Some(limit) = self.limit else { return Ok(None) };
        let bytes = new_on_disk(bytes as u64);
        if self.account.lock().await.has_room(bytes, limit) {
            return Ok(None);
        }
        self.in_background(move |this| this.look_for(limit, Some((&id, bytes))).map(Some)).await
    }

    /// A segment whose object has `bytes` bytes was written.
    pub async fn written(&self, bytes: usize) {
        let bytes = new_on_disk(bytes as u64);
        let mut account = self.account.lock().await;
        account.bytes = account.bytes.saturating_add(bytes);
        account.unseen = account.unseen.saturating_add(bytes);
    }

    /// Notes what was used, and looks whether the folder is within its limit; what it has too much goes. Without a limit
    /// there is nothing to look for.
    ///
    /// # Errors
    /// As [`Self::make_room`].
    pub async fn tidy(self: &Arc<Self>) -> Result<Option<Look>, String> {
        self.in_background(|this| match this.limit {
            Some(limit) => this.look_for(limit, None).map(Some),
            None => {
                this.date();
                Ok(None)
            }
        })
        .await
    }

    async fn in_background<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let this = self.clone();
        let done = self.surroundings.run_blocking(move || work(&this)).await;
        done.unwrap_or_else(|error| Err(format!("looking after the folder failed: {error}")))
    }

    fn date(&self) {
        self.disk.date(self.uses.take().into_iter().map(|(id, at)| (SegmentName::from(&id), at)));
    }

    /// Looks, and removes what is too much beside what comes.
    fn look_for(&self, limit: u64, incoming: Option<Incoming>) -> Result<Look, String> {
        let mut account = self.account.blocking_lock();
        self.date();
        let began = self.surroundings.now();
        let mut listing = self.disk.list().map_err(|error| self.failed("listed", &error))?;
        let incoming = incoming.filter(|(id, _)| !listing.has(&SegmentName::from(*id)));
        let Trim { is_wanted, trimmed, refused } = self.trim(&mut listing, limit, incoming);
        let fits = listing.bytes() + incoming.map_or(0, |(_, bytes)| bytes) <= limit;
        let is_told = account.is_refused;
        *account = Account { bytes: listing.bytes(), unseen: 0, is_refused: refused.is_some() };
        let has_room = match refused.map(|error| self.failed("trimmed to its limit", &error)) {
            Some(reason) if is_wanted && !fits => Err(reason),
            Some(reason) if !is_told => {
                tracing::warn!(
                    reason,
                    "files of the object store cannot be removed; others make room for them"
                );
                Ok(is_wanted && fits)
            }
            _ => Ok(is_wanted && fits),
        };
        let left = listing.files.iter().filter_map(|file| Some(PrefixHash(file.name?.hash.0))).collect();
        Ok(Look { began, left, trimmed, has_room })
    }

    /// Removes what is too much. What is left stays in the listing.
    fn trim(&self, listing: &mut Listing, limit: u64, incoming: Option<Incoming>) -> Trim {
        if listing.bytes() + incoming.map_or(0, |(_, bytes)| bytes) <= limit {
            return Trim { is_wanted: true, trimmed: Trimmed::default(), refused: None };
        }
        let without = |bytes: u64| bytes.saturating_sub(listing.fixed_bytes);
        let room = Room { limit: without(limit), target: without(limit / 100 * LEFT_PERCENT) };
        let segments = self.segments(&listing.files, incoming);
        let mut goes = plan(&segments, incoming.map(|_| listing.files.len()), room);
        let is_wanted = goes.fits;
        if !is_wanted {
            // It will not be written, so nothing goes for it.
            goes = plan(&segments[..listing.files.len()], None, room);
        }
        let (trimmed, refused) = self.remove(listing, goes.remove);
        Trim { is_wanted, trimmed, refused }
    }

    /// The files as the policy sees them, and what comes behind them.
    fn segments(&self, files: &[Stored], incoming: Option<Incoming>) -> Vec<Segment> {
        let names =
            files.iter().map(|file| file.name).chain(incoming.map(|(id, _)| Some(SegmentName::from(id))));
        let index: HashMap<SegmentName, usize> =
            names.enumerate().filter_map(|(at, name)| Some((name?, at))).collect();
        // Clocks of machines differ. What was used later than now was used now.
        let now = SystemTime::now();
        let stored = files.iter().map(|file| Segment {
            parent: self.disk.parent(file, &index),
            bytes: file.bytes,
            last_use: micros(file.last_use.min(now)),
        });
        let coming = incoming.map(|(id, bytes)| {
            let parent = SegmentName { hash: turnmill_schema::Digest(id.parent.0), ..SegmentName::from(id) };
            let at = |&at: &usize| Parent::At(at);
            let parent = match id.parent {
                PrefixHash::ROOT => Parent::Root,
                _ => index.get(&parent).map_or(Parent::Missing, at),
            };
            Segment { parent, bytes, last_use: micros(now) }
        });
        stored.chain(coming).collect()
    }

    /// Removes the files at `indices`, as many as it can; why one of the others stayed.
    fn remove(&self, listing: &mut Listing, indices: Vec<usize>) -> (Trimmed, Option<io::Error>) {
        let (mut trimmed, mut gone, mut refused) = (Trimmed::default(), HashSet::new(), None);
        for index in indices {
            let file = &listing.files[index];
            match self.disk.remove(file) {
                Ok(()) => {
                    trimmed.objects += 1;
                    trimmed.bytes += file.bytes;
                    gone.insert(index);
                }
                Err(error) => refused = Some(error),
            }
        }
        let mut index = 0..;
        listing.files.retain(|_| !index.next().is_some_and(|index| gone.contains(&index)));
        (trimmed, refused)
    }

    fn failed(&self, what: &str, error: &io::Error) -> String {
        let folder = self.disk.folder(inventory::Folder::Segments);
        format!("the folder {} cannot be {what}: {error}; check who may write there", folder.display())
    }
}

impl Account {
    fn has_room(&self, bytes: u64, limit: u64) -> bool {
        self.bytes.saturating_add(bytes) <= limit && self.unseen.saturating_add(bytes) <= limit / UNSEEN_PART
    }
}

fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
