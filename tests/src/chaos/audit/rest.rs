//! Turns and agents that no producer was told of.
//!
//! What else a queue at rest must not hold (tickets, counts, keys without an owner) is `leaks`' to find.

use std::collections::HashSet;

use super::{Finding, Violation};
use crate::chaos::ledger::Acknowledged;
use crate::chaos::stored::Stored;

/// What is in `stored` and in no producer's ledger.
pub(super) fn check(ledger: &[Acknowledged], stored: &Stored) -> Vec<Finding> {
    let turns: HashSet<_> = ledger.iter().map(|known| known.turn).collect();
    let agents: HashSet<_> = ledger.iter().map(|known| &known.agent).collect();
    let strange_turns = stored.turns.keys().filter(|turn| !turns.contains(turn));
    let strange_agents = stored.agents.keys().filter(|agent| !agents.contains(agent));
    strange_turns
        .map(|turn| Finding::new(Violation::Duplicated, turn, "no producer was told of it"))
        .chain(strange_agents.map(|agent| {
            Finding::new(Violation::PostFence, agent, "it has keys and no turn that a producer was told of")
        }))
        .collect()
}
