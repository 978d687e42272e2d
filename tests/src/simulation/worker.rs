//! A worker's process: it reads, leases, publishes, ends, requeues and renews, as a real one does, with the
//! computation replaced by a function.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use turnmill_worker::broker::{Advice, Broker, BrokerError, Lease, Ticket};

use super::faults::{FaultyLink, Mortal};
use super::ledger::Stage;
use crate::memory_broker::MemoryBroker;
use crate::memory_queue::settings;

/// Of each in one lease, as real workers do.
const RENEWALS_A_LEASE: u64 = 3;
const RECLAIMS_A_LEASE: u64 = 4;
const SWEEPS_A_LEASE: u64 = 2;
const PROMOTE_AGAIN_MS: u64 = 20;

/// One life of a worker.
pub(super) struct Process {
    pub(super) name: String,
    pub(super) broker: MemoryBroker,
    pub(super) stage: Arc<Stage>,
    /// Leases that nobody ends yet. While one is being ended, a renewal that does not keep it does not call it lost either.
    leases: Mutex<Vec<Weak<Lease>>>,
    draining: AtomicBool,
}

/// Starts a worker again whenever it dies or is done, under its name or a new one.
pub(super) async fn supervise(stage: Arc<Stage>, number: usize) {
    let mut life = 0;
    loop {
        let name = format!("w{number}.{life}");
        let process = Process::start(&stage, &name);
        let died = Mortal::new(&stage, process.run()).await;
        if died {
            stage.ledger().forget_worker(&name);
        }
        // The same name comes back for its own tickets at once; another one waits until they idle.
        life += u64::from(stage.dice.chance(600));
        stage.sleep_below(2 * stage.world.lease_ms).await;
    }
}

impl Process {
    fn start(stage: &Arc<Stage>, name: &str) -> Self {
        let settings = settings(name, stage.world.lease_ms, stage.world.limits);
        Self {
            name: name.to_owned(),
            broker: stage.queue.worker_over(settings, Arc::new(FaultyLink(Arc::clone(stage)))),
            stage: Arc::clone(stage),
            leases: Mutex::default(),
            draining: AtomicBool::new(false),
        }
    }

    /// Until it is drained. Its timers go on whether its slots are free or not, as a real worker's do.
    async fn run(self) {
        let slots: FuturesUnordered<_> = (0..self.stage.world.slots).map(|_| self.slot()).collect();
        let slots = std::pin::pin!(slots.collect::<Vec<()>>());
        let timers =
            futures::future::join5(self.renew(), self.hear(), self.promote(), self.reclaim(), self.sweep());
        let rest = std::pin::pin!(futures::future::join(timers, self.drain_some_time()));
        futures::future::select(slots, rest).await;
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    async fn drain_some_time(&self) {
        self.stage.sleep_below(6000).await;
        if self.stage.is_hostile() {
            self.draining.store(true, Ordering::Relaxed);
        }
        std::future::pending::<()>().await;
    }

    /// Runs one turn at a time.
    async fn slot(&self) {
        while !self.is_draining() {
            let mut next = self.take_ticket().await;
            while let Some(ticket) = next.take() {
                next = self.serve(&ticket).await;
            }
        }
    }

    async fn take_ticket(&self) -> Option<Ticket> {
        self.broker.read(1).await.unwrap_or_default().pop()
    }

    /// Leases the ticket and runs its turn, or returns it. Some: the worker continues with the next turn.
    async fn serve(&self, ticket: &Ticket) -> Option<Ticket> {
        self.stage.sleep_below(3).await;
        let gives_up = self.is_draining() || self.stage.fails(30);
        let claim = if gives_up {
            self.insist(async || self.broker.return_ticket(ticket).await).await.map(|()| None)
        } else {
            self.insist(async || self.broker.lease(ticket).await).await
        };
        let claim = claim.unwrap_or_default()?;
        self.leases.lock().expect("not poisoned").push(Arc::downgrade(&claim.lease));
        self.attempt(claim).await
    }

    /// Calls until there is an answer.
    pub(super) async fn insist<T>(
        &self,
        call: impl AsyncFn() -> Result<T, BrokerError>,
    ) -> Result<T, BrokerError> {
        loop {
            match call().await {
                Err(error) if error.advice() == Advice::Retry => self.stage.sleep_below(20).await,
                answer => return answer,
            }
        }
    }

    /// Renews what is in this worker's hands, and notes which leases that kept.
    async fn renew(&self) {
        loop {
            self.stage.sleep(self.stage.world.lease_ms / RENEWALS_A_LEASE).await;
            let leases = self.live_leases();
            let sent_ms = self.stage.clock.now();
            if self.broker.renew().await.is_ok() {
                let still = self.live_leases();
                let is_kept = |lease: &&Arc<Lease>| {
                    !lease.is_lost() && still.iter().any(|other| Arc::ptr_eq(lease, other))
                };
                for lease in leases.iter().filter(is_kept) {
                    let key = (lease.turn, lease.epoch);
                    self.stage.ledger().kept_ms.insert(key, (self.name.clone(), sent_ms));
                }
            }
        }
    }

    fn live_leases(&self) -> Vec<Arc<Lease>> {
        let mut leases = self.leases.lock().expect("not poisoned");
        leases.retain(|lease| lease.strong_count() > 0);
        leases.iter().filter_map(Weak::upgrade).collect()
    }

    /// The lease is about to be ended.
    pub(super) fn note_ending(&self, lease: &Arc<Lease>) {
        self.leases
            .lock()
            .expect("not poisoned")
            .retain(|other| !std::ptr::eq(other.as_ptr(), &raw const **lease));
    }

    async fn hear(&self) {
        while self.broker.hear().await.is_ok() {}
    }

    async fn promote(&self) {
        loop {
            // A call that got lost is made again soon.
            let look_again =
                self.broker.promote().await.map_or(PROMOTE_AGAIN_MS, |wait| wait.as_millis() as u64);
            self.stage.sleep(look_again).await;
        }
    }

    async fn reclaim(&self) {
        loop {
            self.stage.sleep(self.stage.world.lease_ms / RECLAIMS_A_LEASE).await;
            let _ = self.broker.reclaim().await;
        }
    }

    async fn sweep(&self) {
        loop {
            self.stage.sleep(self.stage.world.lease_ms / SWEEPS_A_LEASE).await;
            let _ = self.broker.sweep().await;
        }
    }
}
