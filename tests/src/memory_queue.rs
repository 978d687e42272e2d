//! A queue in memory, by tokio's clock.

use std::sync::{Arc, Mutex};

use turnmill_redis::steps::{AgentAction, DepthLimits};
use turnmill_schema::{AgentId, Delta, Event, TurnId};
use turnmill_worker::broker::{Holdings, QueueCounts};

use crate::broker_conformance::{LEASE_MS, TestQueue, WorkerLimits};
use crate::machine::{self, Share};
use crate::memory_broker::{
    Acted, AfterTurn, Cancelled, Clock, DeadLetter, MemoryBroker, MemoryQueue, MemorySettings, NotEnqueued,
    TokioClock,
};

/// A worker's settings.
pub fn settings(worker: &str, lease_ms: u64, limits: WorkerLimits) -> MemorySettings {
    MemorySettings {
        worker: worker.to_owned(),
        lease_ms,
        max_attempts: limits.max_attempts,
        result_ttl_ms: 60_000,
        outcome_ttl_ms: 120_000,
        keep_stream_ms: 30_000,
        retained_bytes: 100_000_000,
        tenant_max_running: limits.tenant_max_running,
        max_continues: limits.max_continues,
        look_every_ms: 20,
    }
}

/// A queue in memory and its clock.
#[derive(Debug)]
pub struct MemoryTestQueue {
    queue: MemoryQueue,
    clock: Arc<TokioClock>,
    /// Of each worker that was made.
    holdings: Mutex<Vec<Holdings>>,
    _machine: Share,
}

impl MemoryTestQueue {
    /// A new one. Needs a tokio runtime.
    pub fn start() -> Self {
        let machine = machine::share();
        let clock = Arc::new(TokioClock::start());
        let queue = MemoryQueue::new(Arc::clone(&clock) as Arc<dyn Clock>);
        Self { queue, clock, holdings: Mutex::default(), _machine: machine }
    }
}

impl TestQueue for MemoryTestQueue {
    type Broker = MemoryBroker;

    async fn worker_with(&self, name: &str, limits: WorkerLimits) -> MemoryBroker {
        let broker = self.queue.worker(settings(name, LEASE_MS, limits));
        self.holdings.lock().expect("not poisoned").push(broker.holdings().clone());
        broker
    }

    async fn enqueue_after(
        &self,
        turns: &[AfterTurn<'_>],
        limits: DepthLimits,
    ) -> Result<Vec<TurnId>, NotEnqueued> {
        self.queue.enqueue_after(turns, limits)
    }

    async fn events(&self, turn: TurnId) -> Vec<Event> {
        self.queue.events(turn)
    }

    async fn short_reply(&self, turn: TurnId) -> Option<Delta> {
        self.queue.short_reply(turn)
    }

    async fn cancel(&self, turn: TurnId) -> Cancelled {
        self.queue.cancel(turn, &settings("operator", LEASE_MS, WorkerLimits::default()))
    }

    async fn act(&self, agent: &AgentId, action: AgentAction) -> Acted {
        self.queue.act(agent, action)
    }

    async fn pause(&self, paused: bool) {
        self.queue.pause(paused);
    }

    async fn dead_letters(&self) -> Vec<DeadLetter> {
        self.queue.dead_letters()
    }

    async fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }
}

impl Drop for MemoryTestQueue {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.queue.check_integrity();
        for holdings in self.holdings.lock().expect("not poisoned").iter() {
            assert!(holdings.is_empty(), "{} tickets or leases are left in a worker's hands", holdings.len());
        }
        let operator = settings("operator", LEASE_MS, WorkerLimits::default());
        for (agent, _) in self.queue.agents() {
            for turn in self.queue.backlog(&agent) {
                self.queue.cancel(turn, &operator);
            }
        }
        self.queue.check_integrity();
        let counts = self.queue.counts();
        let QueueCounts { dead, retained_bytes, enqueued, ended, paused, .. } = counts;
        let rest =
            QueueCounts { dead, retained_bytes, enqueued, ended, paused, lag: Some(0), ..Default::default() };
        assert_eq!(counts, rest, "something is left over");
    }
}
