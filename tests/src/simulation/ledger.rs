//! What was enqueued, and what workers and operators were told: what the queue is held against.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use futures::{FutureExt, StreamExt};
use object_store::memory::InMemory;
use turnmill_schema::{AgentId, Manifest, Outcome, TurnId};
use turnmill_worker::runner::Prompting;

use super::clock::SimClock;
use super::dice::Dice;
use super::executor::Executor;
use super::plan::{Plan, World};
use super::worker::Live;
use super::{Break, words};
use crate::memory_broker::{Clock, MemoryQueue};

/// What everybody in a simulation shares.
pub(super) struct Stage {
    pub(super) world: World,
    pub(super) dice: Dice,
    pub(super) clock: SimClock,
    pub(super) executor: Executor,
    pub(super) queue: MemoryQueue,
    pub(super) objects: Arc<InMemory>,
    pub(super) broken: Break,
    pub(super) prompting: Arc<Prompting>,
    /// Things go wrong.
    pub(super) hostile: AtomicBool,
    /// There is nothing more to come: workers drain and do not come back.
    pub(super) closing: AtomicBool,
    /// Agents that no script leases are leased again.
    pub(super) healed: AtomicBool,
    pub(super) producing: AtomicUsize,
    /// Until then, in milliseconds since the start, no primary answers.
    pub(super) away_until_ms: AtomicU64,
    /// Until then Redis is full.
    pub(super) full_until_ms: AtomicU64,
    /// The workers that live, by their numbers.
    pub(super) live: Mutex<BTreeMap<usize, Live>>,
    ledger: Mutex<Ledger>,
    trace: Option<Mutex<Vec<String>>>,
}

/// The book of a simulation.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// The plans of hot agents, made as they were needed.
    pub(super) hot: Vec<Plan>,
    /// The id under which each plan runs.
    pub(super) turns: BTreeMap<usize, TurnId>,
    /// When a lease was last known to be kept by the queue's clock, by agent and epoch.
    pub(super) kept_ms: BTreeMap<(AgentId, u64), (String, u64)>,
    /// Leases that are being ended: while one is, a renewal that does not keep it does not call it lost either.
    pub(super) ending: BTreeSet<(AgentId, u64)>,
    /// Leases whose turns their workers requeued, or tried to.
    pub(super) requeued: BTreeSet<(AgentId, u64)>,
    /// How turns ended, by those who were told that they ended them.
    pub(super) ended: BTreeMap<TurnId, Outcome>,
    /// Manifests by agent, each with the lease that said it.
    pub(super) said: BTreeMap<AgentId, Vec<(u64, Manifest)>>,
    /// The newest lease of an agent that was told a manifest, and whose that was.
    pub(super) told: BTreeMap<AgentId, (u64, u64)>,
    /// When agents were paused, from and until, by the queue's clock.
    pub(super) pauses: Vec<(AgentId, u64, u64)>,
    /// How often Redis failed over.
    pub(super) failovers: u64,
    pub(super) crashes: u64,
    /// What should never have been seen.
    pub(super) violations: Vec<String>,
    next_id: u64,
}

impl Stage {
    pub(super) fn new(
        (world, broken): (World, Break),
        (dice, clock): (Dice, SimClock),
        queue: MemoryQueue,
        traces: bool,
    ) -> Arc<Self> {
        let prompting = Arc::new(super::worker::prompting(&world));
        debug_assert_eq!(prompting.tokenizer.vocabulary(), words::VOCABULARY);
        Arc::new(Self {
            executor: Executor::new(clock.clone(), dice.clone()),
            producing: AtomicUsize::new(world.producers),
            world,
            dice,
            clock,
            queue,
            objects: Arc::new(InMemory::new()),
            broken,
            prompting,
            hostile: AtomicBool::new(true),
            closing: AtomicBool::new(false),
            healed: AtomicBool::new(false),
            away_until_ms: AtomicU64::new(0),
            full_until_ms: AtomicU64::new(0),
            live: Mutex::default(),
            ledger: Mutex::default(),
            trace: traces.then(Mutex::default),
        })
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("not poisoned")
    }

    pub(super) fn live(&self) -> MutexGuard<'_, BTreeMap<usize, Live>> {
        self.live.lock().expect("not poisoned")
    }

    /// Whether something goes wrong that does so often in a thousand times.
    pub(super) fn fails(&self, per_mille: u64) -> bool {
        per_mille > 0 && self.is_hostile() && self.dice.chance(per_mille)
    }

    pub(super) fn is_hostile(&self) -> bool {
        self.hostile.load(Ordering::Relaxed)
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Whether an agent cannot be leased.
    pub(super) fn is_unleasable(&self, agent: &AgentId) -> bool {
        !self.healed.load(Ordering::Relaxed) && self.is_refused(agent)
    }

    /// Whether it could not be leased for most of the time.
    pub(super) fn is_refused(&self, agent: &AgentId) -> bool {
        self.world.faults.unleasable && agent.own() == "a0"
    }

    /// Objects in the store.
    pub(super) fn stored_objects(&self) -> u64 {
        let objects = object_store::ObjectStore::list(&*self.objects, None);
        // A list in memory waits for nothing.
        objects.count().now_or_never().unwrap_or(0) as u64
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    pub(super) async fn sleep_below(&self, ms: u64) {
        self.clock.sleep(self.dice.below(ms)).await;
    }

    pub(super) fn violation(&self, what: String) {
        self.trace(|| format!("VIOLATION {what}"));
        let mut ledger = self.ledger();
        if ledger.violations.len() < 20 {
            ledger.violations.push(what);
        }
    }

    /// Notes an event, if anybody wants to read it.
    pub(super) fn trace(&self, what: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            let line = format!("{:>7} {}", self.clock.elapsed_ms(), what());
            trace.lock().expect("not poisoned").push(line);
        }
    }

    pub(super) fn take_trace(&self) -> Vec<String> {
        self.trace
            .as_ref()
            .map_or_else(Vec::new, |trace| std::mem::take(&mut *trace.lock().expect("not poisoned")))
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

    /// Redis lost what it did since a moment: only what was told before binds, such as that turns had `ended`. `is_known`: the
    /// queue still has the turn.
    pub(super) fn roll_back(&mut self, ended: BTreeMap<TurnId, Outcome>, is_known: impl Fn(TurnId) -> bool) {
        self.failovers += 1;
        self.kept_ms.clear();
        self.said.clear();
        self.told.clear();
        self.ended = ended;
        self.turns.retain(|_, turn| is_known(*turn));
    }
}
