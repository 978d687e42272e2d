//! What the object store holds, as plain values that the audit judges.
//!
//! Invariants: it reads only, and the way workers do, so the `<name>#<number>` that a killed writer leaves behind is
//! passed over; an object that is not whole is told as damaged, never left out. For a store at rest.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use turnmill_schema::kv_object::{self, HeaderStart};
use turnmill_schema::{Digest, Name};
use turnmill_worker::config::StoreUrl;
use turnmill_worker::store::{self, object};

use super::ChaosError;

/// Where workers try whether the store takes anything. One that is killed meanwhile leaves its object there.
const PROBES: &str = "kv-probe/";

/// A whole store, which one queue has for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Whose it is.
    pub queue: Name,
    /// What is at each path; the error says what is wrong with it.
    pub objects: BTreeMap<String, Result<KeptSegment, String>>,
}

/// A stored segment that is whole: its checksums fit, and its tokens lead from the segment before to its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptSegment {
    /// Which segment it says it is.
    pub start: HeaderStart,
    /// The tokens of the agent's history whose K and V it has.
    pub tokens: Range<usize>,
}

impl Kept {
    /// Reads and verifies everything in `folder`, the store of `queue`.
    pub async fn read(folder: &Path, queue: &Name) -> Result<Self, ChaosError> {
        let store = store::open(&StoreUrl::from(url(folder)))?;
        let mut listed = store.list(None);
        let mut objects = BTreeMap::new();
        while let Some(found) = listed.try_next().await? {
            if !found.location.as_ref().starts_with(PROBES) {
                let bytes = store.get(&found.location).await?.bytes().await?;
                objects.insert(found.location.into(), KeptSegment::read(bytes));
            }
        }
        Ok(Self { queue: queue.clone(), objects })
    }

    /// Where the segment `hash` of `namespace` has to be.
    pub fn path(&self, namespace: &Digest, hash: &Digest) -> String {
        kv_object::path(&self.queue, namespace, hash)
    }
}

impl KeptSegment {
    fn read(object: bytes::Bytes) -> Result<Self, String> {
        let start = HeaderStart::read(&object).ok_or("it is no stored segment of this version")?;
        let contents = object::inspect(object, None).map_err(|damage| damage.to_string())?;
        let first = contents.first_block * contents.shape.block_tokens;
        Ok(Self { start, tokens: first..first + contents.tokens.len() })
    }
}

/// The store in `folder` as workers are told of it.
pub fn url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use turnmill_worker::config::{KvCodec, KvDtype};
    use turnmill_worker::kv::{BlockShape, Namespace, PrefixHash, Segment, SegmentData, SegmentId};

    use super::*;

    const SHAPE: BlockShape =
        BlockShape { layers: 2, block_tokens: 4, kv_heads: 1, head_dim: 8, dtype: KvDtype::F16 };

    /// The object of two blocks that come after the first one of a sequence, and its path.
    fn stored(queue: &Name) -> (String, Vec<u8>) {
        let namespace = Namespace::from_bytes([1; 32]);
        let (parent, tokens) = (PrefixHash([2; 32]), (0..8).collect::<Vec<u32>>());
        let last = parent.after(&namespace, &tokens, SHAPE.block_tokens);
        let id = SegmentId { namespace, parent, last };
        let data = vec![3; 2 * SHAPE.block_bytes()].into();
        let segment = Arc::new(Segment { id, tenant: "t".into(), first_block: 1, tokens });
        let object = object::encode(&SegmentData { segment, data }, &SHAPE, KvCodec::F16, None);
        (kv_object::path(queue, &Digest([1; 32]), &Digest(last.0)), object)
    }

    #[tokio::test]
    async fn whole_and_damaged_objects_are_told_and_leftovers_are_not() {
        let (folder, queue) = (tempfile::tempdir().expect("a folder"), Name::new("q").expect("a name"));
        let empty = Kept::read(folder.path(), &queue).await.expect("an empty folder is read");
        assert_eq!(empty.objects, BTreeMap::new());
        let (path, object) = stored(&queue);
        let mut flipped = object.clone();
        *flipped.last_mut().expect("not empty") ^= 1;
        let aside = path.replacen("kv/", "kv-damaged/", 1);
        let files = [
            (&path, &object),
            (&format!("{path}#1"), &object[..9].to_vec()),
            (&aside, &flipped),
            (&"kv-probe/q/x".to_owned(), &vec![]),
            (&"kv/q/empty".to_owned(), &vec![]),
        ];
        for (path, bytes) in files {
            let file = folder.path().join(path);
            std::fs::create_dir_all(file.parent().expect("it has one")).expect("made");
            std::fs::write(file, bytes).expect("written");
        }
        let kept = Kept::read(folder.path(), &queue).await.expect("files are read");
        let found: Vec<_> =
            kept.objects.iter().map(|(path, object)| (path.as_str(), object.is_ok())).collect();
        assert_eq!(found, [(aside.as_str(), false), (&path, true), ("kv/q/empty", false)]);
        let segment = kept.objects[&path].as_ref().expect("it is whole");
        assert_eq!((segment.start.parent, segment.tokens.clone()), (Some(Digest([2; 32])), 4..12));
        assert_eq!(kept.path(&segment.start.namespace, &segment.start.hash), path);
    }
}
