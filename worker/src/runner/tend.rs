//! What goes on beside the turns, each on a timer of its own and never behind "wait for room": what this worker has is renewed,
//! cancelled turns are heard of, and nobody in the queue is forgotten.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info};
use turnmill_schema::WorkerStatus;

use super::health::Backoff;
use super::{Alarm, QueueHealth};
use crate::broker::Broker;
use crate::lifecycle::Lifecycle;
use crate::observe::metrics;

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
}

impl<B: Broker> Tender<B> {
    /// Starts everything as tasks of `tasks`.
    pub fn start(self, tasks: &TaskTracker) {
        let tender = Arc::new(self);
        tasks.spawn(Arc::clone(&tender).until_stopped("renewing leases", renew));
        tasks.spawn(Arc::clone(&tender).until_stopped("hearing of cancelled turns", hear));
        tasks.spawn(Arc::clone(&tender).until_stopped("promoting agents", promote));
        tasks.spawn(Arc::clone(&tender).until_stopped("reclaiming turns", reclaim));
        tasks.spawn(Arc::clone(&tender).until_stopped("sweeping the queue", sweep));
        tasks.spawn(tender.until_stopped("registering", register));
    }

    fn until_stopped<F: Future<Output = ()> + Send>(
        self: Arc<Self>,
        what: &'static str,
        work: impl FnOnce(Arc<Self>) -> F + Send,
    ) -> impl Future<Output = ()> + Send {
        let (alarm, stop) = (self.alarm.clone(), self.stop.clone());
        let stopped = stop.clone();
        alarm.watch(what, stop, async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = work(self) => {}
            }
        })
    }

    fn every(&self, times_a_lease: u32) -> tokio::time::Interval {
        let mut ticks = tokio::time::interval(self.lease / times_a_lease);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks
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
        let hangs = tender.lifecycle.engine_stalled(Instant::now());
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
            Err(_) => backoff.pause().await,
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
                tokio::time::sleep(look_again).await;
            }
            Err(_) => backoff.pause().await,
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
