//! What goes on beside the turns, each on a timer of its own and never behind "wait for room": what this worker has is renewed,
//! cancelled turns are heard of, and nobody in the queue is forgotten.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info};
use turnmill_schema::WorkerStatus;

use super::Link;
use super::link::Backoff;
use crate::broker::{Broker, BrokerError};
use crate::lifecycle::Lifecycle;
use crate::observe::metrics;

/// Looks for silent workers in one lease.
const RECLAIMS_A_LEASE: u32 = 4;
/// Sweeps in one lease; another worker's count too.
const SWEEPS_A_LEASE: u32 = 2;
/// Renewals in one lease. Two may be lost before the lease is.
pub const RENEWALS_A_LEASE: u32 = 3;

/// Looks after the queue and this worker's part of it.
pub struct Tender<B> {
    /// The queue.
    pub broker: Arc<B>,
    /// Whether the queue answers.
    pub link: Link,
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
}

impl<B: Broker> Tender<B> {
    /// Starts everything as tasks of `tasks`.
    pub fn start(self, tasks: &TaskTracker) {
        let tender = Arc::new(self);
        tasks.spawn(Arc::clone(&tender).until_stopped(renew));
        tasks.spawn(Arc::clone(&tender).until_stopped(hear));
        tasks.spawn(Arc::clone(&tender).until_stopped(promote));
        tasks.spawn(Arc::clone(&tender).until_stopped(reclaim));
        tasks.spawn(Arc::clone(&tender).until_stopped(sweep));
        tasks.spawn(tender.until_stopped(register));
    }

    async fn until_stopped<F: Future<Output = ()>>(self: Arc<Self>, work: impl FnOnce(Arc<Self>) -> F) {
        let stop = self.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = work(self) => {}
        }
    }

    fn note<T>(&self, answer: Result<T, BrokerError>) -> Result<T, BrokerError> {
        self.link.note(answer)
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
            ..self.about.clone()
        }
    }
}

/// Keeps what this worker has. A hung engine's is left to other workers.
async fn renew<B: Broker>(tender: Arc<Tender<B>>) {
    let mut ticks = tender.every(RENEWALS_A_LEASE);
    let mut hung = false;
    loop {
        ticks.tick().await;
        let hangs = tender.lifecycle.engine_stalled(Instant::now());
        if hangs && !hung {
            error!("the engine has work and makes no steps; its turns are left to other workers");
        }
        hung = hangs;
        if !hangs && let Err(error) = tender.note(tender.broker.renew().await) {
            debug!(%error, "nothing was renewed");
        }
    }
}

/// Drops running turns that somebody cancelled, as soon as the queue says so.
async fn hear<B: Broker>(tender: Arc<Tender<B>>) {
    let mut backoff = Backoff::default();
    loop {
        match tender.note(tender.broker.hear().await) {
            Ok(()) => backoff = Backoff::default(),
            Err(error) => {
                debug!(%error, "cancellations are found by renewals only");
                backoff.pause().await;
            }
        }
    }
}

/// Makes agents runnable that waited for a time or a place.
async fn promote<B: Broker>(tender: Arc<Tender<B>>) {
    let mut backoff = Backoff::default();
    loop {
        match tender.note(tender.broker.promote().await) {
            Ok(look_again) => {
                backoff = Backoff::default();
                tokio::time::sleep(look_again).await;
            }
            Err(error) => {
                debug!(%error, "nobody was promoted");
                backoff.pause().await;
            }
        }
    }
}

/// Makes agents of silent workers runnable again.
async fn reclaim<B: Broker>(tender: Arc<Tender<B>>) {
    let mut ticks = tender.every(RECLAIMS_A_LEASE);
    loop {
        ticks.tick().await;
        match tender.note(tender.broker.reclaim().await) {
            Ok(count) => metrics::turns_reclaimed(count as usize),
            Err(error) => debug!(%error, "nothing was reclaimed"),
        }
    }
}

/// Keeps the queue whole and small.
async fn sweep<B: Broker>(tender: Arc<Tender<B>>) {
    let mut ticks = tender.every(SWEEPS_A_LEASE);
    loop {
        ticks.tick().await;
        if let Err(error) = tender.note(tender.broker.sweep().await) {
            debug!(%error, "the queue was not swept");
        }
    }
}

/// Tells the queue who this worker is and how it does, and hears what an operator wants of it.
async fn register<B: Broker>(tender: Arc<Tender<B>>) {
    let mut ticks = tender.every(RENEWALS_A_LEASE);
    loop {
        ticks.tick().await;
        let registered = tender.note(tender.broker.register(&tender.status()).await);
        if registered.is_ok_and(|orders| orders.drain) && !tender.drain.is_cancelled() {
            info!("an operator ordered this worker to drain");
            tender.drain.cancel();
        }
    }
}
