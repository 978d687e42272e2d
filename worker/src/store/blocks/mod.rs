//! Segments of KV blocks in the object store: written behind the engine's back, read before a turn needs them.
//!
//! Invariants:
//! * the engine never waits for the store: a segment that finds no room is dropped and counted;
//! * a segment is a hit only once the store has acknowledged it, and its bytes are used only after they were verified: every
//!   failure is a [`Miss`], and a miss costs prefill, never a wrong token;
//! * all work happens on a few threads of low priority that nothing else uses;
//! * queue, host cache, parallel reads, ids remembered and every wait have bounds.

mod cost;
mod fetch;
mod health;
mod host_cache;
mod ledger;
mod objects;
mod reads_first;
mod saver;
mod sink;
mod threads;
mod tidy;

use std::fmt::{Debug, Formatter};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use object_store::ObjectStore;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use turnmill_schema::Name;

use self::cost::CostMeter;
use self::health::Health;
use self::host_cache::HostCache;
use self::ledger::Ledger;
use self::objects::Objects;
use self::reads_first::ReadsFirst;
use self::saver::{Room, Saver};
use self::threads::Threads;
use super::StoreError;
use super::folder::{Folder, Trimmed};
use super::keys::{Keys, TenantKey};
use super::object::Damage;
use crate::config::{KvCodec, StoreUrl};
use crate::kv::codec::Coding;
use crate::kv::{BlockShape, Segment, SegmentData, SegmentId};
use crate::surroundings::Surroundings;

pub use cost::FetchCost;

/// Stored segments that are remembered, at 96 bytes each and up to twice as many: more than a pool holds.
const REMEMBERED: usize = 32 * 1024;

/// What a [`BlockStore`] is told.
#[derive(Clone, Debug)]
pub struct BlockStoreSettings {
    /// Where the objects are.
    pub url: StoreUrl,
    /// Whose they are; queues share nothing.
    pub queue: Name,
    /// What a block of the pool looks like.
    pub shape: BlockShape,
    /// How blocks are written. It is part of the segments' namespace: segments of another codec are never found.
    pub codec: KvCodec,
    /// The folder with the tenants' keys; without one, nothing is encrypted.
    pub keys: Option<PathBuf>,
    /// Most bytes of segments, as the pool has them, that wait to be written or are being written.
    pub save_queue_bytes: usize,
    /// Most bytes of stored objects kept in memory; 0: none.
    pub host_cache_bytes: usize,
    /// Objects read at once.
    pub parallel: usize,
    /// Longest time that one object's read may take.
    pub timeout: Duration,
    /// Most bytes that the queue's segments take if the store is a folder; none: any.
    pub folder_bytes: Option<u64>,
}

/// Why a segment has to be computed.
#[derive(Debug, thiserror::Error)]
pub enum Miss {
    /// It was never stored, or it was removed.
    #[error("the segment is not in the object store; it has to be computed")]
    Absent,
    /// There is an object, and it is not the segment. It was set aside.
    #[error("the segment's object was set aside: {0}")]
    Damaged(#[from] Damage),
    /// The store cannot be asked, or could not a moment ago.
    #[error("the segment cannot be read: {0}; look after the object store")]
    Unreachable(String),
    /// The store took too long.
    #[error(
        "the object store did not give the segment in time; it may be overloaded, or the timeout too short"
    )]
    TimedOut,
}

impl Miss {
    /// For metrics; one of [`crate::observe::metrics::MISS_REASONS`].
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Damaged(damage) => damage.reason(),
            Self::Unreachable(_) => "unreachable",
            Self::TimedOut => "timed_out",
        }
    }
}

/// What the store's tasks and its callers share.
#[derive(Debug)]
struct Shared {
    settings: BlockStoreSettings,
    /// Tasks of the store run on its own threads.
    surroundings: Surroundings,
    keys: Option<Keys>,
    objects: Objects,
    ledger: Ledger,
    room: Room,
    cache: HostCache,
    parallel: Semaphore,
    reads_first: ReadsFirst,
    cost: CostMeter,
    health: Health,
    /// The files, if the store is a folder.
    folder: Option<Arc<Folder>>,
    /// What was removed for the folder's limit and not told yet.
    trimmed: Mutex<Trimmed>,
    /// Cancelled when no step can be held up any more.
    hurries: CancellationToken,
}

impl Shared {
    fn new(
        objects: Objects,
        settings: BlockStoreSettings,
        surroundings: Surroundings,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            keys: settings.keys.as_deref().map(Keys::open).transpose()?,
            objects,
            ledger: Ledger::new(REMEMBERED, surroundings.clone()),
            room: Room::new(settings.save_queue_bytes),
            cache: HostCache::new(settings.host_cache_bytes),
            parallel: Semaphore::new(settings.parallel.clamp(1, Semaphore::MAX_PERMITS)),
            reads_first: ReadsFirst::new(surroundings.clone()),
            cost: CostMeter::new(surroundings.clone()),
            health: Health::new(settings.url.clone()),
            folder: tidy::folder(&settings, surroundings.clone()),
            trimmed: Mutex::default(),
            hurries: CancellationToken::new(),
            settings,
            surroundings,
        })
    }

    /// More bytes than an object of this segment has, whatever its codec adds.
    fn most_bytes(&self, segment: &Segment) -> u64 {
        let blocks = segment.tokens.len().div_ceil(self.settings.shape.block_tokens.max(1));
        (2 * blocks * self.settings.shape.block_bytes() + 8 * segment.tokens.len() + (64 << 10)) as u64
    }

    fn key(&self, tenant: &str) -> Option<TenantKey> {
        self.keys.as_ref()?.get(tenant)
    }
}

/// The KV blocks of one queue in an object store. Clones are the same store; the last one dropped ends its threads and
/// what is still queued: [`flush`](Self::flush) first.
#[derive(Clone, Debug)]
pub struct BlockStore(Arc<Inner>);

struct Inner {
    /// Absent in a simulation. The first to be dropped.
    _threads: Option<Threads>,
    shared: Arc<Shared>,
    saver: Saver,
}

impl BlockStore {
    /// Opens the store and starts its threads. A folder is made if there is none; other stores are not asked yet.
    pub fn open(settings: BlockStoreSettings) -> Result<Self, StoreError> {
        let threads = Threads::start()?;
        let surroundings = Surroundings::on(threads.handle().clone());
        let objects = Objects::open(&settings, surroundings.clone())?;
        Self::start(objects, settings, surroundings, Some(threads))
    }

    /// The same over `objects`, without threads of its own: whatever it does happens in `surroundings`.
    ///
    /// # Errors
    /// The tenants' keys cannot be read.
    pub fn over(
        objects: Arc<dyn ObjectStore>,
        settings: BlockStoreSettings,
        surroundings: Surroundings,
    ) -> Result<Self, StoreError> {
        let objects = Objects::over(objects, &settings, surroundings.clone());
        Self::start(objects, settings, surroundings, None)
    }

    fn start(
        objects: Objects,
        settings: BlockStoreSettings,
        surroundings: Surroundings,
        threads: Option<Threads>,
    ) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared::new(objects, settings, surroundings)?);
        let saver = Saver::start(&shared);
        Ok(Self(Arc::new(Inner { _threads: threads, shared, saver })))
    }

    /// Writes, reads and removes an object.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`] with what the store refused, or that it did not answer within 10 s.
    pub async fn check(&self) -> Result<(), StoreError> {
        let shared = self.shared().clone();
        self.run(async move { shared.objects.check().await }).await.unwrap_or_else(|reason| {
            let url = self.shared().settings.url.clone();
            Err(StoreError::Unreachable { url, path: "a probe".into(), reason })
        })
    }

    /// Takes a segment to be written, unless it is stored or on its way. Never waits, so the engine may call it. False:
    /// the queue is full; the segment is dropped and counted.
    pub fn save(&self, data: SegmentData) -> bool {
        !self.shared().begin(data.segment.id) || self.0.saver.save(self.shared(), data)
    }

    /// Whether anything of this tenant may be stored: if there are keys, it needs one.
    pub fn serves(&self, tenant: &str) -> bool {
        self.shared().keys.as_ref().is_none_or(|keys| keys.get(tenant).is_some())
    }

    /// Bytes of a segment's object, roughly: as many as its codec makes of its blocks.
    pub fn stored_bytes(&self, segment: &Segment) -> usize {
        let BlockStoreSettings { shape, codec, .. } = &self.shared().settings;
        let blocks = segment.tokens.len() / shape.block_tokens;
        let elements = blocks * shape.block_bytes() / shape.element_bytes();
        Coding::new(*codec, shape).encoded_bytes(elements).unwrap_or(usize::MAX)
    }

    /// Whether the segment is stored, queued or being written, as far as is remembered: no need to save it.
    pub fn is_saved(&self, id: &SegmentId) -> bool {
        self.shared().ledger.is_known(id)
    }

    /// Whether the segment is in the host cache.
    pub fn is_cached(&self, id: &SegmentId) -> bool {
        self.shared().cache.contains(id)
    }

    /// The segment from the host cache or the store, verified and decoded on the store's threads. While the store cannot
    /// be read, most calls fail at once.
    ///
    /// # Errors
    /// Why the segment has to be computed. A damaged object is out of the way when this returns, so the segment may be saved
    /// again.
    pub async fn fetch(&self, segment: &Arc<Segment>) -> Result<SegmentData, Miss> {
        let fetch = fetch::fetch(self.shared().clone(), segment.clone());
        self.run(fetch).await.unwrap_or_else(|reason| Err(Miss::Unreachable(reason)))
    }

    /// Reads the segment's object from the store and drops it: what a fetch costs without all that it is for. Bytes read.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub async fn read_only(&self, segment: &Arc<Segment>) -> Result<usize, Miss> {
        let read = fetch::read_only(self.shared().clone(), segment.clone());
        self.run(read).await.unwrap_or_else(|reason| Err(Miss::Unreachable(reason)))
    }

    /// Waits until the store has acknowledged `segments`, at most for `within`. How many of them, from the first on, it
    /// has: a failed one, or one that was never saved, ends the count and the wait.
    pub async fn saved(&self, segments: &[SegmentId], within: Duration) -> usize {
        let shared = self.shared();
        shared.ledger.settled(segments, shared.surroundings.sleep(within)).await
    }

    /// From now on writers do not rest, and one that rests goes on: the worker stops, and no step can be held up.
    pub fn hurry(&self) {
        self.shared().hurries.cancel();
    }

    /// Waits until nothing is queued or being written and a folder says what was used, at most for `within`.
    pub async fn flush(&self, within: Duration) {
        let all = async {
            self.shared().ledger.idle().await;
            if let Err(error) = self.look().await {
                tracing::debug!(%error, "when K and V were last used is not noted");
            }
        };
        if self.shared().surroundings.timeout(within, all).await.is_err() {
            tracing::warn!("KV blocks are still waiting for the object store; they are given up");
        }
    }

    /// What to expect of fetches that the host cache does not answer.
    pub fn fetch_cost(&self) -> FetchCost {
        let shared = self.shared();
        shared.cost.estimate(shared.surroundings.now())
    }

    /// Calls `listener` now and at every change: with a sentence when reads or writes have failed three times in a
    /// row, with nothing when one succeeds again. It replaces an earlier listener, and must return quickly.
    pub fn on_trouble(&self, listener: impl Fn(Option<String>) + Send + 'static) {
        self.shared().health.listen(Box::new(listener));
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// Runs `work` on the store's threads; it ends when the caller no longer waits for it.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, String> {
        let task = self.shared().surroundings.run(work.in_current_span());
        task.await.map_err(|error| format!("the store's task failed: {error}"))
    }
}

impl Debug for Inner {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockStore").field("url", &self.shared.settings.url).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::fmt;
    use std::sync::PoisonError;

    use futures::future::BoxFuture;
    use futures::stream::BoxStream;
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use object_store::{
        CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
        PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    };

    use super::*;
    use crate::config::KvDtype;
    use crate::kv::{Identity, Namespace, PrefixHash};

    #[test]
    fn every_miss_has_a_word_of_its_list() {
        use Damage::{
            Chain, Codec, Flags, Hash, HeaderChecksum, KeyMissing, LayerChecksum, Length, Magic, Namespace,
            Parent, Plain, Position, Sealed, Shape, Tokens, Version,
        };
        let damages = [
            Length,
            Magic,
            Version(1),
            Flags(1),
            Namespace,
            Parent,
            Hash,
            Chain,
            Tokens,
            Position,
            Shape,
            Codec,
            HeaderChecksum,
            LayerChecksum(1),
            KeyMissing,
            Plain,
            Sealed,
        ];
        let misses = [Miss::Absent, Miss::Unreachable(String::new()), Miss::TimedOut];
        let words: Vec<_> =
            misses.into_iter().chain(damages.map(Miss::Damaged)).map(|m| m.reason()).collect();
        assert_eq!(words, crate::observe::metrics::MISS_REASONS);
    }

    /// What becomes of a put.
    #[derive(Clone, Copy, Debug)]
    pub(super) enum Put {
        NeverEnds,
        Panics,
    }

    /// A store in memory whose first puts end otherwise.
    #[derive(Debug, Default)]
    pub(super) struct Puts {
        fates: Mutex<VecDeque<Put>>,
        inner: InMemory,
    }

    impl Puts {
        pub fn these(fates: impl Into<VecDeque<Put>>) -> Self {
            Self { fates: Mutex::new(fates.into()), inner: InMemory::new() }
        }
    }

    impl fmt::Display for Puts {
        fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
            f.write_str("a store of tests")
        }
    }

    // As async_trait, which we do not depend on, writes it.
    impl ObjectStore for Puts {
        fn put_opts<'a, 'b, 'c>(
            &'a self,
            location: &'b Path,
            payload: PutPayload,
            options: PutOptions,
        ) -> BoxFuture<'c, Result<PutResult>>
        where
            'a: 'c,
            'b: 'c,
            Self: 'c,
        {
            let fate = self.fates.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match fate {
                None => self.inner.put_opts(location, payload, options),
                Some(Put::NeverEnds) => Box::pin(std::future::pending()),
                Some(Put::Panics) => panic!("a bug in a client"),
            }
        }

        fn put_multipart_opts<'a, 'b, 'c>(
            &'a self,
            location: &'b Path,
            options: PutMultipartOptions,
        ) -> BoxFuture<'c, Result<Box<dyn MultipartUpload>>>
        where
            'a: 'c,
            'b: 'c,
            Self: 'c,
        {
            self.inner.put_multipart_opts(location, options)
        }

        fn get_opts<'a, 'b, 'c>(
            &'a self,
            location: &'b Path,
            options: GetOptions,
        ) -> BoxFuture<'c, Result<GetResult>>
        where
            'a: 'c,
            'b: 'c,
            Self: 'c,
        {
            self.inner.get_opts(location, options)
        }

        fn delete_stream(
            &self,
            locations: BoxStream<'static, Result<Path>>,
        ) -> BoxStream<'static, Result<Path>> {
            self.inner.delete_stream(locations)
        }

        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.inner.list(prefix)
        }

        fn list_with_delimiter<'a, 'b, 'c>(
            &'a self,
            prefix: Option<&'b Path>,
        ) -> BoxFuture<'c, Result<ListResult>>
        where
            'a: 'c,
            'b: 'c,
            Self: 'c,
        {
            self.inner.list_with_delimiter(prefix)
        }

        fn copy_opts<'a, 'b, 'd, 'c>(
            &'a self,
            from: &'b Path,
            to: &'d Path,
            options: CopyOptions,
        ) -> BoxFuture<'c, Result<()>>
        where
            'a: 'c,
            'b: 'c,
            'd: 'c,
            Self: 'c,
        {
            self.inner.copy_opts(from, to, options)
        }
    }

    const SHAPE: BlockShape =
        BlockShape { layers: 2, block_tokens: 2, kv_heads: 1, head_dim: 4, dtype: KvDtype::F16 };

    fn settings(url: &str) -> BlockStoreSettings {
        BlockStoreSettings {
            url: StoreUrl::from(url.to_owned()),
            queue: Name::new("q").expect("a name"),
            shape: SHAPE,
            codec: KvCodec::F16,
            keys: None,
            save_queue_bytes: 1 << 20,
            host_cache_bytes: 0,
            parallel: 1,
            timeout: Duration::from_secs(20),
            folder_bytes: None,
        }
    }

    /// The store at `url` as far as its settings say, whose objects go through `puts`.
    pub(super) fn store(url: &str, puts: Puts, change: impl FnOnce(&mut BlockStoreSettings)) -> BlockStore {
        let mut settings = settings(url);
        change(&mut settings);
        let threads = Threads::start().expect("threads start");
        let surroundings = Surroundings::on(threads.handle().clone());
        let objects = Objects::over(Arc::new(puts), &settings, surroundings.clone());
        BlockStore::start(objects, settings, surroundings, Some(threads)).expect("there are no keys")
    }

    /// Its threads are started by then, and nobody may wait for their end where tasks run.
    #[tokio::test]
    async fn a_store_that_is_of_no_use_says_so_where_tasks_run() {
        let no_keys = BlockStoreSettings { keys: Some("/nowhere/keys".into()), ..settings("memory:///") };
        for settings in [settings("file:///proc/nowhere/x"), no_keys] {
            BlockStore::open(settings).expect_err("it cannot be opened");
        }
    }

    /// A segment of two blocks; equal for equal numbers.
    pub(super) fn segment(number: u8) -> SegmentData {
        let tokens = (0..4).map(|token| u32::from(number) << 8 | token).collect();
        let segment = Segment { id: id(number), tenant: "t".into(), first_block: 0, tokens };
        SegmentData { segment: Arc::new(segment), data: vec![number; 2 * SHAPE.block_bytes()].into() }
    }

    /// A segment's name; equal for equal numbers.
    pub(in crate::store) fn id(number: u8) -> SegmentId {
        let namespace = Namespace::new(&Identity::example());
        SegmentId { namespace, parent: PrefixHash([number; 32]), last: PrefixHash([number; 32]) }
    }
}
