//! The files of one queue's segments: listing, dating and removing them.
//!
//! A file's time of modification says when its segment was last used. So every worker of a folder knows it, also after a
//! restart, and reading a segment costs no write: the uses of half a minute are noted together.
//!
//! Invariants: only files that are named as this queue's segments, or lie among its damaged ones, are removed; a file
//! that somebody else removes meanwhile is no error; links are not followed.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use object_store::path::Path as ObjectPath;
use turnmill_schema::Name;
use turnmill_schema::kv_object::{HEADER_START_BYTES, HeaderStart};

use super::policy::Parent;
use crate::store::inventory::{self, SegmentName, folder_of};

/// Files take whole blocks of a disk. A folder takes a block too.
const DISK_BLOCK: u64 = 4096;
/// A write that is this old has no writer any more: it would have ended or failed long ago.
const ABANDONED: Duration = Duration::from_secs(3600);

/// The folder of one queue's segments.
#[derive(Debug)]
pub(super) struct Disk {
    root: PathBuf,
    queue: Name,
    /// Files that the system does not let go: permissions do not stop root, who may run the tests.
    #[cfg(test)]
    pub refused: std::sync::Mutex<std::collections::HashSet<PathBuf>>,
}

/// A file that may be removed.
#[derive(Debug)]
pub(super) struct Stored {
    pub path: PathBuf,
    /// What it takes on the disk.
    pub bytes: u64,
    pub last_use: SystemTime,
    /// Which segment it is. None: it is damaged, or what a write that broke off left behind.
    pub name: Option<SegmentName>,
}

/// What is there.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub files: Vec<Stored>,
    /// Bytes of folders and of writes under way, which cannot be removed.
    pub fixed_bytes: u64,
}

impl Listing {
    pub fn bytes(&self) -> u64 {
        self.fixed_bytes + self.files.iter().map(|file| file.bytes).sum::<u64>()
    }

    pub fn has(&self, name: &SegmentName) -> bool {
        self.files.iter().any(|file| file.name.as_ref() == Some(name))
    }
}

/// What a file of `bytes` bytes takes.
fn on_disk(bytes: u64) -> u64 {
    bytes.next_multiple_of(DISK_BLOCK)
}

/// What a new file of `bytes` bytes takes at most: the folders that it is in may be new too.
pub(super) fn new_on_disk(bytes: u64) -> u64 {
    on_disk(bytes) + 2 * DISK_BLOCK
}

impl Disk {
    /// The segments of `queue` in the store's folder `root`.
    pub fn new(root: PathBuf, queue: Name) -> Self {
        Self {
            root,
            queue,
            #[cfg(test)]
            refused: std::sync::Mutex::default(),
        }
    }

    /// The folder of a kind of objects.
    pub fn folder(&self, kind: inventory::Folder) -> PathBuf {
        self.file(&folder_of(&self.queue, kind))
    }

    /// Everything of the queue that its limit counts.
    pub fn list(&self) -> io::Result<Listing> {
        let mut listing = Listing::default();
        let mut folders =
            vec![self.folder(inventory::Folder::Segments), self.folder(inventory::Folder::Damaged)];
        while let Some(folder) = folders.pop() {
            let Some(entries) = unless_gone(fs::read_dir(&folder))? else { continue };
            listing.fixed_bytes += DISK_BLOCK;
            for entry in entries {
                let entry = entry?;
                let Some(about) = unless_gone(entry.metadata())? else { continue };
                if about.is_dir() {
                    folders.push(entry.path());
                } else if about.is_file() {
                    self.add(&mut listing, entry.path(), &about)?;
                }
            }
        }
        Ok(listing)
    }

    /// Adds a file, unless it is none of ours.
    fn add(&self, listing: &mut Listing, path: PathBuf, about: &Metadata) -> io::Result<()> {
        let (bytes, last_use) = (on_disk(about.len()), about.modified()?);
        let name = self.name_at(&path);
        let is_abandoned = || last_use.elapsed().is_ok_and(|age| age > ABANDONED);
        if name.is_some() || path.starts_with(self.folder(inventory::Folder::Damaged)) {
            listing.files.push(Stored { path, bytes, last_use, name });
        } else if self.is_write(&path) && is_abandoned() {
            listing.files.push(Stored { path, bytes, last_use, name: None });
        } else if self.is_write(&path) {
            listing.fixed_bytes += bytes;
        }
        Ok(())
    }

    /// Which segment the file at `path` is; none if no segment is named so.
    fn name_at(&self, path: &Path) -> Option<SegmentName> {
        let path = path.strip_prefix(&self.root).ok()?.to_str()?;
        SegmentName::at(&self.queue, &ObjectPath::parse(path).ok()?)
    }

    /// Whether the store's client writes a segment at `path` before it gives it its name: `<name>#<number>`.
    fn is_write(&self, path: &Path) -> bool {
        let parts = path.to_str().and_then(|text| text.rsplit_once('#'));
        parts.is_some_and(|(name, number)| {
            number.bytes().all(|digit| digit.is_ascii_digit()) && self.name_at(Path::new(name)).is_some()
        })
    }

    fn file(&self, path: &ObjectPath) -> PathBuf {
        self.root.join(path.as_ref())
    }

    /// The segment before that of `file`, by its place in `index`. A file that is not the segment that its name says
    /// cannot be found.
    pub fn parent(&self, file: &Stored, index: &HashMap<SegmentName, usize>) -> Parent {
        let header = file.name.and_then(|name| {
            let mut start = [0; HEADER_START_BYTES];
            File::open(&file.path).and_then(|mut file| file.read_exact(&mut start)).ok()?;
            let header = HeaderStart::read(&start)?;
            name.matches(&header).then_some(header)
        });
        let Some(header) = header else { return Parent::Missing };
        let Some(hash) = header.parent else { return Parent::Root };
        let parent = SegmentName { namespace: header.namespace, hash };
        index.get(&parent).map_or(Parent::Missing, |&at| Parent::At(at))
    }

    /// Notes when segments were last used. Those that are gone, or belong to another user, stay as they are.
    pub fn date(&self, uses: impl IntoIterator<Item = (SegmentName, SystemTime)>) {
        for (name, at) in uses {
            let path = self.file(&name.path(&self.queue));
            let dated = File::options().write(true).open(&path).and_then(|file| file.set_modified(at));
            if let Err(error) = dated
                && error.kind() != ErrorKind::NotFound
            {
                tracing::debug!(path = %path.display(), %error, "the last use of a segment is not noted");
            }
        }
    }

    /// Removes a file, and the folders that it leaves empty.
    pub fn remove(&self, file: &Stored) -> io::Result<()> {
        #[cfg(test)]
        if self.refused.lock().expect("no test panics here").contains(&file.path) {
            return Err(ErrorKind::PermissionDenied.into());
        }
        unless_gone(fs::remove_file(&file.path))?;
        // Two digits of its hash, and its namespace. A writer that finds its folder gone makes it again.
        for folder in file.path.ancestors().skip(1).take(2) {
            // One that is not empty cannot be removed.
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
        Ok(())
    }
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
