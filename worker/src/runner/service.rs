//! A worker that serves a queue: everything of it that runs, from its first claim on, whatever queue and engine it has.
//!
//! Order of stopping: no more claims, running turns finish within the drain window, the rest is requeued at the head of its agents'
//! backlogs, and the registry forgets the worker last.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};
use turnmill_schema::WorkerStatus;

use super::fitness::Fitness;
use super::{Alarm, Coalescing, Intake, Keeper, Prompting, QueueHealth, Runner, RunnerSettings, Tender};
use crate::broker::Broker;
use crate::engine::EngineHandle;
use crate::lifecycle::{Lifecycle, Phase};
use crate::observe::Traces;
use crate::store::Payloads;
use crate::surroundings::Surroundings;

/// After the drain window: time to publish last tokens and requeue turns.
const REQUEUE: Duration = Duration::from_secs(5);
/// Of that: time to store what the next worker goes on from.
pub const REQUEUE_PERSIST: Duration = Duration::from_secs(3);
/// After the last turn: time to store what is on its way, and to note it.
const FLUSH: Duration = Duration::from_secs(5);
/// Once nothing runs: time for the background's tasks to end.
const BACKGROUND: Duration = Duration::from_secs(1);
/// At the very end: time to take this worker out of the registry.
const LEAVE: Duration = Duration::from_secs(1);

/// What a worker is made of.
pub struct Parts<B, E> {
    /// The queue.
    pub broker: Arc<B>,
    /// The engine.
    pub engine: E,
    /// The model's texts.
    pub prompting: Arc<Prompting>,
    /// Where turns too large for Redis are.
    pub payloads: Option<Payloads>,
    /// Where K and V are kept outside the pool.
    pub keeper: Option<Arc<Keeper<E>>>,
    /// How the worker does.
    pub lifecycle: Arc<Lifecycle>,
    /// Whether the queue answers.
    pub health: QueueHealth,
    /// Makes turns' spans.
    pub traces: Traces,
    /// How long tokens wait for others.
    pub coalescing: Coalescing,
    /// What its runner is told.
    pub settings: RunnerSettings,
    /// Turns that it has at a time, at most.
    pub max_turns: usize,
    /// A worker silent for this long loses its turns.
    pub lease: Duration,
    /// What never changes of what the registry says of this worker.
    pub about: WorkerStatus,
    /// Where it runs.
    pub surroundings: Surroundings,
}

/// A worker that claims turns.
pub struct Service<B, E> {
    broker: Arc<B>,
    engine: E,
    keeper: Option<Arc<Keeper<E>>>,
    lifecycle: Arc<Lifecycle>,
    surroundings: Surroundings,
    turns: TaskTracker,
    /// Renewal and the like: they outlive the turns.
    background: TaskTracker,
    room: Arc<Semaphore>,
    max_turns: usize,
    stop_claiming: CancellationToken,
    requeue: CancellationToken,
    stop_background: CancellationToken,
    /// Cancelled when an operator orders a drain.
    drain: CancellationToken,
    /// Raised if a part ends that should go on.
    alarm: Alarm,
}

/// Why a worker is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// An operator ordered it to drain.
    Drained,
    /// Its engine has ended.
    EngineGone,
    /// A part ended that should go on; what it did.
    PartEnded(&'static str),
}

impl<B: Broker, E: EngineHandle> Service<B, E> {
    /// Ready, and claiming.
    pub fn start(parts: Parts<B, E>) -> Self {
        let Parts { broker, engine, keeper, lifecycle, health, surroundings, .. } = parts;
        let (stop_claiming, requeue) = (CancellationToken::new(), CancellationToken::new());
        let runner = Arc::new(Runner {
            broker: broker.clone(),
            engine: engine.clone(),
            prompting: parts.prompting,
            payloads: parts.payloads,
            keeper: keeper.clone(),
            health: health.clone(),
            lifecycle: lifecycle.clone(),
            fitness: Fitness::default(),
            coalescing: Arc::new(parts.coalescing),
            traces: parts.traces,
            settings: parts.settings,
            stop_claiming: stop_claiming.clone(),
            requeue: requeue.clone(),
            sequences: AtomicU64::new(0),
            surroundings: surroundings.clone(),
        });
        let turns = TaskTracker::new();
        let intake =
            Intake::new(runner, lifecycle.clone(), parts.max_turns, turns.clone(), stop_claiming.clone());
        let service = Self {
            broker: broker.clone(),
            engine,
            keeper,
            lifecycle: lifecycle.clone(),
            surroundings: surroundings.clone(),
            turns,
            background: TaskTracker::new(),
            room: intake.room(),
            max_turns: parts.max_turns,
            stop_claiming,
            requeue,
            stop_background: CancellationToken::new(),
            drain: CancellationToken::new(),
            alarm: Alarm::default(),
        };
        let tender = Tender {
            broker,
            health,
            lifecycle,
            lease: parts.lease,
            about: parts.about,
            drain: service.drain.clone(),
            stop: service.stop_background.clone(),
            alarm: service.alarm.clone(),
            surroundings,
        };
        // Before anything tells the queue about this worker, or takes from it.
        service.lifecycle.advance(Phase::Ready);
        let claim = service.alarm.watch("claiming turns", service.stop_claiming.clone(), intake.run());
        service.surroundings.spawn(service.turns.track_future(claim));
        tender.start(&service.background);
        service
    }

    /// Runs `work` as long as the worker does; `what` it does is told if it ends before its token says so.
    pub fn beside<F: Future<Output = ()> + Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(CancellationToken) -> F,
    ) {
        let stop = self.stop_background.clone();
        let work = self.alarm.watch(what, stop.clone(), work(stop));
        self.surroundings.spawn(self.background.track_future(work));
    }

    /// Waits until the worker has to stop, for a reason of its own.
    pub async fn over(&self) -> Over {
        tokio::select! {
            biased;
            what = self.alarm.raised() => Over::PartEnded(what),
            () = self.engine.ended() => Over::EngineGone,
            () = self.drain.cancelled() => Over::Drained,
        }
    }

    /// Drains: turns finish within `window` or until `hurry` ends, then what is left is requeued.
    pub async fn stop(&self, window: Duration, hurry: impl Future<Output = ()>) {
        self.lifecycle.advance(Phase::Draining);
        self.stop_claiming.cancel();
        self.turns.close();
        tokio::select! {
            biased;
            () = self.turns.wait() => {}
            () = hurry => info!("a second signal: what runs is requeued now"),
            () = self.surroundings.sleep(window) => {}
        }
        if let Some(keeper) = &self.keeper {
            keeper.hurry();
        }
        self.requeue.cancel();
        if self.surroundings.timeout(REQUEUE, self.turns.wait()).await.is_err() {
            error!("not every turn could be requeued; other workers take them after a lease");
        }
        if let Some(keeper) = &self.keeper {
            keeper.flush(FLUSH).await;
        }
        self.stop_background.cancel();
        self.background.close();
        if self.surroundings.timeout(BACKGROUND, self.background.wait()).await.is_err() {
            warn!("a background task does not end; the process ends without waiting for it");
        }
        // A server that does not answer forgets this worker by itself.
        match self.surroundings.timeout(LEAVE, self.broker.leave()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "this worker is listed until its entry runs out"),
            Err(_) => debug!("this worker is listed until its entry runs out"),
        }
        self.lifecycle.advance(Phase::Stopped);
    }

    /// How many places for turns are taken.
    pub fn places_taken(&self) -> usize {
        self.max_turns - self.room.available_permits()
    }
}
