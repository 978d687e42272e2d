use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use turnmill_schema::kv_object::path;
use turnmill_schema::{Digest, PayloadReference, TurnId};

use super::*;
use crate::broker::{Manifests, PayloadsInUse, Root};
use crate::store::inventory::tests::memory;

const DAY: Duration = Duration::from_secs(24 * 3600);
const NAMESPACE: Digest = Digest([9; 32]);

/// What each reading answers; the last answer stays.
#[derive(Default)]
struct Queue {
    manifests: Mutex<Vec<Manifests>>,
    payloads: Mutex<Vec<PayloadsInUse>>,
}

impl Queue {
    /// One agent for each reading's roots.
    fn with(readings: &[&[u8]]) -> Self {
        let reading = |lasts: &&[u8]| {
            let roots = lasts.iter().map(|last| (Root { namespace: NAMESPACE, last: hash(*last) }, 1));
            Manifests { agents: 3, roots: roots.collect(), unreadable: 0 }
        };
        Self { manifests: Mutex::new(readings.iter().map(reading).collect()), payloads: Mutex::default() }
    }
}

fn next<T: Clone + Default>(answers: &Mutex<Vec<T>>) -> T {
    let mut answers = answers.lock().expect("no test panics with it");
    if answers.len() > 1 { answers.remove(0) } else { answers.first().cloned().unwrap_or_default() }
}

impl References for Queue {
    async fn manifests(&self) -> Result<Manifests, BrokerError> {
        Ok(next(&self.manifests))
    }

    async fn payloads(&self) -> Result<PayloadsInUse, BrokerError> {
        Ok(next(&self.payloads))
    }
}

fn hash(number: u8) -> Digest {
    Digest([number; 32])
}

fn segment_path(number: u8) -> String {
    path(&Name::new("q").expect("a name"), &NAMESPACE, &hash(number))
}

/// The start of a segment, which is all that marking reads; 0 is the parent of first ones.
fn header(parent: u8, number: u8) -> Vec<u8> {
    [&b"TMKV\x01\x00\x00\x00"[..], &NAMESPACE.0, &[parent; 32], &[number; 32]].concat()
}

/// Stores segments, each after its parent.
async fn store(inventory: &Inventory, segments: &[(u8, u8)]) {
    for (parent, number) in segments {
        inventory.put(&segment_path(*number), header(*parent, *number)).await;
    }
}

/// Options of a collector that comes so long after everything was stored.
fn after(age: Duration, delete: bool) -> Options {
    let now = SystemTime::now() + age;
    let now_ms = now.duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    Options { delete, retention: 7 * DAY, parallel: 4, now_ms }
}

async fn run(inventory: &Inventory, queue: &Queue, options: Options) -> Collected {
    collect(inventory, queue, options, |_| {}).await.expect("memory and this queue answer")
}

async fn left(inventory: &Inventory) -> HashSet<String> {
    inventory.paths().await.into_iter().collect()
}

fn paths(numbers: &[u8]) -> HashSet<String> {
    numbers.iter().map(|number| segment_path(*number)).collect()
}

#[tokio::test]
async fn what_no_manifest_reaches_is_removed_once_it_is_old_and_only_when_told_to() {
    let inventory = memory("reach");
    // Two agents behind one prompt (1, 2), a tail that was replaced (5), an agent that is gone (6, 7).
    store(&inventory, &[(0, 1), (1, 2), (2, 3), (2, 4), (2, 5), (0, 6), (6, 7)]).await;
    let (queue, all) = (Queue::with(&[&[3, 4]]), paths(&[1, 2, 3, 4, 5, 6, 7]));
    for (age, delete, garbage) in [(8 * DAY, false, 3), (6 * DAY, true, 0)] {
        let collected = run(&inventory, &queue, after(age, delete)).await;
        assert_eq!((collected.segments.garbage, collected.segments.deleted), (garbage, 0));
        assert_eq!((collected.agents, collected.roots, collected.marked, collected.broken), (3, 2, 4, 0));
        assert_eq!(left(&inventory).await, all);
    }
    let collected = run(&inventory, &queue, after(8 * DAY, true)).await;
    let bytes = 3 * 104;
    let expected =
        Found { kept: 4, garbage: 3, garbage_bytes: bytes, deleted: 3, deleted_bytes: bytes, failed: 0 };
    assert_eq!((collected.segments, collected.failure), (expected, None));
    assert_eq!(left(&inventory).await, paths(&[1, 2, 3, 4]));
}

#[tokio::test]
async fn a_chain_that_breaks_keeps_what_it_reaches() {
    let inventory = memory("broken");
    store(&inventory, &[(0, 1), (2, 3), (4, 5), (6, 7), (0, 8)]).await;
    // 2 is gone; 4 is empty, 6 says that it is another segment, and 9 was never stored.
    inventory.put(&segment_path(4), "").await;
    inventory.put(&segment_path(6), header(1, 99)).await;
    let collected = run(&inventory, &Queue::with(&[&[3, 5, 7, 9]]), after(8 * DAY, true)).await;
    assert_eq!((collected.broken, collected.marked), (4, 3));
    assert_eq!(left(&inventory).await, paths(&[3, 4, 5, 6, 7]));
}

#[tokio::test]
async fn a_chain_that_runs_in_a_circle_ends() {
    let inventory = memory("circle");
    store(&inventory, &[(2, 1), (1, 2)]).await;
    let collected = run(&inventory, &Queue::with(&[&[2]]), after(8 * DAY, true)).await;
    assert_eq!((collected.segments.kept, collected.segments.garbage), (2, 0));
}

#[tokio::test]
async fn a_segment_that_is_wanted_anew_before_it_is_removed_stays() {
    let inventory = memory("anew");
    store(&inventory, &[(0, 1), (1, 2), (0, 3)]).await;
    let collected = run(&inventory, &Queue::with(&[&[], &[2]]), after(8 * DAY, true)).await;
    assert_eq!((collected.segments.kept, collected.segments.deleted), (2, 1));
    assert_eq!(left(&inventory).await, paths(&[1, 2]));
}

#[tokio::test]
async fn a_redis_that_knows_no_agents_removes_nothing() {
    let (inventory, queue) = (memory("no-agents"), Queue::default());
    run(&inventory, &queue, after(8 * DAY, true)).await;
    for object in [segment_path(1), "payloads/q/x".to_owned(), "kv-damaged/q/x".to_owned()] {
        inventory.put(&object, header(0, 1)).await;
        let refused = collect(&inventory, &queue, after(8 * DAY, true), |_| {}).await;
        let refused = refused.expect_err("there are objects and no agents");
        assert!(matches!(refused, GarbageError::NoAgents { .. }), "{refused}");
        assert!(refused.to_string().contains("no agent of queue q"), "{refused}");
        assert_eq!(inventory.paths().await, std::slice::from_ref(&object));
        inventory.remove(vec![object.into()]).await;
    }
}

#[tokio::test]
async fn manifests_that_cannot_be_read_keep_everything() {
    let inventory = memory("unreadable");
    store(&inventory, &[(0, 1)]).await;
    let good = Manifests { agents: 2, ..Manifests::default() };
    let bad = Manifests { agents: 2, unreadable: 1, ..Manifests::default() };
    for readings in [vec![bad.clone()], vec![good, bad]] {
        let queue = Queue { manifests: Mutex::new(readings), ..Queue::default() };
        let refused = collect(&inventory, &queue, after(8 * DAY, true), |_| {}).await;
        assert!(matches!(refused, Err(GarbageError::UnreadableManifests(1))), "{refused:?}");
        assert_eq!(left(&inventory).await, paths(&[1]));
    }
}

#[tokio::test]
async fn other_queues_and_objects_of_no_kind_stay() {
    let inventory = memory("others");
    let others = ["kv/q2/x", "kv/q/README", "payloads/q/README", "payloads/q2/x", "kv-damaged/q2/x", "x"];
    for path in others {
        inventory.put(path, "x").await;
    }
    for path in ["kv-damaged/q/x", "kv-damaged/q/a/b"] {
        inventory.put(path, "x").await;
    }
    let collected = run(&inventory, &Queue::with(&[&[]]), after(6 * DAY, true)).await;
    assert_eq!((collected.foreign, collected.damaged.kept, collected.damaged.garbage), (2, 2, 0));
    let collected = run(&inventory, &Queue::with(&[&[]]), after(8 * DAY, true)).await;
    assert_eq!((collected.foreign, collected.damaged.kept, collected.damaged.deleted), (2, 0, 2));
    assert_eq!(left(&inventory).await, HashSet::from(others.map(str::to_owned)));
}

#[tokio::test]
async fn more_than_one_batch_is_removed() {
    let inventory = memory("batches");
    let queue = Name::new("q").expect("a name");
    for number in 0_u16..2100 {
        let mut hash = [0; 32];
        hash[..2].copy_from_slice(&number.to_le_bytes());
        inventory.put(&path(&queue, &NAMESPACE, &Digest(hash)), "x").await;
    }
    let collected = run(&inventory, &Queue::with(&[&[]]), after(8 * DAY, true)).await;
    assert_eq!((collected.segments.deleted, collected.segments.failed), (2100, 0));
    assert!(inventory.paths().await.is_empty());
}

/// A payload's path.
fn payload_of(turn: TurnId) -> String {
    PayloadReference::of(turn, b"x").path(&Name::new("q").expect("a name"))
}

#[tokio::test]
async fn payloads_that_no_turn_refers_to_are_removed() {
    let inventory = memory("payloads");
    let [used, replayed, moved, unreadable, orphan] = [0, 1, 2, 3, 4].map(TurnId::new);
    for turn in [used, replayed, moved, unreadable, orphan] {
        inventory.put(&payload_of(turn), "x").await;
    }
    let reading = |turns: &[TurnId]| PayloadsInUse {
        paths: turns.iter().map(|turn| payload_of(*turn)).collect(),
        turns: HashSet::from([unreadable]),
    };
    // A replay took over what its letter referred to, behind and before the reading.
    let readings = vec![reading(&[used, moved]), reading(&[used, replayed])];
    let queue = || Queue { payloads: Mutex::new(readings.clone()), ..Queue::with(&[&[]]) };
    let without_retention = Options { retention: Duration::ZERO, ..after(Duration::from_secs(1800), true) };
    let collected = run(&inventory, &queue(), without_retention).await;
    assert_eq!((collected.payloads.kept, collected.payloads.garbage), (5, 0), "they are too young");
    let collected = run(&inventory, &queue(), after(8 * DAY, true)).await;
    assert_eq!((collected.payloads.kept, collected.payloads.deleted), (4, 1));
    let expected = [used, replayed, moved, unreadable].map(payload_of);
    assert_eq!(left(&inventory).await, HashSet::from(expected));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever was stored, exactly what can be walked to stays.
    #[test]
    fn exactly_what_is_reached_stays(
        parents in prop::collection::vec(0u8..40, 1..40), gone in prop::collection::hash_set(1u8..40, 0..6),
        roots in prop::collection::vec(1u8..40, 0..6), case: u64,
    ) {
        // Segment n comes after any of those before it, or after none.
        let segments = (1u8..).zip(&parents).map(|(number, parent)| (parent % number, number));
        let segments: HashMap<u8, u8> =
            segments.filter(|(_, number)| !gone.contains(number)).map(|(parent, number)| (number, parent)).collect();
        let mut reached = HashSet::new();
        for root in &roots {
            let mut at = *root;
            while let Some(parent) = segments.get(&at) {
                reached.insert(segment_path(at));
                at = *parent;
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("starts");
        let remaining = runtime.block_on(async {
            let inventory = memory(&format!("property-{case}"));
            let segments: Vec<_> = segments.iter().map(|(number, parent)| (*parent, *number)).collect();
            store(&inventory, &segments).await;
            run(&inventory, &Queue::with(&[&roots]), after(8 * DAY, true)).await;
            left(&inventory).await
        });
        prop_assert_eq!(remaining, reached);
    }
}
