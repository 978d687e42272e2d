//! Producers, who repeat until they are answered, and an operator, who interferes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use turnmill_redis::steps::AgentAction;
use turnmill_schema::{AgentId, Outcome, TurnId};

use super::ledger::Stage;
use super::plan::Plan;
use super::worker::queue_settings;
use crate::memory_broker::{Acted, AgentState, Cancelled, NotEnqueued};

/// Turns that a hot agent has at least.
const HOT_BACKLOG: usize = 3;

/// Enqueues the plans of one producer, in order, and those again that a failover lost.
pub(super) async fn produce(stage: Arc<Stage>, producer: usize) {
    let plans: Vec<Plan> =
        stage.world.plans.iter().filter(|plan| plan.producer == producer).cloned().collect();
    let mut ids: Vec<Option<TurnId>> = vec![None; plans.len()];
    let mut is_done = false;
    loop {
        stage.sleep_below(if is_done { 50 } else { 300 }).await;
        let open = {
            let ledger = stage.ledger();
            plans.iter().position(|plan| !ledger.turns.contains_key(&plan.number))
        };
        if open.is_none() != is_done {
            is_done = !is_done;
            if is_done {
                stage.producing.fetch_sub(1, Ordering::Relaxed);
            } else {
                stage.producing.fetch_add(1, Ordering::Relaxed);
            }
        }
        if let Some(first) = open {
            let most = ((plans.len() - first) as u64).min(stage.world.depth.queue).min(3);
            let end = first + stage.dice.between(1, most) as usize;
            enqueue(&stage, &plans[first..end], &mut ids[first..end]).await;
        }
    }
}

/// Once; what was not answered is enqueued again. Turns without a key keep their ids; those with one get new ones each time.
async fn enqueue(stage: &Stage, plans: &[Plan], ids: &mut [Option<TurnId>]) {
    let (now_ms, failovers) = (stage.now_ms(), stage.ledger().failovers);
    let is_away = stage.clock.elapsed_ms() < stage.away_until_ms.load(Ordering::Relaxed);
    let is_full = stage.clock.elapsed_ms() < stage.full_until_ms.load(Ordering::Relaxed);
    let turns = plans.iter().zip(ids).map(|(plan, id)| {
        if plan.is_keyed || id.is_none() {
            *id = Some(stage.new_turn_id());
        }
        plan.turn(id.expect("it was set"), now_ms)
    });
    let turns: Vec<_> = turns.collect();
    if is_away || is_full || stage.fails(stage.world.faults.loss) {
        return;
    }
    let answer = stage.queue.enqueue(&turns, stage.world.depth);
    stage.sleep_below(3).await;
    // A producer that lost its connection does not know what became of it.
    if stage.fails(stage.world.faults.loss) || stage.ledger().failovers != failovers {
        return;
    }
    match answer {
        Ok(ids) => {
            stage.trace(|| format!("enqueued {ids:?}"));
            stage.ledger().turns.extend(plans.iter().map(|plan| plan.number).zip(ids));
        }
        Err(NotEnqueued::Full(full)) => stage.clock.sleep(full.retry_after_ms.min(100)).await,
        Err(conflict) => stage.violation(conflict.to_string()),
    }
}

/// Sees that hot agents never run out of turns, for as long as anybody else has one.
pub(super) async fn keep_hot(stage: Arc<Stage>) {
    let mut number = stage.world.plans.len();
    while !stage.healed.load(Ordering::Relaxed) {
        for agent in 0..stage.world.hot_agents {
            let plan = Plan::hot(&stage.dice, number, agent);
            let id = plan.agent_id().expect("it is an agent's");
            if stage.queue.backlog(&id).len() < HOT_BACKLOG {
                let turn = plan.turn(stage.new_turn_id(), stage.now_ms());
                if stage.queue.enqueue(std::slice::from_ref(&turn), stage.world.depth).is_ok() {
                    let mut ledger = stage.ledger();
                    ledger.turns.insert(number, turn.id);
                    ledger.hot.push(plan);
                    number += 1;
                }
            }
        }
        stage.clock.sleep(10).await;
    }
}

/// Cancels, pauses and resumes while everything is hostile; afterwards lets everything run.
pub(super) async fn operate(stage: Arc<Stage>) {
    let mut paused: Vec<(AgentId, u64)> = Vec::new();
    while stage.is_hostile() {
        stage.sleep_below(400).await;
        if accidents(&stage).await {
            // Whether they are paused still is not known.
            paused.iter_mut().for_each(|(_, since_ms)| *since_ms = u64::MAX);
        }
        match stage.dice.below(7) {
            0 => cancel_some(&stage),
            1 => pause_some(&stage, &mut paused),
            2 | 3 => {
                if let Some((agent, since_ms)) = paused.pop() {
                    resume(&stage, &agent, since_ms);
                }
            }
            4 => set_policy(&stage),
            5 => drain_some(&stage),
            _ => {
                stage.queue.pause(true);
                stage.sleep_below(200).await;
                stage.queue.pause(false);
            }
        }
    }
    for (agent, since_ms) in paused {
        resume(&stage, &agent, since_ms);
    }
    loop {
        stage.queue.pause(false);
        for (agent, state) in stage.queue.agents() {
            if matches!(state, AgentState::Paused | AgentState::Halted) {
                stage.queue.act(&agent, AgentAction::Resume);
            }
        }
        stage.clock.sleep(200).await;
    }
}

/// What happens to Redis itself; whether it failed over.
async fn accidents(stage: &Stage) -> bool {
    let faults = stage.world.faults;
    if stage.fails(faults.jump) {
        let ms = stage.dice.below(3 * stage.world.lease_ms);
        stage.trace(|| format!("the queue's clock jumps by {ms} ms"));
        stage.clock.jump(ms);
    }
    if stage.fails(faults.full) {
        let until_ms = stage.clock.elapsed_ms() + stage.dice.below(2 * stage.world.lease_ms);
        stage.full_until_ms.store(until_ms, Ordering::Relaxed);
    }
    let fails_over = stage.fails(faults.failover);
    if fails_over {
        fail_over(stage).await;
    }
    fails_over
}

/// The replica becomes the primary. It lacks what the old one did last, though that was acknowledged.
async fn fail_over(stage: &Stage) {
    let (since_ms, behind) = (stage.clock.elapsed_ms(), stage.queue.snapshot());
    let ended = stage.ledger().ended.clone();
    stage.sleep_below(150).await;
    stage.queue.restore(behind);
    let away_ms = stage.dice.below(stage.world.lease_ms);
    stage.trace(|| {
        format!("Redis fails over; what it did since {since_ms} is lost, and {away_ms} ms nobody answers")
    });
    let known = |turn: TurnId| stage.queue.knows(turn);
    stage.ledger().roll_back(ended, known);
    stage.away_until_ms.store(stage.clock.elapsed_ms() + away_ms, Ordering::Relaxed);
}

fn cancel_some(stage: &Stage) {
    let known: Vec<TurnId> = stage.ledger().turns.values().copied().collect();
    let Some(turn) = stage.dice.pick(&known) else { return };
    let settings = queue_settings("operator", &stage.world);
    if stage.queue.cancel(*turn, &settings) == Cancelled::Now {
        stage.trace(|| format!("{turn} is cancelled"));
        stage.ledger().ended.insert(*turn, Outcome::Cancelled);
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
        Acted::State(AgentState::Paused) => paused.push((agent.clone(), stage.now_ms())),
        _ => paused.push((agent.clone(), u64::MAX)),
    }
}

fn resume(stage: &Stage, agent: &AgentId, since_ms: u64) {
    stage.ledger().pauses.push((agent.clone(), since_ms, stage.now_ms()));
    stage.queue.act(agent, AgentAction::Resume);
}

fn set_policy(stage: &Stage) {
    let agents: Vec<AgentId> = stage.queue.agents().into_iter().map(|(id, _)| id).collect();
    if let Some(agent) = stage.dice.pick(&agents) {
        let halts = stage.dice.chance(500);
        stage.queue.act(agent, if halts { AgentAction::Halt } else { AgentAction::Skip });
    }
}

fn drain_some(stage: &Stage) {
    let workers: Vec<String> = stage.queue.workers().into_iter().map(|(name, _)| name).collect();
    if let Some(worker) = stage.dice.pick(&workers) {
        stage.trace(|| format!("an operator drains {worker}"));
        stage.queue.drain(worker);
    }
}
