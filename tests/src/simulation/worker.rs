//! A worker's process: the product's own parts, put together as `turnmill-worker serve` does, over this simulation's queue, object
//! store and model.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use turnmill_schema::{Name, WorkerStatus};
use turnmill_worker::broker::Broker;
use turnmill_worker::config::{KvCodec, StoreUrl};
use turnmill_worker::engine::{self, EngineChannel, EngineSettings, Pause, SegmentSink, StepLoop};
use turnmill_worker::kv::{Identity, Namespace, SEGMENT_TOKENS};
use turnmill_worker::lifecycle::{HeadroomLimits, Lifecycle};
use turnmill_worker::model::{Dialogue, FormatChoice};
use turnmill_worker::observe::Traces;
use turnmill_worker::runner::{
    Coalescing, Forms, Keeper, Over, Parts, Prompting, QueueHealth, RestoreSettings, Restorer, Retries,
    RunnerSettings, Service,
};
use turnmill_worker::schedule::{Limits, Speculation};
use turnmill_worker::store::{BlockStore, BlockStoreSettings};
use turnmill_worker::surroundings::Surroundings;

use super::executor::{Fate, ProcessId};
use super::flaw::Flawed;
use super::leaks::Gauge;
use super::ledger::Stage;
use super::model::{HashModel, shape};
use super::objects::Objects;
use super::plan::World;
use super::witness::Witness;
use super::words;
use crate::memory_broker::MemorySettings;
use crate::memory_queue::settings;

/// How often a worker looks for agents that wait for a time or a place.
const LOOK_EVERY_MS: u64 = 100;
/// A requeued turn's segments are waited for.
const REQUEUE_WAIT: Duration = Duration::from_millis(500);

/// A worker that lives, to be looked at.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) name: String,
    pub(super) service: Weak<Service<Witness, EngineChannel>>,
    pub(super) broker: Weak<Witness>,
    pub(super) keeper: Option<Weak<Keeper<EngineChannel>>>,
    pub(super) store: Option<BlockStore>,
    pub(super) gauge: Arc<Mutex<Gauge>>,
}

/// What all workers of a world know of the model.
pub(super) fn prompting(world: &World) -> Prompting {
    let identity = Identity {
        weights_digest: [1; 32],
        weights_mode: "hash",
        tokenizer_digest: [2; 32],
        rope_and_window: "none",
        kv_dtype: "f16",
        codec: "f16",
        compute_kind: "sim",
        numerics_revision: 1,
        block_tokens: world.block_tokens as u32,
        segment_tokens: SEGMENT_TOKENS as u32,
        layout_version: 1,
    };
    let dialogue = Dialogue::new(words::template(), FormatChoice::Auto);
    Prompting {
        tokenizer: words::tokenizer(),
        forms: Forms::new(words::tokenizer(), &dialogue),
        dialogue,
        namespace: Namespace::new(&identity),
        context_tokens: world.context_tokens as u32,
        pool_tokens: (world.blocks * world.block_tokens) as u32,
        block_tokens: world.block_tokens,
    }
}

/// A worker's settings in the queue.
pub(super) fn queue_settings(name: &str, world: &World) -> MemorySettings {
    MemorySettings {
        look_every_ms: LOOK_EVERY_MS,
        result_ttl_ms: 10_000_000,
        outcome_ttl_ms: 10_000_000,
        keep_stream_ms: 10_000_000,
        ..settings(name, world.lease_ms, world.limits)
    }
}

/// Starts a worker again whenever it dies or is done, under its name or a new one.
pub(super) async fn supervise(stage: Arc<Stage>, number: usize) {
    let mut life = 0;
    while !stage.is_closing() {
        let name = format!("w{number}.{life}");
        let process = stage.executor.process(fate(&stage));
        let (told, ended) = oneshot::channel();
        let living = live(Arc::clone(&stage), (name.clone(), number), process);
        stage.trace(|| format!("{name} starts"));
        stage.executor.spawn(
            process,
            Box::pin(async move {
                living.await;
                // Nobody waits for it any more where the seed is over.
                let _ = told.send(());
            }),
        );
        if ended.await.is_err() {
            let mut ledger = stage.ledger();
            ledger.forget_worker(&name);
            ledger.crashes += 1;
        }
        stage.live().remove(&number);
        stage.executor.kill(process);
        // The same name comes back for its own tickets at once; another one waits until they idle.
        life += u64::from(stage.dice.chance(600));
        stage.sleep_below(2 * stage.world.lease_ms).await;
    }
}

fn fate(stage: &Stage) -> Fate {
    let faults = stage.world.faults;
    let dies_after = (faults.life > 0).then(|| stage.dice.between(1, 2 * faults.life));
    let stop_ms = stage.dice.below(3 * stage.world.lease_ms);
    let stops_after = (faults.stop > 0).then(|| (stage.dice.between(1, 2 * faults.stop), stop_ms));
    Fate { dies_after, stops_after }
}

/// A process from its start to its end.
async fn live(stage: Arc<Stage>, (name, number): (String, usize), process: ProcessId) {
    let surroundings = stage.executor.surroundings(process);
    let (service, live) = start(&stage, name, &surroundings);
    stage.live().insert(number, live.clone());
    let drain_ms = stage.dice.below(8000);
    let reason = tokio::select! {
        biased;
        over = service.over() => Some(over),
        () = until_drained(&stage, drain_ms) => None,
    };
    if let Some(Over::EngineGone | Over::PartEnded(_)) = reason {
        stage.violation(format!("{} ends on its own: {reason:?}", live.name));
    }
    stage.trace(|| format!("{} drains", live.name));
    let window = Duration::from_millis(if stage.is_closing() { 60_000 } else { stage.dice.below(3000) });
    let hurry_ms = if stage.fails(200) { stage.dice.below(500) } else { u64::MAX / 2_000_000 };
    service.stop(window, stage.clock.sleep(hurry_ms)).await;
    if stage.is_closing() {
        super::leaks::after_drain(&stage, &live);
    }
    drop(service);
    let Live { name, broker, keeper, store, .. } = live;
    drop(store);
    stage.live().remove(&number);
    if stage.is_closing() {
        super::leaks::after_exit(&stage, (&name, process), (&broker, keeper.as_ref())).await;
    }
    stage.trace(|| format!("{name} exits"));
}

async fn until_drained(stage: &Stage, drain_ms: u64) {
    stage.clock.sleep(drain_ms).await;
    while !stage.is_hostile() && !stage.is_closing() {
        stage.clock.sleep(50).await;
    }
}

/// Puts a worker together, as `app::start` does.
fn start(
    stage: &Arc<Stage>,
    name: String,
    surroundings: &Surroundings,
) -> (Arc<Service<Witness, EngineChannel>>, Live) {
    let world = &stage.world;
    let stall = Duration::from_millis(world.stall_ms);
    let limits = HeadroomLimits { low: 0.05, high: 0.15 };
    let lifecycle = Arc::new(Lifecycle::new(limits, stall, surroundings.now()));
    let link = Arc::new(Flawed { stage: Arc::clone(stage), worker: name.clone() });
    let handle = stage.queue.worker_over(queue_settings(&name, world), link);
    let broker = Arc::new(Witness::new(Arc::clone(stage), name.clone(), handle));
    let store = world.has_store.then(|| open_store(stage, surroundings));
    let sink = store.clone().map(|store| Arc::new(store) as Arc<dyn SegmentSink>);
    let rows = Arc::new(AtomicUsize::new(0));
    let model = HashModel::new(Arc::clone(stage), world.blocks, Arc::clone(&rows));
    let (engine, step_loop) =
        engine::new(model, engine_settings(world), sink, Arc::clone(&lifecycle), surroundings.clone());
    let gauge = Arc::new(Mutex::new(Gauge::default()));
    surroundings.spawn(drive(Arc::clone(stage), step_loop, rows, Arc::clone(&gauge)));
    let keeper = store.clone().map(|store| Arc::new(keeper(world, store, engine.clone(), surroundings)));
    let parts = Parts {
        broker: Arc::clone(&broker),
        engine,
        prompting: Arc::clone(&stage.prompting),
        payloads: None,
        keeper: keeper.clone(),
        health: QueueHealth::new(Arc::clone(&lifecycle), surroundings.clone()),
        lifecycle,
        traces: Traces::off(),
        coalescing: Coalescing::new(Duration::from_millis(world.flush_ms)),
        settings: RunnerSettings {
            worker: name.clone(),
            retries: Retries { base: Duration::from_millis(20), max: Duration::from_millis(500) },
            log_content: false,
        },
        max_turns: world.sequences + world.ahead,
        lease: Duration::from_millis(world.lease_ms),
        about: WorkerStatus { name: name.clone(), ..WorkerStatus::default() },
        surroundings: surroundings.clone(),
    };
    let service = Arc::new(Service::start(parts));
    let live = Live {
        name,
        service: Arc::downgrade(&service),
        broker: Arc::downgrade(&broker),
        keeper: keeper.as_ref().map(Arc::downgrade),
        store,
        gauge,
    };
    (service, live)
}

fn open_store(stage: &Arc<Stage>, surroundings: &Surroundings) -> BlockStore {
    let world = &stage.world;
    let settings = BlockStoreSettings {
        url: StoreUrl::from("memory:///".to_owned()),
        queue: Name::new("q").expect("a name"),
        shape: shape(world.block_tokens),
        codec: KvCodec::F16,
        keys: None,
        save_queue_bytes: world.save_queue_bytes,
        host_cache_bytes: world.host_cache_bytes,
        parallel: 2,
        timeout: Duration::from_millis(world.object_ms),
        folder_bytes: None,
    };
    let objects = Arc::new(Objects::new(Arc::clone(stage)));
    BlockStore::over(objects, settings, surroundings.clone()).expect("there are no keys to be read")
}

fn engine_settings(world: &World) -> EngineSettings {
    EngineSettings {
        limits: Limits {
            max_sequences: world.sequences,
            batch_tokens: world.batch_tokens,
            max_context_tokens: world.context_tokens as u32,
        },
        blocks: world.blocks as u32,
        block_tokens: world.block_tokens as u32,
        transfer_bytes: world.transfer_bytes,
        offload_bytes: world.offload_bytes,
        speculation: world.speculates.then(|| Speculation::new(3)),
    }
}

fn keeper(
    world: &World,
    store: BlockStore,
    engine: EngineChannel,
    surroundings: &Surroundings,
) -> Keeper<EngineChannel> {
    let restore = RestoreSettings {
        block_tokens: world.block_tokens,
        parallel: 2,
        base: Duration::from_millis(100),
        host_cache_bytes: world.host_cache_bytes,
        choose: world.chooses,
    };
    let restorer = Restorer::new(store, engine, restore, surroundings.clone());
    let persist_wait = Duration::from_millis(world.persist_wait_ms);
    Keeper::new(restorer, persist_wait, REQUEUE_WAIT, surroundings.clone())
}

/// The engine's thread.
async fn drive(
    stage: Arc<Stage>,
    mut step_loop: StepLoop<HashModel>,
    rows: Arc<AtomicUsize>,
    gauge: Arc<Mutex<Gauge>>,
) {
    loop {
        let pause = step_loop.pause();
        gauge.lock().expect("not poisoned").look(&step_loop, pause);
        match pause {
            Some(Pause::Command) if !step_loop.wait().await => return,
            Some(Pause::Room) => stage.clock.sleep(1).await,
            Some(Pause::Command) | None => {}
        }
        if stage.fails(stage.world.faults.hang) {
            stage.sleep_below(2 * stage.world.stall_ms).await;
        }
        step_loop.round();
        if let Err(what) = step_loop.scheduler().check_integrity() {
            stage.violation(format!("the pool's books: {what}"));
        }
        let rows = rows.swap(0, Ordering::Relaxed) as u64;
        if rows > 0 {
            stage.clock.sleep_us(stage.world.step_us + rows * stage.world.row_us).await;
        }
    }
}

/// Whether a worker has nothing in its hands.
pub(super) fn is_idle(live: &Live) -> bool {
    live.broker.upgrade().is_none_or(|broker| broker.leases() == 0)
}
