//! Producers, who repeat until they are answered, and an operator, who interferes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use turnmill_redis::steps::AgentAction;
use turnmill_schema::{AgentId, TurnId};

use super::ledger::Stage;
use super::plan::Plan;
use crate::memory_broker::{Acted, AgentState, Cancelled, NotEnqueued};
use crate::memory_queue::settings;

/// Enqueues the plans of one producer, in order.
pub(super) async fn produce(stage: Arc<Stage>, producer: usize) {
    let plans: Vec<Plan> =
        stage.world.plans.iter().filter(|plan| plan.producer == producer).cloned().collect();
    let mut rest = &plans[..];
    while !rest.is_empty() {
        stage.sleep_below(120).await;
        let most = (rest.len() as u64).min(stage.world.depth.queue).min(3);
        let (batch, later) = rest.split_at(stage.dice.between(1, most) as usize);
        enqueue(&stage, batch).await;
        rest = later;
    }
    stage.producing.fetch_sub(1, Ordering::Relaxed);
    std::future::pending::<()>().await;
}

/// Until it is answered. Turns without a key keep their ids; those with one get new ones each time.
async fn enqueue(stage: &Stage, plans: &[Plan]) {
    let kept: Vec<TurnId> = plans.iter().map(|_| stage.new_turn_id()).collect();
    loop {
        let now_ms = stage.clock.now();
        let id = |plan: &Plan, kept: &TurnId| if plan.is_keyed { stage.new_turn_id() } else { *kept };
        let turns: Vec<_> =
            plans.iter().zip(&kept).map(|(plan, kept)| plan.turn(id(plan, kept), now_ms)).collect();
        let is_lost = stage.fails(stage.world.faults.loss);
        let answer = (!is_lost).then(|| stage.queue.enqueue(&turns, stage.world.depth));
        stage.sleep_below(3).await;
        match answer {
            Some(Ok(_)) | None if stage.fails(stage.world.faults.loss) => {}
            Some(Ok(ids)) => {
                let mut ledger = stage.ledger();
                return ledger.turns.extend(plans.iter().map(|plan| plan.number).zip(ids));
            }
            Some(Err(NotEnqueued::Full(full))) => stage.sleep(full.retry_after_ms.min(100)).await,
            Some(Err(conflict)) => return stage.violation(conflict.to_string()),
            None => {}
        }
        stage.sleep_below(30).await;
    }
}

/// Cancels, pauses and resumes while everything is hostile; afterwards lets everything run.
pub(super) async fn operate(stage: Arc<Stage>) {
    let mut paused: Vec<(AgentId, u64)> = Vec::new();
    while stage.is_hostile() {
        stage.sleep_below(150).await;
        match stage.dice.below(6) {
            0 => cancel_some(&stage),
            1 => pause_some(&stage, &mut paused),
            2 | 3 => {
                if let Some((agent, since_ms)) = paused.pop() {
                    resume(&stage, &agent, since_ms);
                }
            }
            4 => set_policy(&stage),
            _ => {
                stage.queue.pause(true);
                stage.sleep_below(100).await;
                stage.queue.pause(false);
            }
        }
    }
    for (agent, since_ms) in paused {
        resume(&stage, &agent, since_ms);
    }
    loop {
        for (agent, state) in stage.queue.agents() {
            if matches!(state, AgentState::Paused | AgentState::Halted) {
                stage.queue.act(&agent, AgentAction::Resume);
            }
        }
        stage.sleep(200).await;
    }
}

fn cancel_some(stage: &Stage) {
    let known: Vec<TurnId> = stage.ledger().turns.values().copied().collect();
    let Some(turn) = stage.dice.pick(&known) else { return };
    let settings = settings("operator", stage.world.lease_ms, stage.world.limits);
    if stage.queue.cancel(*turn, &settings) == Cancelled::Now {
        stage.ledger().ended.insert(*turn, turnmill_schema::Outcome::Cancelled);
    }
}

fn pause_some(stage: &Stage, paused: &mut Vec<(AgentId, u64)>) {
    let agents: Vec<AgentId> = stage.queue.agents().into_iter().map(|(id, _)| id).collect();
    let Some(agent) = stage.dice.pick(&agents).filter(|id| paused.iter().all(|(other, _)| other != *id))
    else {
        return;
    };
    // One that runs goes on first: it counts as paused from now on only where it is.
    match stage.queue.act(agent, AgentAction::Pause) {
        Acted::State(AgentState::Paused) => paused.push((agent.clone(), stage.clock.now())),
        _ => paused.push((agent.clone(), u64::MAX)),
    }
}

fn resume(stage: &Stage, agent: &AgentId, since_ms: u64) {
    stage.ledger().pauses.push((agent.clone(), since_ms, stage.clock.now()));
    stage.queue.act(agent, AgentAction::Resume);
}

fn set_policy(stage: &Stage) {
    let agents: Vec<AgentId> = stage.queue.agents().into_iter().map(|(id, _)| id).collect();
    if let Some(agent) = stage.dice.pick(&agents) {
        let halts = stage.dice.chance(500);
        stage.queue.act(agent, if halts { AgentAction::Halt } else { AgentAction::Skip });
    }
}
