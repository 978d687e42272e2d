//! The folder that Hugging Face's tools share: contents by their ETag in `blobs`, names in `snapshots/COMMIT`, and the
//! commit of each revision in `refs`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::files::{self, Needed};
use super::{HubError, HubModel};

/// The part of the cache that one repository has.
pub struct Cache {
    folder: PathBuf,
    locks: PathBuf,
}

/// Held while a file is fetched, so that workers that start at once fetch it once. The hub's tools take the same lock.
pub struct Lock(#[expect(dead_code, reason = "closing the file releases the lock")] File);

impl Cache {
    /// Of `model` in the folder `root`.
    pub fn new(root: &Path, model: &HubModel) -> Self {
        let name = format!("models--{}--{}", model.owner, model.name);
        Self { locks: root.join(".locks").join(&name), folder: root.join(name) }
    }

    /// Whether `file` of `commit` is there, whole.
    pub fn has(&self, commit: &str, file: &str) -> bool {
        self.snapshot(commit).join(file).is_file()
    }

    /// Where a model lies.
    pub fn path(&self, commit: &str, needed: &Needed) -> PathBuf {
        match needed {
            Needed::Gguf(file) => self.snapshot(commit).join(file),
            Needed::Safetensors(_) => self.snapshot(commit),
        }
    }

    /// Where `model` lies as it was last fetched; none where it is not all there.
    pub fn kept(&self, model: &HubModel) -> Result<Option<PathBuf>, HubError> {
        let reference = self.folder.join("refs").join(&model.revision);
        // A revision that is a commit has no reference.
        let commit = fs::read_to_string(reference).unwrap_or_else(|_| model.revision.clone());
        let snapshot = self.snapshot(commit.trim());
        let Ok(entries) = fs::read_dir(&snapshot) else { return Ok(None) };
        let mut kept: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        kept.extend(model.file.clone().filter(|file| snapshot.join(file).is_file()));
        let whole = files::needed(model, &kept)
            .ok()
            .filter(|needed| needed.names().iter().all(|file| snapshot.join(file).is_file()));
        Ok(whole.map(|needed| self.path(commit.trim(), &needed)))
    }

    /// Notes which commit `revision` is.
    pub fn remember(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        create_parent(&path)?;
        fs::write(&path, commit).map_err(cannot(&path))
    }

    /// Waits until nobody else fetches the contents `etag`.
    pub fn lock(&self, etag: &str) -> Result<Lock, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let file = File::create(&path).map_err(cannot(&path))?;
        file.lock().map_err(cannot(&path))?;
        Ok(Lock(file))
    }

    /// Where the contents `etag` are when they are whole.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Where they grow; the folder is there afterwards.
    pub fn incomplete(&self, etag: &str) -> Result<PathBuf, HubError> {
        let path = self.folder.join("blobs").join(format!("{etag}.incomplete"));
        create_parent(&path)?;
        Ok(path)
    }

    /// Gives the contents `etag` the name `file` in the snapshot of `commit`.
    pub fn name(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(file);
        create_parent(&path)?;
        let up = Path::new(file).components().count() + 1;
        let target: PathBuf = std::iter::repeat_n("..", up).chain(["blobs", etag]).collect();
        match std::os::unix::fs::symlink(&target, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            outcome => outcome.map_err(cannot(&path)),
        }
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }
}

/// An error about `path` in the cache.
pub fn cannot(path: &Path) -> impl Fn(io::Error) -> HubError {
    |error| HubError::Cache { path: path.to_owned(), reason: error.to_string() }
}

fn create_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().expect("paths here have parents");
    fs::create_dir_all(parent).map_err(cannot(parent))
}
