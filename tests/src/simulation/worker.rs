//! A worker's process: it reads, leases, publishes, ends, requeues and renews, as a real one does, with the
//! computation replaced by a function.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use turnmill_schema::TurnId;
use turnmill_worker::broker::memory::MemoryBroker;
use turnmill_worker::broker::{Advice, Broker, BrokerError, Lease, Ticket};

use super::faults::{FaultyLink, Mortal};
use super::ledger::Stage;
use crate::memory_queue::settings;

/// One life of a worker.
pub(super) struct Process {
    pub(super) name: String,
    pub(super) broker: MemoryBroker,
    pub(super) stage: Arc<Stage>,
    held: Mutex<Vec<Lease>>,
    unleased: Mutex<Vec<Ticket>>,
    lost: Mutex<BTreeSet<(TurnId, u64)>>,
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
            held: Mutex::default(),
            unleased: Mutex::default(),
            lost: Mutex::default(),
            draining: AtomicBool::new(false),
        }
    }

    /// Until it is drained.
    async fn run(self) {
        let slots: FuturesUnordered<_> = (0..self.stage.world.slots).map(|_| self.slot()).collect();
        let slots = std::pin::pin!(slots.collect::<Vec<()>>());
        let rest =
            std::pin::pin!(futures::future::join3(self.renew(), self.listen(), self.drain_some_time()));
        futures::future::select(slots, rest).await;
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(super) fn has_lost(&self, lease: &Lease) -> bool {
        self.lost.lock().expect("not poisoned").contains(&(lease.turn, lease.epoch))
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
        let mut tickets = self.broker.reclaim(1).await.unwrap_or_default();
        if tickets.is_empty() {
            tickets = self.broker.read(1).await.unwrap_or_default();
        }
        tickets.pop()
    }

    /// Leases the ticket and runs its turn, or returns it. Some: the worker continues with the next turn.
    async fn serve(&self, ticket: &Ticket) -> Option<Ticket> {
        self.unleased.lock().expect("not poisoned").push(ticket.clone());
        self.stage.sleep_below(3).await;
        let gives_up = self.is_draining() || self.stage.fails(30);
        let claim = if gives_up {
            self.insist(async || self.broker.return_ticket(ticket).await).await.map(|()| None)
        } else {
            self.insist(async || self.broker.lease(ticket).await).await
        };
        self.unleased.lock().expect("not poisoned").retain(|other| other != ticket);
        let claim = claim.unwrap_or_default()?;
        let lease = claim.lease.clone();
        self.held.lock().expect("not poisoned").push(lease.clone());
        let next = self.attempt(claim).await;
        self.held.lock().expect("not poisoned").retain(|other| *other != lease);
        next
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

    /// Keeps what this worker holds, and notes what it lost.
    async fn renew(&self) {
        loop {
            self.stage.sleep(self.stage.world.lease_ms / 3).await;
            let held = self.held.lock().expect("not poisoned").clone();
            let unleased = self.unleased.lock().expect("not poisoned").clone();
            let sent_ms = self.stage.clock.now();
            let Ok(renewal) = self.broker.renew(&held, &unleased).await else { continue };
            for lease in held {
                let key = (lease.turn, lease.epoch);
                if renewal.lost.contains(&lease.turn) {
                    self.lost.lock().expect("not poisoned").insert(key);
                } else {
                    self.stage.ledger().kept_ms.insert(key, (self.name.clone(), sent_ms));
                }
            }
        }
    }

    async fn listen(&self) {
        while let Ok(turn) = self.broker.next_cancelled().await {
            let held = self.held.lock().expect("not poisoned").clone();
            let lost = held.iter().filter(|lease| lease.turn == turn);
            self.lost.lock().expect("not poisoned").extend(lost.map(|lease| (lease.turn, lease.epoch)));
        }
    }
}
