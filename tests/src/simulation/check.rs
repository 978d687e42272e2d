//! The four promises, held against what the queue shows in the end.

use std::collections::BTreeMap;

use turnmill_schema::{AgentId, Begin, Event, History, Outcome, TurnId};
use turnmill_worker::broker::QueueCounts;

use super::ledger::{Ledger, Stage};
use super::plan::Plan;

/// What a turn's results show.
struct Shown {
    turn: TurnId,
    begins: Vec<(u64, Begin)>,
    tokens: Vec<u32>,
    outcome: Outcome,
    ended_ms: u64,
}

/// Everything that is not as promised.
pub(super) fn violations(stage: &Stage) -> Vec<String> {
    let ledger = stage.ledger();
    let mut found = ledger.violations.clone();
    let mut histories: BTreeMap<AgentId, Vec<u32>> = BTreeMap::new();
    let mut last: BTreeMap<AgentId, Shown> = BTreeMap::new();
    for plan in stage.world.plans.iter().chain(&ledger.hot) {
        let Some(turn) = ledger.turns.get(&plan.number) else {
            // A failover may lose a hot agent's; nobody enqueues it again.
            if plan.number >= stage.world.plans.len() {
                continue;
            }
            found.push(format!("turn {} was never enqueued", plan.number));
            continue;
        };
        match show(stage, *turn) {
            Err(what) => found.push(format!("turn {turn}: {what}")),
            Ok(shown) => {
                let history = plan.agent_id().map(|agent| histories.entry(agent).or_default());
                found.extend(check_words(stage, plan, &shown, history));
                found.extend(check_end(&ledger, plan, &shown));
                found.extend(check_leases(stage, &ledger, plan, &shown));
                if let Some(agent) = plan.agent_id() {
                    found.extend(check_order(&ledger, &agent, last.get(&agent), &shown));
                    if !shown.begins.is_empty() {
                        last.insert(agent, shown);
                    }
                }
            }
        }
    }
    found.extend(histories.iter().filter_map(|(agent, tokens)| check_history(stage, agent, tokens)));
    found.extend(check_counts(stage));
    found
}

/// Promise 2: one End, and it is last. Promise 3: each token index once, in order.
fn show(stage: &Stage, turn: TurnId) -> Result<Shown, String> {
    let events = stage.queue.stamped_events(turn);
    let (mut begins, mut tokens) = (Vec::new(), Vec::new());
    let mut end = None;
    for (at_ms, event) in events {
        if end.is_some() {
            return Err(format!("{event:?} follows the End"));
        }
        match event {
            Event::Begin(begin) if begin.resume_from as usize == tokens.len() => begins.push((at_ms, begin)),
            Event::Begin(begin) => {
                return Err(format!("resumed from {} after {} tokens", begin.resume_from, tokens.len()));
            }
            Event::Delta(delta) if delta.index as usize == tokens.len() => tokens.extend(delta.tokens),
            Event::Delta(delta) => {
                return Err(format!("token {} follows {} tokens", delta.index, tokens.len()));
            }
            Event::End(ended) => end = Some((at_ms, ended.outcome)),
        }
    }
    let (ended_ms, outcome) = end.ok_or("it never ended")?;
    Ok(Shown { turn, begins, tokens, outcome, ended_ms })
}

/// Promise 3: exactly the words that the model makes after the agent's completed turns.
fn check_words(stage: &Stage, plan: &Plan, shown: &Shown, history: Option<&mut Vec<u32>>) -> Option<String> {
    let mut none = Vec::new();
    let history = history.unwrap_or(&mut none);
    let before = if plan.new_session { &[][..] } else { &history[..] };
    let expected = plan.says(before, stage.world.block_tokens);
    let is_completed = shown.outcome == Outcome::Completed;
    let is_right =
        if is_completed { shown.tokens == expected.reply } else { expected.reply.starts_with(&shown.tokens) };
    let kept = stage.queue.short_reply(shown.turn);
    let is_kept = kept.is_none_or(|reply| reply.tokens == shown.tokens);
    let wrong = (!is_right || !is_kept).then(|| {
        format!("{} says {:?}, not {:?} after {before:?}", shown.turn, shown.tokens, expected.reply)
    });
    if is_completed {
        if plan.new_session {
            history.clear();
        }
        history.extend(expected.adds);
    }
    wrong
}

/// It ended as somebody was told it did, and not for a reason that was not there.
fn check_end(ledger: &Ledger, plan: &Plan, shown: &Shown) -> Option<String> {
    let told = ledger.ended.get(&shown.turn).copied();
    let is_told = told.is_none_or(|told| told == shown.outcome);
    let is_possible = match shown.outcome {
        Outcome::Completed => !plan.is_poison,
        Outcome::Cancelled => told.is_some(),
        Outcome::Expired => plan.deadline_ms.is_some(),
        Outcome::Failed => true,
    };
    (!is_told || !is_possible)
        .then(|| format!("{} ended as {:?}; told was {told:?}; {plan}", shown.turn, shown.outcome))
}

/// A lease that its worker kept alive is nobody else's.
fn check_leases(stage: &Stage, ledger: &Ledger, plan: &Plan, shown: &Shown) -> Option<String> {
    let agent = plan.agent_id().unwrap_or_else(|| AgentId::lone(&plan.tenant, shown.turn));
    for pair in shown.begins.windows(2) {
        let [(_, old), (at_ms, new)] = pair else { continue };
        if old.epoch >= new.epoch {
            return Some(format!("{}: epoch {} follows {}", shown.turn, new.epoch, old.epoch));
        }
        let key = (agent.clone(), old.epoch);
        let is_free = old.worker == new.worker || ledger.requeued.contains(&key);
        let Some((_, kept_ms)) = ledger.kept_ms.get(&key).filter(|_| !is_free) else { continue };
        if *at_ms < kept_ms + stage.world.lease_ms {
            let (turn, since_ms) = (shown.turn, at_ms.saturating_sub(*kept_ms));
            return Some(format!("{turn}: taken from {} {since_ms} ms after it was kept", old.worker));
        }
    }
    let first_ms = shown.begins.first().map(|(at_ms, _)| *at_ms)?;
    let too_early = plan.not_before_ms.is_some_and(|ms| first_ms < super::clock::START_MS + ms);
    too_early.then(|| format!("{} ran before its time", shown.turn))
}

/// Promise 1: one after the other, and not while the agent is paused.
fn check_order(ledger: &Ledger, agent: &AgentId, before: Option<&Shown>, shown: &Shown) -> Option<String> {
    let (first_ms, first) = shown.begins.first()?;
    if let Some(before) = before {
        let is_later = before.begins.iter().all(|(_, begin)| begin.epoch < first.epoch);
        if !is_later || before.ended_ms > *first_ms {
            return Some(format!("{} began before {} ended", shown.turn, before.turn));
        }
    }
    let is_paused = |at_ms: u64| {
        ledger.pauses.iter().any(|(id, from, until)| id == agent && *from < at_ms && at_ms < *until)
    };
    let early = shown.begins.iter().find(|(at_ms, _)| is_paused(*at_ms))?;
    Some(format!("{} began at {} while {agent} was paused", shown.turn, early.0))
}

/// Promise 4, in so far as it is the queue's: history is the fold of completed turns.
fn check_history(stage: &Stage, agent: &AgentId, expected: &[u32]) -> Option<String> {
    let transcript = stage.queue.transcript(agent);
    let history: History = transcript.into_iter().collect();
    (history.tokens != expected)
        .then(|| format!("the history of {agent} is {:?}, not {expected:?}", history.tokens))
}

/// Nothing is left over.
fn check_counts(stage: &Stage) -> Option<String> {
    stage.queue.check_integrity();
    let counts = stage.queue.counts();
    let QueueCounts { dead, retained_bytes, enqueued, ended, paused, .. } = counts;
    let rest =
        QueueCounts { dead, retained_bytes, enqueued, ended, paused, lag: Some(0), ..Default::default() };
    (counts != rest).then(|| format!("something is left over: {counts:?}"))
}
