//! What goes on beside the turns, each on a timer of its own and never behind "wait for room": what this worker has is renewed,
//! cancelled turns are heard of, and nobody in the queue is forgotten.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info};
use turnmill_schema::WorkerStatus;

use super::health::Backoff;
use super::{Alarm, QueueHealth};
use crate::broker::Broker;
use crate::lifecycle::Lifecycle;
use crate::observe::metrics;
use crate::surroundings::{Surroundings, Ticks};

/// Looks for silent workers in one lease.
const RECLAIMS_A_LEASE: u32 = 4;
/// Sweeps in one lease; another worker's count too.
const SWEEPS_A_LEASE: u32 = 2;
/// Renewals in one lease. Two may be lost before the lease is.
const RENEWALS_A_LEASE: u32 = 3;

/// Looks after the queue and this worker's part of it.
pub struct Tender<B> {
    /// The queue.
    pub broker: Arc<B>,
    /// Whether the queue answers.
    pub health: QueueHealth,
    /// How the worker does.
    pub lifecycle: Arc<Lifecycle>,
    /// A worker silent for this long loses its turns.
    pub lease: Duration,
    /// What never changes of what the registry says of this worker.
    pub about: WorkerStatus,
    /// Cancelled when an operator orders the worker to drain.
    pub drain: CancellationToken,
    /// Ends everything here.
    pub stop: CancellationToken,
    /// Raised if anything here ends before.
    pub alarm: Alarm,
    /// Where the worker runs.
    pub surroundings: Surroundings,
}

impl<B: Broker> Tender<B> {
    /// Starts everything as tasks of `tasks`.
    pub fn start(self, tasks: &TaskTracker) {
        let tender = Arc::new(self);
        tender.until_stopped(tasks, "renewing leases", renew);
        tender.until_stopped(tasks, "hearing of cancelled turns", hear);
        tender.until_stopped(tasks, "promoting agents", promote);
        tender.until_stopped(tasks, "reclaiming turns", reclaim);
        tender.until_stopped(tasks, "sweeping the queue", sweep);
        tender.until_stopped(tasks, "registering", register);
    }

    fn until_stopped<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        tasks: &TaskTracker,
        what: &'static str,
        work: impl FnOnce(Arc<Self>) -> F,
    ) {
        let (work, stop) = (work(Arc::clone(self)), self.stop.clone());
        let work = self.alarm.watch(what, self.stop.clone(), async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = work => {}
            }
        });
        self.surroundings.spawn(tasks.track_future(work));
    }

    fn every(&self, times_a_lease: u32) -> Ticks {
        self.surroundings.ticks(self.lease / times_a_lease)
    }

    fn status(&self) -> WorkerStatus {
        WorkerStatus {
            state: self.lifecycle.phase().as_str().to_owned(),
            running: self.broker.leases() as u64,
            headroom_percent: (self.lifecycle.headroom() * 100.0).round() as u64,
            beat_ms: (self.lease / RENEWALS_A_LEASE).as_millis() as u64,
            ..self.about.clone()
        }
    }
}

/// Keeps what this worker has. A hung engine's is left to other workers.
async fn renew<B: Broker>(tender: Arc<Tender<B>>) {
    let mut ticks = tender.every(RENEWALS_A_LEASE);
    let mut call = tender.health.repeated("renew", "no lease was renewed; one that runs out is lost");
    let mut hung = false;
    loop {
        ticks.tick().await;
        let hangs = tender.lifecycle.engine_stalled(tender.surroundings.now());
        if hangs && !hung {
            error!("the engine has work and makes no steps; its turns are left to other workers");
        }
        hung = hangs;
        if !hangs {
            let _ = call.note(tender.broker.renew().await);
        }
    }
}

/// Drops running turns that somebody cancelled, as soon as the queue says so.
async fn hear<B: Broker>(tender: Arc<Tender<B>>) {
    let mut backoff = Backoff::default();
    let mut call = tender.health.repeated("hear", "cancelled turns are found by renewals only");
    loop {
        match call.note_optional(tender.broker.hear().await) {
            Ok(()) => backoff = Backoff::default(),
            Err(_) => backoff.pause(&tender.surroundings).await,
        }
    }
}

/// Makes agents runnable that waited for a time or a place.
async fn promote<B: Broker>(tender: Arc<Tender<B>>) {
    let mut backoff = Backoff::default();
    let mut call = tender.health.repeated("promote", "agents that wait for a time or a place go on waiting");
    loop {
        match call.note(tender.broker.promote().await) {
            Ok(look_again) => {
                backoff = Backoff::default();
                tender.surroundings.sleep(look_again).await;
            }
            Err(_) => backoff.pause(&tender.surroundings).await,
        }
    }
}

/// Makes agents of silent workers runnable again.
async fn reclaim<B: Broker>(tender: Arc<Tender<B>>) {
    let mut ticks = tender.every(RECLAIMS_A_LEASE);
    let mut call = tender.health.repeated("reclaim", "turns of silent workers go on waiting");
    loop {
        ticks.tick().await;
        if let Ok(count) = call.note(tender.broker.reclaim().await) {
            metrics::turns_reclaimed(count as usize);
        }
    }
}

/// Keeps the queue whole and small.
async fn sweep<B: Broker>(tender: Arc<Tender<B>>) {
    let mut ticks = tender.every(SWEEPS_A_LEASE);
    let mut call = tender.health.repeated("sweep", "the queue was not swept");
    loop {
        ticks.tick().await;
        let _ = call.note(tender.broker.sweep().await);
    }
}

/// Tells the queue who this worker is and how it does, and hears what an operator wants of it.
async fn register<B: Broker>(tender: Arc<Tender<B>>) {
    let mut ticks = tender.every(RENEWALS_A_LEASE);
    let mut call = tender.health.repeated("register", "this worker is not listed");
    loop {
        ticks.tick().await;
        let registered = call.note(tender.broker.register(&tender.status()).await);
        if registered.is_ok_and(|orders| orders.drain) && !tender.drain.is_cancelled() {
            info!("an operator ordered this worker to drain");
            tender.drain.cancel();
        }
    }
}
