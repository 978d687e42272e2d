//! Stored K and V under a small model: what another way of computing wrote is never found, and of a thousand objects, each
//! damaged at random, none is used: each is a counted miss, and every reply is the one that was computed. The fuzz prints its
//! seed; `TURNMILL_FUZZ_SEED` reruns it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use turnmill_schema::{Name, Priority, Sampling};
use turnmill_worker::config::{KvCodec, KvDtype, StoreUrl, WeightsMode};
use turnmill_worker::engine::{
    self, EngineChannel, EngineHandle, EngineSettings, Form, Progress, Reply, Saving, Start,
};
use turnmill_worker::kv::{Namespace, Segment, SegmentGrid, TokenChain};
use turnmill_worker::model::{LoadOptions, Model, Tokenizer};
use turnmill_worker::observe::CATALOGUE;
use turnmill_worker::runner::{RestoreSettings, Restored, Restorer};
use turnmill_worker::schedule::{Limits, SequenceId};
use turnmill_worker::store::inventory::{Inventory, verify};
use turnmill_worker::store::{BlockStore, BlockStoreSettings};
use turnmill_worker::surroundings::Surroundings;

use crate::common::{Tiny, lifecycle, load, only_me, only_me_soon, tokens};

const OBJECTS: usize = 1000;
const BLOCK_TOKENS: usize = 16;
/// Two full blocks, which make one object, and a token that is computed in any case.
const PROMPT: usize = 2 * BLOCK_TOKENS + 1;
const REPLY: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(60);

/// A worker's inside over the store in `folder`, with nothing in its pool.
struct Inside {
    engine: EngineChannel,
    restorer: Restorer<EngineChannel>,
    tokenizer: Arc<Tokenizer>,
    namespace: Namespace,
}

impl Inside {
    fn start(model: &Path, folder: &Path) -> Self {
        let model = load(model, WeightsMode::F32, KvDtype::F16, 2 * OBJECTS * PROMPT);
        let store = BlockStore::open(BlockStoreSettings {
            url: url(folder),
            queue: queue(),
            shape: model.block_shape,
            codec: KvCodec::F16,
            keys: None,
            save_queue_bytes: 64 << 20,
            host_cache_bytes: 0,
            parallel: 4,
            timeout: PATIENCE,
            folder_bytes: None,
        });
        let store = store.expect("a folder can be opened");
        let settings = EngineSettings {
            limits: Limits { max_sequences: 1, batch_tokens: 64, max_context_tokens: 1024 },
            blocks: model.blocks as u32,
            block_tokens: BLOCK_TOKENS as u32,
            transfer_bytes: 1 << 20,
            offload_bytes: 0,
            speculation: None,
        };
        let lifecycle = lifecycle(PATIENCE);
        let sink = Some(Arc::new(store.clone()) as _);
        let (engine, _thread) =
            engine::spawn(model.engine, settings, sink, lifecycle, Surroundings::machine())
                .expect("a thread can be started");
        // A machine that hiccups must not make prefilling look better.
        let restore = RestoreSettings {
            block_tokens: BLOCK_TOKENS,
            parallel: 4,
            base: PATIENCE,
            host_cache_bytes: 0,
            choose: false,
        };
        Self {
            restorer: Restorer::new(store, engine.clone(), restore, Surroundings::machine()),
            engine,
            tokenizer: model.tokenizer,
            namespace: model.namespace.for_tenant("t"),
        }
    }

    /// Runs prompt number `index`, its stored segment restored before: the reply, what came of the restore, and the tokens
    /// that were not computed.
    async fn run(&self, index: usize) -> (Vec<u32>, Option<Restored>, u32) {
        let prompt = tokens(index as u64 + 1, PROMPT, 320);
        let grid = SegmentGrid {
            namespace: self.namespace,
            tenant: "t".into(),
            block_tokens: BLOCK_TOKENS,
            shared_blocks: 0,
        };
        let chain = TokenChain::new(self.namespace, BLOCK_TOKENS, prompt);
        let segment: Arc<Segment> = Arc::new(grid.segment(chain.tokens(), chain.hashes(), &(0..2)));
        let sampling = Sampling { temperature: 0.0, ignore_eos: true, ..Sampling::default() };
        let (sender, mut progress) = mpsc::channel(REPLY as usize + 3);
        let id = SequenceId(index as u64);
        let start = Start {
            id,
            max_total_tokens: PROMPT as u32 + REPLY,
            reply: Reply::new(self.tokenizer.clone(), &sampling, REPLY, Form::default()),
            chain,
            sampling,
            priority: Priority::Interactive,
            alone: false,
            restorable_blocks: 2,
            saving: Some(Saving { grid, only_shared: false }),
            progress: sender,
        };
        self.engine.start(start).await.expect("the engine runs");
        let (mut reply, mut restored, mut cached) = (Vec::new(), None, 0);
        while let Some(next) = progress.recv().await {
            match next {
                Progress::Room { blocks } => {
                    restored = Some(self.restorer.restore(id, std::slice::from_ref(&segment), blocks).await);
                    self.engine.end_restore(id).await.expect("the engine runs");
                }
                Progress::Admitted { cached_tokens, .. } => cached = cached_tokens,
                Progress::Token(token) => reply.push(token.id),
                Progress::Stopped(_) => panic!("prompt {index}: nobody stops it"),
                Progress::Refused(text) | Progress::Failed(text) => panic!("prompt {index}: {text}"),
            }
        }
        (reply, restored, cached)
    }

    async fn flush(&self) {
        self.restorer.store().flush(PATIENCE).await;
    }
}

fn url(folder: &Path) -> StoreUrl {
    StoreUrl::from(format!("file://{}", folder.display()))
}

fn queue() -> Name {
    Name::new("q").expect("a name")
}

/// All files under `folder`, in the order of their names.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// Flips a bit of each file, cuts it, or swaps it with the next; each differs from what it was.
fn damage(files: &[PathBuf], dice: &mut Dice) {
    let read = |path: &PathBuf| std::fs::read(path).expect("a file just written can be read");
    let mut swapped = HashMap::new();
    for (index, path) in files.iter().enumerate() {
        let mut bytes = swapped.remove(&index).unwrap_or_else(|| read(path));
        match dice.below(3) {
            // The next gets this one's, and is damaged once more or swapped on.
            0 if index + 1 < files.len() => {
                let next = read(&files[index + 1]);
                swapped.insert(index + 1, std::mem::replace(&mut bytes, next));
            }
            1 => bytes.truncate(dice.below(bytes.len())),
            _ => {
                let bit = dice.below(8 * bytes.len());
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
        std::fs::write(path, bytes).expect("a file can be written");
    }
}

fn misses(text: &str) -> HashMap<String, u64> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("turnmill_store_misses_total{reason=\""));
    let count = |line: &str| {
        let (reason, count) = line.split_once("\"} ")?;
        Some((reason.to_owned(), count.parse().ok()?))
    };
    lines.filter_map(count).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_damaged_objects_are_a_thousand_misses() {
    let _computing = only_me_soon().await;
    let seed = std::env::var("TURNMILL_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seed: u64 = seed.unwrap_or(now.as_nanos() as u64) | 1;
    println!("TURNMILL_FUZZ_SEED={seed}");
    let metrics = CATALOGUE.install().expect("nobody else records in this process");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (model, folder) = (Tiny::default().write(directory.path()), directory.path().join("store"));

    let computing = Inside::start(&model, &folder);
    let mut replies = Vec::new();
    for index in 0..OBJECTS {
        replies.push(computing.run(index).await.0);
    }
    computing.flush().await;
    let stored = files(&folder);
    assert_eq!(stored.len(), OBJECTS);
    let before: u64 = misses(&metrics.render()).values().sum();
    assert_eq!(before, OBJECTS as u64, "there was nothing at first");

    let whole = Inside::start(&model, &folder);
    for (index, reply) in replies.iter().enumerate() {
        let (again, restored, cached) = whole.run(index).await;
        let came = restored.map(|restored| (restored.tokens, restored.outcome));
        assert_eq!((&again, came, cached), (reply, Some((32, "restored")), 32), "prompt {index}");
    }

    damage(&stored, &mut Dice(seed));
    let damaged = Inside::start(&model, &folder);
    for (index, reply) in replies.iter().enumerate() {
        let (again, restored, cached) = damaged.run(index).await;
        let came = restored.map(|restored| (restored.tokens, restored.outcome));
        assert_eq!((&again, came, cached), (reply, Some((0, "missed")), 0), "prompt {index}");
    }
    let mut counted = misses(&metrics.render());
    assert_eq!(counted.remove("absent"), Some(OBJECTS as u64), "all of them from the beginning");
    assert_eq!(counted.values().sum::<u64>(), OBJECTS as u64, "{counted:?}");
    assert!(counted.values().filter(|count| **count > 0).count() > 3, "few kinds of damage: {counted:?}");

    // What was damaged lies aside, and what was computed instead is stored.
    damaged.flush().await;
    let inventory = Inventory::open(&url(&folder), &queue()).expect("a folder can be opened");
    let verified =
        verify(&inventory, None, 4, |segment| panic!("{segment:?}"), |_| ()).await.expect("it is read");
    assert_eq!(verified.good, OBJECTS as u64);
    assert_eq!(files(&folder.join("kv-damaged")).len(), OBJECTS);
}

#[test]
fn whatever_changes_blocks_changes_their_namespace() {
    let _computing = only_me();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let other_directory = tempfile::tempdir().expect("a temporary directory");
    let model = Tiny::default().write(directory.path());
    let other_model = Tiny { intermediate: 128, ..Tiny::default() }.write(other_directory.path());
    let namespace = |model: &Path, change: &dyn Fn(&mut LoadOptions)| {
        let mut options =
            LoadOptions { pool_bytes: 1 << 20, ..LoadOptions::new(WeightsMode::F32, KvDtype::F16) };
        change(&mut options);
        Model::load(model, &options, &|_, _| ()).expect("the model loads").namespace
    };
    let changes: [&dyn Fn(&mut LoadOptions); 6] = [
        &|_| (),
        &|options| options.weights = WeightsMode::AsIs,
        &|options| options.kv_dtype = KvDtype::F32,
        &|options| options.kv_codec = KvCodec::Q8,
        &|options| options.block_tokens = 32,
        &|options| options.kv_any_compute = true,
    ];
    let mut all: Vec<Namespace> = changes.iter().map(|change| namespace(&model, change)).collect();
    all.push(namespace(&other_model, &|_| ()));
    for (i, one) in all.iter().enumerate() {
        assert!(all[..i].iter().all(|other| other != one), "number {i}");
        assert_ne!(one.for_tenant("a"), one.for_tenant("b"));
    }
    // What does not change them: how many there are, and how long a conversation may get.
    let same = namespace(&model, &|options| (options.pool_bytes, options.max_context_tokens) = (2 << 20, 64));
    assert_eq!(same, all[0]);
}
