//! What belongs to no acknowledged turn: a queue at rest counts nothing and holds nothing nobody was told of.

use std::collections::HashSet;

use super::{Finding, Violation};
use crate::chaos::ledger::Acknowledged;
use crate::chaos::stored::{Stored, StoredQueue};

/// What is left over in `stored`.
pub(super) fn check(ledger: &[Acknowledged], stored: &Stored) -> Vec<Finding> {
    let turns: HashSet<_> = ledger.iter().map(|known| known.turn).collect();
    let agents: HashSet<_> = ledger.iter().map(|known| &known.agent).collect();
    let strange_turns = stored.turns.keys().filter(|turn| !turns.contains(turn));
    let strange_agents = stored.agents.keys().filter(|agent| !agents.contains(agent));
    let mut findings: Vec<Finding> = strange_turns
        .map(|turn| Finding::new(Violation::Duplicated, turn, "no producer was told of it"))
        .chain(strange_agents.map(|agent| {
            Finding::new(Violation::PostFence, agent, "it has keys and no turn that a producer was told of")
        }))
        .collect();
    if stored.queue != StoredQueue::default() {
        let detail = format!("every turn ended, and it is not at rest: {:?}", stored.queue);
        findings.push(Finding::new(Violation::PostFence, "the queue", detail));
    }
    findings
}
