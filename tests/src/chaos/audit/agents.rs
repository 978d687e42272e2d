//! One agent: its turns ran one at a time and in order, its transcript has each completed one once, and it rests.

use std::collections::HashMap;

use turnmill_schema::{AgentId, Outcome, TurnId};

use super::{Finding, Violation};
use crate::chaos::stored::{Stored, StoredAgent, StoredTurn};

/// What is wrong with an agent whose turns were acknowledged in the order of `turns`.
pub(super) fn check(agent: &AgentId, turns: &[TurnId], stored: &Stored) -> Vec<Finding> {
    let mut findings = order(turns, stored);
    let Some(found) = stored.agents.get(agent) else {
        // What a lone turn should leave, and what an agent without a completed turn may.
        return findings
            .into_iter()
            .chain(transcript(agent, turns, &StoredAgent::default(), stored))
            .collect();
    };
    if agent.is_lone() {
        findings.push(Finding::new(
            Violation::PostFence,
            agent,
            "a turn that stands alone left an agent's keys",
        ));
        return findings;
    }
    findings.extend(transcript(agent, turns, found, stored));
    findings.extend(rest(agent, found));
    findings
}

/// An agent's epochs only grow, so a turn's first lease is above the end of the turn before.
fn order(turns: &[TurnId], stored: &Stored) -> Vec<Finding> {
    let span = |turn: &TurnId| {
        let stored = stored.turns.get(turn)?;
        Some((*turn, stored.begins().next()?.epoch, stored.end()?.0))
    };
    // What has no Begin or no End is lost, and found elsewhere.
    let spans: Vec<_> = turns.iter().filter_map(span).collect();
    let overlapping = spans.windows(2).filter(|pair| pair[1].1 <= pair[0].2);
    let finding = |pair: &[(TurnId, u64, u64)]| {
        let [(before, _, end), (turn, begin, _)] = [pair[0], pair[1]];
        let detail = format!("it began at {begin}, and {before}, enqueued before it, ended at {end}");
        Finding::new(Violation::OutOfOrder, turn, detail)
    };
    overlapping.map(finding).collect()
}

fn transcript(agent: &AgentId, turns: &[TurnId], found: &StoredAgent, stored: &Stored) -> Vec<Finding> {
    let completed = |turn: &&TurnId| !agent.is_lone() && stored.turns.get(turn).is_some_and(is_completed);
    let expected: Vec<TurnId> = turns.iter().filter(completed).copied().collect();
    let mut times: HashMap<TurnId, usize> = HashMap::new();
    let mut findings = Vec::new();
    for entry in &found.transcript {
        let times = times.entry(entry.turn).or_default();
        *times += 1;
        if *times > 1 {
            findings.push(Finding::new(
                Violation::Duplicated,
                entry.turn,
                "its transcript entry stands twice",
            ));
        } else if !expected.contains(&entry.turn) {
            let detail =
                format!("the transcript of {agent} holds it, and it is no completed turn of that agent");
            findings.push(Finding::new(Violation::PostFence, entry.turn, detail));
        }
    }
    for turn in expected.iter().filter(|turn| !times.contains_key(turn)) {
        findings.push(Finding::new(Violation::Lost, turn, "its transcript entry is missing"));
    }
    let order = found.transcript.iter().map(|entry| entry.turn);
    if findings.is_empty() && !order.eq(expected) {
        findings.push(Finding::new(Violation::OutOfOrder, agent, "its transcript is in another order"));
    }
    findings
}

fn is_completed(turn: &StoredTurn) -> bool {
    turn.end().is_some_and(|(_, end)| end.outcome == Outcome::Completed)
}

/// After its last turn an agent is idle and nobody's.
fn rest(agent: &AgentId, found: &StoredAgent) -> Vec<Finding> {
    let StoredAgent { state, owner, ticket, backlog, .. } = found;
    let idle = state.as_deref() == Some("idle") && owner.is_none() && ticket.is_none() && *backlog == 0;
    let detail = format!(
        "every turn ended, and it is {}, owner {owner:?}, ticket {ticket:?}, {backlog} waiting",
        state.as_deref().unwrap_or("gone")
    );
    if idle { Vec::new() } else { vec![Finding::new(Violation::PostFence, agent, detail)] }
}
