//! What every object store must do under the worker's [`BlockStore`]. A store's test file gives a [`TestPlace`] and
//! calls [`block_store_conformance!`](crate::block_store_conformance!), which makes one test of each function here.
//!
//! What the store holds is read and damaged through a client of our own, past the code under test. Every wait is for a
//! condition.

mod hits;
mod limits;
mod misses;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt};
use turnmill_schema::Name;
use turnmill_worker::config::{KvCodec, KvDtype, StoreUrl};
use turnmill_worker::kv::{
    BlockShape, Identity, Namespace, PrefixHash, Segment, SegmentData, SegmentId, TokenChain, segment_bounds,
};
use turnmill_worker::observe::CATALOGUE;
use turnmill_worker::store::{self, BlockStore, BlockStoreSettings};

pub use hits::*;
pub use limits::*;
pub use misses::*;

/// Longest wait for a condition before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Blocks of 4 KiB.
pub const SHAPE: BlockShape =
    BlockShape { layers: 2, block_tokens: 16, kv_heads: 1, head_dim: 32, dtype: KvDtype::F16 };

/// A place in a store that nobody else uses and that is empty at first.
pub trait TestPlace: Send + Sync + 'static {
    /// Its address; credentials and the like are in the environment.
    fn url(&self) -> String;
}

/// One test of each conformance function; `$place` is an expression that makes a [`TestPlace`]. With `ignore = "why";`
/// before it, the tests run only where they are asked for.
#[macro_export]
macro_rules! block_store_conformance {
    (ignore = $why:literal; $place:expr) => {
        $crate::block_store_conformance!(@all [#[ignore = $why]] $place);
    };
    ($place:expr) => {
        $crate::block_store_conformance!(@all [] $place);
    };
    (@all $attributes:tt $place:expr) => {
        $crate::block_store_conformance!(@tests $attributes $place;
            what_one_worker_saved_another_fetches
            what_is_there_already_is_not_written_again
            two_writers_of_one_segment_both_succeed
            the_host_cache_answers_without_the_store
            many_fetches_share_few_reads
            what_a_limit_removes_is_saved_again
            a_check_leaves_nothing_behind
            a_tenants_key_is_needed_to_read
            what_is_absent_is_a_miss
            every_damage_is_a_miss_and_set_aside
            another_segments_object_is_a_miss
            queues_and_tenants_share_nothing
            a_full_queue_drops_and_counts
            the_queue_has_room_again_once_a_segment_is_written
            the_host_cache_keeps_to_its_budget
            only_leading_segments_are_counted
            who_does_not_wait_loses_nothing
            a_segment_that_cannot_be_encoded_fails_alone
            flushing_waits_for_everything
            dropping_it_with_a_full_queue_is_clean
        );
    };
    (@tests $attributes:tt $place:expr; $($name:ident)*) => {$(
        $crate::block_store_conformance!(@test $attributes $place; $name);
    )*};
    (@test [$(#[$attribute:meta])*] $place:expr; $name:ident) => {
        $(#[$attribute])*
        #[tokio::test]
        async fn $name() {
            let place = $place;
            $crate::block_store_conformance::$name(&place).await;
        }
    };
}

/// A worker's store at `place`, roomy and without a host cache.
pub fn worker(place: &impl TestPlace) -> BlockStore {
    worker_with(place, |_| ())
}

/// The same after `change`.
pub fn worker_with(place: &impl TestPlace, change: impl FnOnce(&mut BlockStoreSettings)) -> BlockStore {
    let mut settings = BlockStoreSettings {
        url: StoreUrl::from(place.url()),
        queue: Name::new("q").expect("a name"),
        shape: SHAPE,
        codec: KvCodec::F16,
        keys: None,
        save_queue_bytes: 64 << 20,
        host_cache_bytes: 0,
        parallel: 4,
        timeout: PATIENCE,
        folder_bytes: None,
    };
    change(&mut settings);
    BlockStore::open(settings).expect("the store opens")
}

/// The segments of a sequence of `blocks` blocks, four to a segment; sequences with other seeds share none.
pub fn segments(seed: u32, blocks: usize) -> Vec<SegmentData> {
    segments_of("t", seed, blocks)
}

/// The same of a tenant.
pub fn segments_of(tenant: &str, seed: u32, blocks: usize) -> Vec<SegmentData> {
    let tokens: Vec<u32> = (0..blocks * SHAPE.block_tokens).map(|i| seed << 16 | i as u32).collect();
    segments_over(tenant, &tokens)
}

/// The segments of a tenant's sequence of `tokens`, which are whole blocks.
pub fn segments_over(tenant: &str, tokens: &[u32]) -> Vec<SegmentData> {
    let namespace = Namespace::new(&identity()).for_tenant(tenant);
    let chain = TokenChain::new(namespace, SHAPE.block_tokens, tokens.to_vec());
    let seed = tokens.first().map_or(0, |token| token >> 16) as usize;
    let segment = |blocks: std::ops::Range<usize>| {
        let parent = blocks.start.checked_sub(1).map_or(PrefixHash::ROOT, |last| chain.hashes()[last]);
        let id = SegmentId { namespace, parent, last: chain.hashes()[blocks.end - 1] };
        let first = seed + blocks.start;
        let data =
            (0..blocks.len() * SHAPE.block_bytes()).map(|i| (i * 31 + i / 251 + first) as u8).collect();
        let tokens = tokens[blocks.start * SHAPE.block_tokens..blocks.end * SHAPE.block_tokens].to_vec();
        let segment = Segment { id, tenant: tenant.into(), first_block: blocks.start, tokens };
        SegmentData { segment: Arc::new(segment), data }
    };
    segment_bounds(tokens.len() / SHAPE.block_tokens, 0, 4).into_iter().map(segment).collect()
}

fn identity() -> Identity<'static> {
    Identity {
        weights_digest: [1; 32],
        weights_mode: "fast",
        tokenizer_digest: [2; 32],
        rope_and_window: "base=10000 window=none",
        kv_dtype: "f16",
        codec: "f16",
        compute_kind: "cpu-avx2",
        numerics_revision: 1,
        block_tokens: SHAPE.block_tokens as u32,
        segment_tokens: 64,
        layout_version: 1,
    }
}

/// The names of segments.
pub fn ids(segments: &[SegmentData]) -> Vec<SegmentId> {
    segments.iter().map(|segment| segment.segment.id).collect()
}

/// Saves segments and waits until the store has them.
pub async fn save_all(worker: &BlockStore, segments: &[SegmentData]) {
    for segment in segments {
        assert!(worker.save(segment.clone()), "the queue has room");
    }
    assert_eq!(worker.saved(&ids(segments), PATIENCE).await, segments.len(), "the store takes them");
}

/// Fetches a segment and compares it with what was saved.
pub async fn assert_fetched(worker: &BlockStore, saved: &SegmentData) {
    let fetched = worker.fetch(&saved.segment).await.expect("a hit");
    assert_eq!(fetched.segment.id, saved.segment.id);
    assert!(fetched.data == saved.data, "other bytes came back than were saved");
}

/// What is in the store, past the code under test.
pub struct Outside(Arc<dyn ObjectStore>);

impl Outside {
    /// A client of the same place.
    pub fn of(place: &impl TestPlace) -> Self {
        Self::at(&place.url())
    }

    /// A client of the store at `url`.
    pub fn at(url: &str) -> Self {
        Self(store::open(&StoreUrl::from(url.to_owned())).expect("the store opens"))
    }

    /// The object at `path`, where there is one.
    pub async fn get(&self, path: &str) -> Option<Bytes> {
        match self.0.get(&Path::from(path)).await {
            Ok(object) => Some(object.bytes().await.expect("readable")),
            Err(Error::NotFound { .. }) => None,
            Err(error) => panic!("{path}: {error}"),
        }
    }

    /// Writes an object over whatever is there.
    pub async fn put(&self, path: &str, object: impl Into<Bytes>) {
        self.0.put(&Path::from(path), object.into().into()).await.expect("written");
    }

    /// Removes an object.
    pub async fn remove(&self, path: &str) {
        self.0.delete(&Path::from(path)).await.expect("removed");
    }

    /// The names of all objects.
    pub async fn list(&self) -> Vec<String> {
        use futures::TryStreamExt;
        let objects: Vec<_> = self.0.list(None).try_collect().await.expect("listed");
        objects.into_iter().map(|object| object.location.to_string()).collect()
    }
}

/// Where a segment of queue `q` has to be.
pub fn path(id: &SegmentId) -> String {
    let hash = id.last.to_string();
    format!("kv/q/{}/{}/{hash}", id.namespace, &hash[..2])
}

/// Where it is once it was found to be damaged.
pub fn path_aside(id: &SegmentId) -> String {
    path(id).replacen("kv/", "kv-damaged/", 1)
}

/// A counter of this process, all tests together. `series` is its name with its labels.
pub fn counted(series: &str) -> u64 {
    type Render = Box<dyn Fn() -> String + Send + Sync>;
    static METRICS: OnceLock<Render> = OnceLock::new();
    let render = METRICS.get_or_init(|| {
        let metrics = CATALOGUE.install().expect("once a process");
        Box::new(move || metrics.render())
    });
    let text = render();
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().expect("a counter is a whole number"))
}

/// Waits for a condition.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
