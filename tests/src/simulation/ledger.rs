//! What was enqueued, and what workers and operators were told: what the queue is held against.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use turnmill_schema::{AgentId, Outcome, TurnId};

use super::dice::Dice;
use super::executor::SimClock;
use super::plan::World;
use crate::memory_broker::MemoryQueue;

/// What everybody in a simulation shares.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) world: World,
    pub(super) dice: Dice,
    pub(super) clock: SimClock,
    pub(super) queue: MemoryQueue,
    pub(super) hostile: AtomicBool,
    pub(super) producing: AtomicUsize,
    ledger: Mutex<Ledger>,
}

/// The book of a simulation.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// The id under which each plan runs.
    pub(super) turns: BTreeMap<usize, TurnId>,
    /// When a lease was last known to be kept, by turn and epoch.
    pub(super) kept_ms: BTreeMap<(TurnId, u64), (String, u64)>,
    /// Leases whose turns their workers requeued, or tried to.
    pub(super) requeued: BTreeSet<(TurnId, u64)>,
    /// How turns ended, by those who were told that they ended them.
    pub(super) ended: BTreeMap<TurnId, Outcome>,
    /// Which lease said the manifest that came with a claim, by agent and the claim's epoch.
    pub(super) manifests: BTreeMap<(AgentId, u64), u64>,
    /// When agents were paused, from and until.
    pub(super) pauses: Vec<(AgentId, u64, u64)>,
    /// What should never have been seen.
    pub(super) violations: Vec<String>,
    next_id: u64,
}

impl Stage {
    pub(super) fn new(world: World, dice: Dice, clock: SimClock, queue: MemoryQueue) -> Arc<Self> {
        let producing = AtomicUsize::new(world.producers);
        let hostile = AtomicBool::new(true);
        Arc::new(Self { world, dice, clock, queue, hostile, producing, ledger: Mutex::default() })
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("not poisoned")
    }

    /// Whether something goes wrong that does so often in a thousand times.
    pub(super) fn fails(&self, per_mille: u64) -> bool {
        self.is_hostile() && self.dice.chance(per_mille)
    }

    pub(super) fn is_hostile(&self) -> bool {
        self.hostile.load(Ordering::Relaxed)
    }

    pub(super) async fn sleep(&self, ms: u64) {
        self.clock.sleep(ms).await;
    }

    pub(super) async fn sleep_below(&self, ms: u64) {
        self.clock.sleep(self.dice.below(ms)).await;
    }

    pub(super) fn violation(&self, what: String) {
        self.ledger().violations.push(what);
    }

    /// An id no turn has; ids of a seed are the same whenever it runs.
    pub(super) fn new_turn_id(&self) -> TurnId {
        let mut ledger = self.ledger();
        ledger.next_id += 1;
        let text = format!("01980000-0000-7000-8000-{:012x}.0", ledger.next_id);
        text.parse().expect("a turn id")
    }
}

impl Ledger {
    /// A worker died: what it was told does not bind whoever comes under its name.
    pub(super) fn forget_worker(&mut self, name: &str) {
        self.kept_ms.retain(|_, (worker, _)| worker != name);
    }
}
