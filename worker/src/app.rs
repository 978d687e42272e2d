//! The one place that knows every concrete type: puts a worker together, runs it, takes it apart.
//!
//! Order of starting: what can be refused cheaply first (the port, the queue), then the model, then claiming.
//! Order of stopping: turns and queue first, as [`Service`] does it; the server goes last.

#![allow(
    clippy::disallowed_methods,
    reason = "puts a worker together on a machine; what it puts together takes the surroundings"
)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;
use tokio::task::JoinError;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use turnmill_redis::Fault;
use turnmill_schema::WorkerStatus;
use turnmill_telemetry::logs::{self, LogControl};
use turnmill_telemetry::probes::{self, ProbeServer, ProbeState};
use turnmill_telemetry::signals::Signals;
use turnmill_telemetry::{TelemetryError, descriptors};

use crate::PROGRAM;
use crate::broker::redis::{BrokerSettings, RedisBroker};
use crate::broker::{Broker, BrokerError};
use crate::config::{AutoByteSize, ConfigError, KvDtype, Settings, StoreSetting};
use crate::engine::{self, EngineChannel, EngineGone, EngineSettings, SegmentSink};
use crate::hub::{self, Fetching, HubError};
use crate::kv::{BlockShape, SEGMENT_TOKENS};
use crate::lifecycle::{HeadroomLimits, Lifecycle};
use crate::model::{Checkpoint, EngineError, LoadOptions, Model, ModelError};
use crate::observe::{CATALOGUE, Probes, QueueGauges, Traces};
use crate::runner::{
    Backoff, Coalescing, Forms, Keeper, Over, Parts, Prompting, QueueHealth, REQUEUE_PERSIST,
    RestoreSettings, Restorer, Retries, RunnerSettings, Service, trim,
};
use crate::schedule::{Limits, Speculation};
use crate::store::{BlockStore, BlockStoreSettings, Payloads, StoreError};
use crate::surroundings::Surroundings;

/// Time between two looks at the queue's counts.
const COUNTS_EVERY: Duration = Duration::from_secs(2);

/// Why a worker cannot start or has to stop.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The queue.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The object store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A model that is not on this machine.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// What computes in a model's place, if that is not a model.
    #[error("{0}")]
    Engine(Box<dyn std::error::Error + Send + Sync>),
    /// The first steps.
    #[error(transparent)]
    WarmUp(#[from] EngineError),
    /// The port, metrics, logs or traces.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The engine's thread ended.
    #[error(transparent)]
    EngineGone(#[from] EngineGone),
    /// The operating system.
    #[error("the system refused {what}: {source}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// Its words.
        source: std::io::Error,
    },
    /// A part of the worker ended that should go on.
    #[error("the worker's task for {what} ended by itself: a bug; restart the worker and report its log")]
    PartEnded {
        /// What it did.
        what: &'static str,
    },
    /// A task of the worker's own panicked.
    #[error("a part of the worker panicked: {0}; please report the log")]
    Panicked(#[from] JoinError),
}

/// What goes on before a worker is ready, to be shown to people who wait.
#[derive(Clone, Copy, Debug)]
pub enum Loading<'a> {
    /// A file of the model is downloaded.
    Fetching(Fetching<'a>),
    /// Layers of the model are loaded.
    Layers {
        /// Layers loaded so far.
        done: usize,
        /// Layers in the model.
        all: usize,
    },
}

/// Options of loading a model, from settings.
pub fn load_options(settings: &Settings) -> LoadOptions {
    LoadOptions {
        device: settings.device,
        weights: settings.weights,
        kv_dtype: settings.kv_dtype,
        block_tokens: settings.block_tokens as usize,
        pool_bytes: match settings.pool_bytes {
            AutoByteSize::Auto => 0,
            AutoByteSize::Size(size) => size.bytes() as usize,
        },
        max_context_tokens: settings.max_context_tokens as usize,
        kv_codec: settings.kv_codec,
        kv_any_compute: settings.kv_any_compute,
        chat_template: settings.chat_template.clone(),
        tool_format: settings.tool_format,
    }
}

/// What the queue's adapter is told, from settings.
fn broker_settings(settings: &Settings) -> BrokerSettings {
    BrokerSettings {
        redis: settings.redis(),
        queue: settings.queue.clone(),
        shards: settings.shards,
        worker: settings.worker_name.consumer_id(),
        lease_ms: settings.lease_ms,
        max_attempts: settings.max_attempts,
        result_ttl_ms: settings.result_ttl_ms,
        outcome_ttl_ms: settings.outcome_ttl_ms,
        keep_stream_ms: settings.keep_stream_ms.min(settings.result_ttl_ms),
        retained_bytes: settings.retained_bytes.bytes(),
        dead_bytes: settings.dead_bytes.bytes(),
        tenant_max_running: settings.tenant_max_running,
        max_continues: settings.max_continues,
    }
}

/// Where turns too large for Redis are, from settings.
pub fn open_payloads(settings: &Settings) -> Result<Option<Payloads>, StoreError> {
    settings.store.named().map(|url| Payloads::open(url, &settings.queue)).transpose()
}

/// Where K and V of blocks of `shape` are kept, from settings; none if they are not to be kept, or have no place.
pub fn open_blocks(settings: &Settings, shape: BlockShape) -> Result<Option<BlockStore>, StoreError> {
    let Some(url) = settings.store.for_kv() else {
        if settings.store == StoreSetting::Auto {
            warn!(
                "there is no folder for this user's caches, so K and V are not kept; set store to keep them"
            );
        }
        return Ok(None);
    };
    let segment_bytes = SEGMENT_TOKENS / shape.block_tokens.clamp(1, SEGMENT_TOKENS) * shape.block_bytes();
    if segment_bytes as u64 > settings.save_queue_bytes.bytes() {
        warn!(
            segment_bytes,
            "a full segment does not fit save_queue_bytes, so none is kept; allow twice as much or more"
        );
    }
    if settings.kv_dtype != KvDtype::F16 {
        warn!(
            "K and V come back rounded, and words may differ from computed ones: only a pool in f16 is kept exactly"
        );
    }
    let store = BlockStore::open(BlockStoreSettings {
        url,
        queue: settings.queue.clone(),
        shape,
        codec: settings.kv_codec,
        keys: settings.kv_keys.clone(),
        save_queue_bytes: settings.save_queue_bytes.bytes() as usize,
        host_cache_bytes: settings.host_cache_bytes.bytes() as usize,
        parallel: settings.store_parallel as usize,
        timeout: Duration::from_millis(settings.store_timeout_ms),
        folder_bytes: Some(settings.store_max_bytes.bytes()).filter(|limit| *limit > 0),
    })?;
    Ok(Some(store))
}

/// Extent and limits of the engine over a pool of `blocks` blocks, from settings.
fn engine_settings(settings: &Settings, model: &Model) -> EngineSettings {
    let speculates = settings.speculation.looks_up(model.compute_kind.starts_with("cpu"));
    EngineSettings {
        limits: Limits {
            max_sequences: settings.max_sequences as usize,
            batch_tokens: settings.batch_tokens as usize,
            max_context_tokens: model.context_tokens as u32,
        },
        blocks: model.blocks as u32,
        block_tokens: settings.block_tokens,
        transfer_bytes: settings.transfer_bytes.bytes() as usize,
        offload_bytes: settings.offload_bytes.bytes() as usize,
        speculation: speculates.then(|| Speculation::new(settings.speculation_tokens as usize)),
    }
}

fn keeper(
    settings: &Settings,
    store: BlockStore,
    engine: EngineChannel,
    surroundings: Surroundings,
) -> Keeper<EngineChannel> {
    let restore = RestoreSettings {
        block_tokens: settings.block_tokens as usize,
        parallel: settings.store_parallel as usize,
        base: Duration::from_millis(settings.restore_base_ms),
        host_cache_bytes: settings.host_cache_bytes.bytes() as usize,
        choose: true,
    };
    let persist_wait = Duration::from_millis(settings.persist_wait_ms);
    let restorer = Restorer::new(store, engine, restore, surroundings.clone());
    Keeper::new(restorer, persist_wait, REQUEUE_PERSIST, surroundings)
}

/// Runs a worker until a signal or a failure ends it. `progress` is told how far the model is.
pub async fn serve(
    settings: Settings,
    progress: impl Fn(Loading<'_>) + Send + 'static,
) -> Result<(), AppError> {
    serve_with(settings, move |settings| load_model(settings, &progress)).await
}

/// As [`serve`], with the model that `load` gives; something else may compute in its place. `load` runs on a thread where it may take its time.
pub async fn serve_with(
    settings: Settings,
    load: impl FnOnce(&Settings) -> Result<Model, AppError> + Send + 'static,
) -> Result<(), AppError> {
    let logs = logs::init(PROGRAM, settings.log_format, &settings.log)?;
    let mut signals =
        Signals::listen().map_err(|source| AppError::System { what: "signal handlers", source })?;
    let http = Http::start(&settings, logs)?;
    let traces = Traces::start(&settings)?;
    let outcome = tokio::select! {
        outcome = start(&settings, &http.answers, traces.clone(), load) => outcome,
        // Nothing is claimed yet, so there is nothing to drain.
        signal = signals.stop() => {
            info!(signal, "stopped before it was ready");
            return Ok(());
        }
    };
    let service = outcome?;
    info!(addr = %http.addr, queue = %settings.queue, "ready");
    let ended = tokio::select! {
        signal = signals.stop() => {
            info!(signal, "told to stop");
            Ok(())
        }
        over = service.over() => match over {
            Over::Drained => Ok(()),
            Over::EngineGone => Err(AppError::from(EngineGone)),
            Over::PartEnded(what) => Err(AppError::PartEnded { what }),
        },
    };
    info!(window_ms = settings.drain_ms, "draining: running turns finish, nothing more is claimed");
    let window = if ended.is_ok() { Duration::from_millis(settings.drain_ms) } else { Duration::ZERO };
    service.stop(window, signals.hurry()).await;
    tokio::task::spawn_blocking(move || traces.shutdown()).await?;
    http.stop().await?;
    info!("stopped");
    ended
}

/// The server for probes and metrics.
struct Http {
    answers: Arc<Probes>,
    /// Where it listens: the port that the system chose, if the setting leaves it to the system.
    addr: SocketAddr,
    server: ProbeServer,
}

impl Http {
    fn start(settings: &Settings, logs: LogControl) -> Result<Self, AppError> {
        let descriptors = descriptors::raise_limit();
        let listener = probes::bind(settings.http_addr)?;
        let addr = listener
            .local_addr()
            .map_err(|source| TelemetryError::Bind { addr: settings.http_addr, source })?;
        let limits = HeadroomLimits { low: settings.headroom_low, high: settings.headroom_high };
        let stall = Duration::from_millis(settings.stall_ms);
        let answers = Arc::new(Probes {
            lifecycle: Arc::new(Lifecycle::new(limits, stall, Instant::now())),
            queue: Arc::new(QueueGauges::new(3 * COUNTS_EVERY)),
        });
        let metrics = if settings.no_metrics { CATALOGUE.unrecorded()? } else { CATALOGUE.install()? };
        let state = ProbeState { program: PROGRAM, answers: answers.clone(), metrics, logs };
        let server = probes::serve(listener, state, descriptors)?;
        info!(%addr, "listening for probes and scrapes");
        Ok(Self { answers, addr, server })
    }

    async fn stop(self) -> Result<(), AppError> {
        Ok(tokio::task::spawn_blocking(move || self.server.stop()).await?)
    }
}

/// Puts a worker together, and lets it claim turns.
async fn start(
    settings: &Settings,
    answers: &Probes,
    traces: Traces,
    load: impl FnOnce(&Settings) -> Result<Model, AppError> + Send + 'static,
) -> Result<Service<RedisBroker, EngineChannel>, AppError> {
    let (lifecycle, surroundings) = (answers.lifecycle.clone(), Surroundings::on(Handle::current()));
    let payloads = open_payloads(settings)?;
    let broker = Arc::new(connect(settings, &lifecycle, &surroundings).await?);
    let health = QueueHealth::new(lifecycle.clone(), surroundings.clone());
    let own = settings.clone();
    let model = tokio::task::spawn_blocking(move || load(&own)).await??;
    let pool_tokens = model.blocks as u32 * settings.block_tokens;
    let store = open_blocks(settings, model.block_shape)?;
    if let Some(store) = &store {
        let lifecycle = lifecycle.clone();
        lifecycle.set_store_trouble(None);
        store.on_trouble(move |trouble| lifecycle.set_store_trouble(trouble));
    }
    let folder = store.clone().filter(|store| store.is_folder());
    let sink = store.clone().map(|store| Arc::new(store) as Arc<dyn SegmentSink>);
    let engine_settings = engine_settings(settings, &model);
    let (engine, _thread) =
        engine::spawn(model.engine, engine_settings, sink, lifecycle.clone(), surroundings.clone())
            .map_err(|source| AppError::System { what: "the engine's thread", source })?;
    // Without a store nothing comes near by being claimed early.
    let ahead = if store.is_some() { settings.look_ahead } else { 0 };
    let keeper = store.map(|store| Arc::new(keeper(settings, store, engine.clone(), surroundings.clone())));
    let service = Service::start(Parts {
        broker: broker.clone(),
        engine,
        prompting: Arc::new(Prompting {
            forms: Forms::new(model.tokenizer.clone(), &model.dialogue),
            tokenizer: model.tokenizer,
            dialogue: model.dialogue,
            namespace: model.namespace,
            context_tokens: model.context_tokens as u32,
            pool_tokens,
            block_tokens: settings.block_tokens as usize,
        }),
        payloads,
        keeper,
        lifecycle,
        health,
        traces,
        coalescing: Coalescing::new(Duration::from_millis(settings.flush_ms)),
        settings: RunnerSettings {
            worker: settings.worker_name.name().to_string(),
            retries: Retries {
                base: Duration::from_millis(settings.retry_base_ms),
                max: Duration::from_millis(settings.retry_max_ms),
            },
            log_content: settings.log_content,
        },
        max_turns: (settings.max_sequences + ahead) as usize,
        lease: Duration::from_millis(settings.lease_ms),
        about: about(settings)?,
        surroundings: surroundings.clone(),
    });
    if let Some(store) = folder {
        service.beside("trimming the folder with K and V", |stop| trim(store, surroundings, stop));
    }
    service.beside("counting the queue", |stop| count(broker, answers.queue.clone(), stop));
    Ok(service)
}

/// Connects to the queue. A server that is loading its data, or is about to become the primary, is waited for.
async fn connect(
    settings: &Settings,
    lifecycle: &Lifecycle,
    surroundings: &Surroundings,
) -> Result<RedisBroker, AppError> {
    let mut backoff = Backoff::default();
    loop {
        match RedisBroker::connect(broker_settings(settings)).await {
            Err(error @ BrokerError::Queue(Fault::Stale { .. })) => {
                if backoff.is_fresh() {
                    warn!(%error, "waiting for Redis");
                }
                lifecycle.set_redis_trouble(error.to_string(), Instant::now());
                backoff.pause(surroundings).await;
            }
            connected => return Ok(connected?),
        }
    }
}

/// What the registry says of this worker as long as it runs.
fn about(settings: &Settings) -> Result<WorkerStatus, AppError> {
    let model = settings.model_path()?.file_stem().unwrap_or_default();
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(WorkerStatus {
        name: settings.worker_name.name().to_string(),
        model: model.to_string_lossy().into_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_ms: started.as_millis() as u64,
        capacity: u64::from(settings.max_sequences),
        ..WorkerStatus::default()
    })
}

/// Where the model is on this machine: fetched if the settings name one of the hub, and the one whose checksum they name.
pub fn find_model(settings: &Settings, progress: &dyn Fn(Loading<'_>)) -> Result<PathBuf, AppError> {
    let path = hub::resolve(settings.model_path()?, &|fetching| progress(Loading::Fetching(fetching)))?;
    if let Some(digest) = &settings.model_sha256 {
        Checkpoint::open(&path)?.verify_sha256(digest.as_str())?;
    }
    Ok(path)
}

fn load_model(settings: &Settings, progress: &dyn Fn(Loading<'_>)) -> Result<Model, AppError> {
    let options = load_options(settings);
    info!(model = %settings.model_path()?.display(), weights = ?options.weights, "loading");
    let path = find_model(settings, progress)?;
    let mut model = Model::load(&path, &options, &|done, all| progress(Loading::Layers { done, all }))?;
    model.warm_up()?;
    Ok(model)
}

/// Keeps the queue's gauges fresh; while the queue cannot be asked they are absent.
async fn count<B: Broker>(broker: Arc<B>, gauges: Arc<QueueGauges>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(COUNTS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let counts = tokio::select! {
            () = stop.cancelled() => return,
            counts = broker.counts() => counts,
        };
        match counts {
            Ok(counts) => gauges.set(counts, Instant::now()),
            Err(_) => gauges.clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::double::Double;

    #[tokio::test]
    async fn a_count_that_is_never_answered_does_not_keep_the_worker_from_stopping() {
        let queue = Double::default();
        let (asked, stop) = (queue.asked.clone(), CancellationToken::new());
        let gauges = Arc::new(QueueGauges::new(COUNTS_EVERY));
        let counting = tokio::spawn(count(Arc::new(queue), gauges, stop.clone()));
        asked.notified().await;
        stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(60), counting).await;
        ended.expect("it stops").expect("it does not panic");
    }
}
