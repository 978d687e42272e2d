//! Nobody waits for ever while a worker lives; and how a seed goes on once faults have ended.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::leaks::{self, Unleased};
use super::ledger::Stage;
use super::plan::World;
use super::worker;
use crate::memory_broker::AgentState;

/// After the last fault every turn ends within this time, though hot agents go on.
const LIVENESS_MS: u64 = 60_000;
/// So long a seed may take after its faults.
pub(super) const LIMIT_MS: u64 = 4 * LIVENESS_MS;
/// How often somebody looks at the whole.
const LOOK_MS: u64 = 25;
/// Longest time for workers to drain that have nothing to do.
const DRAIN_MS: u64 = 20_000;

/// Ends the faults, later the run; meanwhile sees that nobody waits for ever, and that no tenant runs more turns than it may.
pub(super) async fn watch(stage: Arc<Stage>) {
    while stage.clock.elapsed_ms() < stage.world.faults.until_ms {
        stage.clock.sleep(LOOK_MS).await;
        check_caps(&stage);
    }
    stage.hostile.store(false, Ordering::Relaxed);
    stage.trace(|| "faults end".to_owned());
    if !wait_until(&stage, "turns have ended", ordinary_have_ended).await {
        return;
    }
    stage.healed.store(true, Ordering::Relaxed);
    if !wait_until(&stage, "turns of hot and unleasable agents have ended", all_have_ended).await {
        return;
    }
    // Tickets in the hands of workers that have not heard yet, and calls that arrive late.
    let rest_ms = 3 * stage.world.lease_ms;
    stage.clock.sleep(rest_ms).await;
    // Processes that stopped and engines that hung before faults ended go on by then.
    let awake_ms = stage.world.faults.until_ms + rest_ms + 2 * stage.world.stall_ms;
    stage.clock.sleep(awake_ms.saturating_sub(stage.clock.elapsed_ms())).await;
    stage.clock.sleep(rest_ms).await;
    leaks::while_idle(&stage).await;
    stage.closing.store(true, Ordering::Relaxed);
    stage.trace(|| "everybody drains".to_owned());
    let until_ms = stage.clock.elapsed_ms() + DRAIN_MS;
    while !stage.live().is_empty() && stage.clock.elapsed_ms() < until_ms {
        stage.clock.sleep(LOOK_MS).await;
    }
    // Their last tasks.
    stage.clock.sleep(3000).await;
    let alive: Vec<String> = stage.live().values().map(|live| live.name.clone()).collect();
    if !alive.is_empty() {
        stage.violation(format!("{alive:?} have nothing to do and do not stop"));
    }
}

/// Whether it is so within [`LIVENESS_MS`].
async fn wait_until(stage: &Arc<Stage>, what: &str, holds: fn(&Stage) -> bool) -> bool {
    let until_ms = stage.clock.elapsed_ms() + LIVENESS_MS;
    let lease_ms = stage.world.lease_ms;
    // What was lost while faults were is taken up again after a lease; what workers read since then they lease at once.
    let faults = stage.world.faults;
    let quiet_ms = if faults.is_none() { 0 } else { faults.until_ms + 3 * lease_ms };
    let mut unleased = Unleased::default();
    while !holds(stage) {
        if stage.clock.elapsed_ms() >= until_ms {
            let agents = stage.queue.agents().into_iter().filter(|(_, state)| *state != AgentState::Idle);
            let agents: Vec<_> =
                agents.map(|(id, state)| format!("{} is {}", id.own(), state.as_str())).collect();
            let idle = stage.live().values().filter(|live| worker::is_idle(live)).count();
            stage.violation(format!(
                "not within {LIVENESS_MS} ms without faults: {what}; {idle} workers have nothing; {agents:?}"
            ));
            return false;
        }
        stage.clock.sleep(LOOK_MS).await;
        check_caps(stage);
        if stage.clock.elapsed_ms() > quiet_ms {
            unleased.look(stage, lease_ms / 2);
        }
    }
    true
}

/// Of all agents that can be leased and are not hot.
fn ordinary_have_ended(stage: &Stage) -> bool {
    let is_ordinary =
        |agent: &turnmill_schema::AgentId| agent.tenant() != "hot" && !stage.is_unleasable(agent);
    let open = stage.queue.agents().into_iter().map(|(id, _)| id).filter(is_ordinary);
    stage.producing.load(Ordering::Relaxed) == 0
        && open.into_iter().all(|id| stage.queue.backlog(&id).is_empty())
}

fn all_have_ended(stage: &Stage) -> bool {
    stage.queue.counts().open() == 0
}

fn check_caps(stage: &Stage) {
    let cap = stage.world.limits.tenant_max_running;
    if cap == 0 {
        return;
    }
    let agents = stage.queue.agents();
    for tenant in World::TENANTS {
        let leased =
            agents.iter().filter(|(id, state)| *state == AgentState::Leased && id.tenant() == tenant);
        let leased = leased.count() as u64;
        if leased > cap {
            stage.violation(format!("{tenant} runs {leased} turns, and may run {cap}"));
        }
    }
}
