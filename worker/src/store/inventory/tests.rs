use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::config::{KvCodec, KvDtype};
use crate::kv::{BlockShape, Namespace, PrefixHash, Segment, SegmentData, SegmentId};
use crate::store::keys::{Keys, TenantKey};
use crate::store::object::encode;

/// The objects of queue `q` in a store of its own, whose name is `name`.
pub(in crate::store) fn memory(name: &str) -> Inventory {
    let queue = Name::new("q").expect("a name");
    Inventory::open(&StoreUrl::from(format!("memory:///{name}")), &queue).expect("memory opens")
}

impl Inventory {
    pub(in crate::store) async fn put(&self, path: &str, object: impl Into<Bytes>) {
        self.store.put(&Path::from(path), object.into().into()).await.expect("memory takes it");
    }

    /// The paths of everything in the store, in order.
    pub(in crate::store) async fn paths(&self) -> Vec<String> {
        let all: Vec<_> = self.store.list(None).try_collect().await.expect("memory lists");
        let mut paths: Vec<String> = all.into_iter().map(|found| found.location.into()).collect();
        paths.sort();
        paths
    }

    async fn verify(&self, keys: Option<&Keys>) -> (Verified, Vec<DamagedSegment>) {
        let mut damaged = Vec::new();
        let verified = verify(self, keys, 4, |segment| damaged.push(segment), |_| {}).await;
        (verified.expect("memory is read"), damaged)
    }
}

/// A segment of two blocks and the object that keeps it.
fn stored(namespace: u8, first_token: u32, key: Option<&TenantKey>) -> (String, Vec<u8>) {
    let shape = BlockShape { layers: 2, block_tokens: 2, kv_heads: 1, head_dim: 4, dtype: KvDtype::F16 };
    let tokens: Vec<u32> = (first_token..first_token + 4).collect();
    let namespace = Namespace::from_bytes([namespace; 32]);
    let last = PrefixHash::ROOT.after(&namespace, &tokens, shape.block_tokens);
    let id = SegmentId { namespace, parent: PrefixHash::ROOT, last };
    let data = vec![7; 2 * shape.block_bytes()].into();
    let segment = Arc::new(Segment { id, tenant: "t".into(), first_block: 0, tokens });
    let object = encode(&SegmentData { segment, data }, &shape, KvCodec::F16, key);
    let queue = Name::new("q").expect("a name");
    (kv_object::path(&queue, &Digest(*namespace.as_bytes()), &Digest(last.0)), object)
}

/// The keys of some tenants, each of one digit.
fn keys(digits: &[&str]) -> Keys {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for digit in digits {
        std::fs::write(folder.path().join(format!("t{digit}.key")), digit.repeat(64)).expect("written");
    }
    Keys::open(folder.path()).expect("keys")
}

fn key(digit: &str) -> TenantKey {
    keys(&[digit]).get(&format!("t{digit}")).expect("its key")
}

#[test]
fn only_what_is_named_as_a_segment_of_the_queue_is_one() {
    let inventory = memory("names");
    let (namespace, hash) = ("1f".repeat(32), "c0".repeat(32));
    let at = |path: String| inventory.segment_at(&Path::from(path));
    let name = SegmentName { namespace: Digest([0x1f; 32]), hash: Digest([0xc0; 32]) };
    assert_eq!(at(format!("kv/q/{namespace}/c0/{hash}")), Some(name));
    for foreign in [
        format!("kv/q2/{namespace}/c0/{hash}"),
        format!("kv/q/{namespace}/c1/{hash}"),
        format!("kv/q/{namespace}/c0/{hash}/more"),
        format!("kv/q/{namespace}/c0/{}", hash.to_uppercase()),
        format!("kv/q/{namespace}/c0"),
        format!("kv/q/{namespace}/{hash}"),
        format!("kv-damaged/q/{namespace}/c0/{hash}"),
        "kv/q/README".to_owned(),
    ] {
        assert_eq!(at(foreign.clone()), None, "{foreign}");
    }
}

#[test]
fn only_what_is_named_as_a_payload_of_the_queue_is_one() {
    let inventory = memory("payload-names");
    let turn = "01980000-0000-7000-8000-000000000000.3";
    let digest = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
    let at = |path: String| inventory.payload_at(&Path::from(path));
    assert_eq!(at(format!("payloads/q/{turn}-{digest}")), turn.parse().ok());
    for foreign in [
        format!("payloads/q2/{turn}-{digest}"),
        format!("payloads/q/{turn}-{}", &digest[1..]),
        format!("payloads/q/{turn}"),
        format!("payloads/q/x-{digest}"),
        format!("payloads/q/{turn}-{digest}/more"),
    ] {
        assert_eq!(at(foreign.clone()), None, "{foreign}");
    }
}

#[tokio::test]
async fn segments_are_counted_by_namespace() {
    let inventory = memory("count");
    for (namespace, token) in [(1, 0), (1, 10), (2, 0)] {
        let (path, object) = stored(namespace, token, None);
        inventory.put(&path, object).await;
    }
    inventory.put("kv/q/README", "x").await;
    inventory.put("kv/q2/README", "x").await;
    let (counts, foreign) = count(&inventory).await.expect("memory lists");
    let size = stored(1, 0, None).1.len() as u64;
    let sizes: Vec<_> = counts.iter().map(|(at, count)| (at.0[0], count.objects, count.bytes)).collect();
    assert_eq!((sizes, foreign), (vec![(1, 2, 2 * size), (2, 1, size)], 1));
    assert!(counts.values().all(|count| 0 < count.oldest_ms && count.oldest_ms <= count.newest_ms));
}

#[tokio::test]
async fn what_is_damaged_is_found_and_named() {
    let inventory = memory("verify");
    let (good, object) = stored(1, 0, None);
    inventory.put(&good, object.clone()).await;
    assert_eq!(inventory.verify(None).await.0.good, 1);
    let mut flipped = stored(1, 10, None);
    *flipped.1.last_mut().expect("not empty") ^= 1;
    // A whole segment under the path of another; of another namespace; the start of one; nothing at all.
    let (wrong_hash, wrong_namespace) = (stored(1, 20, None).0, stored(2, 0, None).0);
    let cases = [
        (&flipped.0, flipped.1.clone(), "layer_checksum"),
        (&wrong_hash, object.clone(), "hash"),
        (&wrong_namespace, object.clone(), "namespace"),
        (&stored(1, 30, None).0, stored(1, 30, None).1[..150].to_vec(), "length"),
        (&stored(1, 40, None).0, Vec::new(), "length"),
    ];
    for (path, object, _) in &cases {
        inventory.put(path, object.clone()).await;
    }
    let (verified, mut damaged) = inventory.verify(None).await;
    assert_eq!((verified.good, verified.sealed, verified.all_good()), (1, 0, false));
    assert_eq!(verified.damaged.values().sum::<u64>(), cases.len() as u64);
    damaged.sort_by(|one, other| one.path.cmp(&other.path));
    let mut expected: Vec<_> = cases.iter().map(|(path, _, reason)| (path.as_str(), *reason)).collect();
    expected.sort();
    let found: Vec<_> = damaged.iter().map(|segment| (segment.path.as_str(), segment.reason)).collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn encrypted_segments_are_good_damaged_or_not_known_to_be_either() {
    let inventory = memory("sealed");
    let (one, two) = (key("1"), key("2"));
    for (namespace, token, key) in [(1, 0, Some(&one)), (1, 10, Some(&one)), (2, 0, Some(&two)), (3, 0, None)]
    {
        let (path, object) = stored(namespace, token, key);
        inventory.put(&path, object).await;
    }
    let found = |verified: &Verified| {
        (verified.good, verified.sealed, verified.damaged.values().sum::<u64>(), verified.all_good())
    };
    assert_eq!(found(&inventory.verify(None).await.0), (1, 3, 0, false));
    assert_eq!(found(&inventory.verify(Some(&keys(&["1"]))).await.0), (3, 1, 0, false));
    let all = keys(&["0", "1", "2"]);
    assert_eq!(found(&inventory.verify(Some(&all)).await.0), (4, 0, 0, true));
    // Whichever is read first: the key of this namespace opens the other segment, so this one is damaged.
    let (path, mut object) = stored(1, 10, Some(&one));
    *object.last_mut().expect("not empty") ^= 1;
    inventory.put(&path, object).await;
    let (verified, damaged) = inventory.verify(Some(&all)).await;
    assert_eq!(found(&verified), (3, 0, 1, false));
    assert_eq!((damaged[0].path.as_str(), damaged[0].reason), (path.as_str(), "sealed"));
}
