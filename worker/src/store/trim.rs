//! A folder keeps to its limit: what was stored longest ago goes first.
//!
//! Invariant: only folders are trimmed, and only segments are removed. A segment that goes costs prefill, like any that is
//! missing; buckets have rules of their own for what grows old, and `kv gc` knows what nobody needs.

use std::collections::HashSet;

use futures::TryStreamExt;

use super::StoreError;
use super::inventory::{Folder, Inventory, Object};
use crate::kv::PrefixHash;

/// What is left, of a hundred parts of the limit, so that not every new segment costs an old one.
const LEFT_PERCENT: u64 = 90;

/// What was removed, and what is left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The last blocks of the segments that are left.
    pub left: HashSet<PrefixHash>,
}

/// Removes the oldest segments where all of the queue's take more than `limit` bytes, until they take a tenth less.
pub async fn trim(inventory: &Inventory, limit: u64) -> Result<Trimmed, StoreError> {
    let mut objects: Vec<Object> = inventory.list(Folder::Damaged).try_collect().await?;
    objects.extend(inventory.list(Folder::Segments).try_collect::<Vec<_>>().await?);
    let mut total: u64 = objects.iter().map(|object| object.bytes).sum();
    objects.sort_by_key(|object| object.modified_ms);
    let target = if total > limit { limit / 100 * LEFT_PERCENT } else { total };
    let (mut trimmed, mut paths) = (Trimmed::default(), Vec::new());
    for object in objects {
        if total > target {
            total -= object.bytes;
            trimmed.objects += 1;
            trimmed.bytes += object.bytes;
            paths.push(object.path);
        } else if let Some(name) = inventory.segment_at(&object.path) {
            trimmed.left.insert(PrefixHash(name.hash.0));
        }
    }
    match inventory.remove(paths).await.error {
        Some(error) => Err(error),
        None => Ok(trimmed),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    use turnmill_schema::Name;

    use super::*;
    use crate::config::StoreUrl;

    /// A file of 100 bytes that was written so many hours ago.
    fn write(folder: &Path, name: &str, hours: u64) {
        let path = folder.join("kv/q").join(name);
        std::fs::create_dir_all(path.parent().expect("it is in a folder")).expect("made");
        std::fs::write(&path, [0; 100]).expect("written");
        let file = std::fs::File::options().write(true).open(&path).expect("opened");
        file.set_modified(SystemTime::now() - Duration::from_secs(3600 * hours)).expect("dated");
    }

    #[tokio::test]
    async fn the_oldest_segments_go_until_a_tenth_of_the_limit_is_free() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let name = |hours: u64| format!("{}/00/00{hours:062}", "ab".repeat(32));
        (1..=10).for_each(|hours| write(folder.path(), &name(hours), hours));
        let url = StoreUrl::from(format!("file://{}", folder.path().display()));
        let inventory = Inventory::open(&url, &Name::new("q").expect("a name")).expect("opens");
        let whole = trim(&inventory, 1000).await.expect("listed");
        assert_eq!((whole.objects, whole.bytes, whole.left.len()), (0, 0, 10));
        let trimmed = trim(&inventory, 600).await.expect("trimmed");
        assert_eq!((trimmed.objects, trimmed.bytes, trimmed.left.len()), (5, 500, 5));
        let is_there = |hours: u64| folder.path().join("kv/q").join(name(hours)).exists();
        assert!((1..=5).all(is_there) && !(6..=10).any(is_there));
    }
}
