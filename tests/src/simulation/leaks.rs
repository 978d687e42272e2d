//! What may be left when there is nothing more to do: nothing.

use std::sync::{Arc, Weak};
use std::time::Duration;

use turnmill_schema::AgentId;
use turnmill_worker::engine::{EngineChannel, Pause, StepLoop};
use turnmill_worker::kv::PoolCounts;
use turnmill_worker::model::Engine;
use turnmill_worker::runner::Keeper;
use turnmill_worker::schedule::Counts;

use super::executor::ProcessId;
use super::ledger::Stage;
use super::witness::Witness;
use super::worker::Live;

/// Longest time in which a store that answers has written everything.
const WRITTEN: Duration = Duration::from_secs(20);
/// Longest time in which the last tasks of a process end once nothing needs them.
const LAST_TASKS_MS: u64 = 2000;

/// What the engine was last seen to hold.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    sequences: Counts,
    pool: PoolCounts,
    /// It waits for a command: nothing is to be copied.
    waits: bool,
}

impl Gauge {
    pub(super) fn look<E: Engine>(&mut self, step_loop: &StepLoop<E>, pause: Option<Pause>) {
        self.sequences = step_loop.scheduler().counts();
        self.pool = step_loop.scheduler().pool().counts();
        self.waits = pause == Some(Pause::Command);
    }

    fn left(&self) -> Option<String> {
        let Counts { running, waiting, .. } = self.sequences;
        let is_empty = running == 0 && waiting == 0 && self.pool.held == 0 && self.waits;
        (!is_empty).then(|| format!("the engine has {self:?}"))
    }
}

/// What a worker still holds that has nothing to do.
fn held(live: &Live) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(service) = live.service.upgrade() {
        found.extend(
            (service.places_taken() > 0).then(|| format!("{} places for turns", service.places_taken())),
        );
    }
    if let Some(broker) = live.broker.upgrade() {
        let holdings = broker.inner.holdings();
        found.extend((!holdings.is_empty()).then(|| format!("{} tickets or leases", holdings.len())));
    }
    if let Some(keeper) = live.keeper.as_ref().and_then(Weak::upgrade) {
        found.extend(
            (keeper.places_taken() > 0).then(|| format!("{} places for segments", keeper.places_taken())),
        );
    }
    found.extend(live.gauge.lock().expect("not poisoned").left());
    found
}

/// All turns have ended and nobody was disturbed for a while.
pub(super) async fn while_idle(stage: &Stage) {
    let all: Vec<Live> = stage.live().values().cloned().collect();
    for live in all {
        for what in held(&live) {
            stage.violation(format!("{} has nothing to do and holds {what}", live.name));
        }
        if let Some(store) = &live.store {
            let began = stage.clock.now();
            store.flush(WRITTEN).await;
            if stage.clock.now() - began >= WRITTEN {
                stage.violation(format!("{}: segments stay announced", live.name));
            }
        }
    }
}

/// The worker has drained.
pub(super) fn after_drain(stage: &Stage, live: &Live) {
    for what in held(live) {
        stage.violation(format!("{} has drained and holds {what}", live.name));
    }
}

/// Everything of the worker was dropped but what its own tasks hold.
pub(super) async fn after_exit(
    stage: &Stage,
    (name, process): (&str, ProcessId),
    (broker, keeper): (&Weak<Witness>, Option<&Weak<Keeper<EngineChannel>>>),
) {
    stage.clock.sleep(LAST_TASKS_MS).await;
    // The one that asks is one of them.
    let tasks = stage.executor.tasks(process) - 1;
    let is_held = broker.strong_count() > 0 || keeper.is_some_and(|keeper| keeper.strong_count() > 0);
    if tasks > 0 || is_held {
        stage.violation(format!("{name} has ended; {tasks} of its tasks have not"));
    }
}

/// Tickets that a worker has had for long and has not leased; for who looks again and again.
#[derive(Default)]
pub(super) struct Unleased(Vec<(AgentId, u64, u64)>);

impl Unleased {
    /// Finds tickets that were in a worker's hands without a lease whenever somebody looked, for `most_ms`.
    pub(super) fn look(&mut self, stage: &Arc<Stage>, most_ms: u64) {
        let now_ms = stage.clock.elapsed_ms();
        let unleased = stage.queue.unleased();
        self.0.retain(|(agent, ticket, _)| unleased.contains(&(agent.clone(), *ticket)));
        for (agent, ticket) in unleased {
            match self.0.iter().find(|(_, known, _)| *known == ticket) {
                None => self.0.push((agent, ticket, now_ms)),
                Some((_, _, since_ms)) if now_ms - since_ms > most_ms && !stage.is_refused(&agent) => {
                    let waited_ms = now_ms - since_ms;
                    stage.violation(format!(
                        "{} has been in a worker's hands for {waited_ms} ms, and nobody leases it",
                        agent.own()
                    ));
                    self.0.clear();
                    return;
                }
                Some(_) => {}
            }
        }
    }
}
