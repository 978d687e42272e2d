//! What a run broke: every result stream and transcript against the ledger and an undisturbed run, every manifest
//! against the object store.
//!
//! Pure: plain values in, findings out. A finding is one fault of one turn (or of an agent, an object or the queue,
//! where no turn can be named).

mod agents;
mod manifests;
mod rest;
mod streams;
mod words;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use turnmill_schema::{AgentId, TurnId};

use super::kept::Kept;
use super::ledger::Acknowledged;
use super::stored::Stored;

/// Which promise is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// Acknowledged, and has no End, or lacks tokens, its transcript entry or its keys.
    Lost,
    /// More than one End, one index with two tokens, two transcript entries, or a second turn under one key.
    Duplicated,
    /// Turns of an agent that ran, or are remembered, in another order than enqueued, or at once.
    OutOfOrder,
    /// Other words than undisturbed.
    Diverged,
    /// Written by a worker that had lost its lease, or after the End; or keys that contradict the end.
    PostFence,
    /// Names a segment that is not in the store, or leads nowhere; or an object that is no whole segment.
    Manifest,
    /// Held or kept, and nobody's, once every turn has ended and every worker has left.
    Leftover,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which.
    pub violation: Violation,
    /// The turn, or else the agent, the object or the queue.
    pub subject: String,
    /// What was found.
    pub detail: String,
}

impl Finding {
    /// `detail` is wrong with `subject`.
    pub fn new(violation: Violation, subject: impl fmt::Display, detail: impl Into<String>) -> Self {
        Self { violation, subject: subject.to_string(), detail: detail.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.violation {
            Violation::Lost => "lost",
            Violation::Duplicated => "duplicated",
            Violation::OutOfOrder => "out of order",
            Violation::Diverged => "diverged",
            Violation::PostFence => "post-fence write",
            Violation::Manifest => "broken manifest",
            Violation::Leftover => "left over",
        };
        write!(f, "{kind}: {}: {}", self.subject, self.detail)
    }
}

/// The same turns, in the ledger's order, as an undisturbed worker ran them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Undisturbed {
    /// The id under which each turn of the ledger ran there.
    pub turns: Vec<TurnId>,
    /// What its Redis holds.
    pub stored: Stored,
}

/// Everything that is wrong with `stored`, whose K and V are `kept`.
pub fn audit(
    ledger: &[Acknowledged],
    stored: &Stored,
    kept: &Kept,
    undisturbed: &Undisturbed,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for known in ledger {
        findings.extend(streams::check(known.turn, stored.turns.get(&known.turn)));
    }
    for (agent, turns) in by_agent(ledger) {
        findings.extend(agents::check(agent, &turns, stored));
    }
    findings.extend(manifests::check(stored, kept));
    findings.extend(rest::check(ledger, stored));
    findings.extend(words::check(ledger, stored, undisturbed));
    findings
}

/// How many turns were gone on with after a worker lost them with tokens published.
pub fn resumed(ledger: &[Acknowledged], stored: &Stored) -> usize {
    let turns = ledger.iter().filter_map(|known| stored.turns.get(&known.turn));
    turns.filter(|turn| turn.begins().any(|begin| begin.resume_from > 0)).count()
}

/// Each agent's turns, in order.
fn by_agent(ledger: &[Acknowledged]) -> BTreeMap<&AgentId, Vec<TurnId>> {
    let mut agents: BTreeMap<&AgentId, Vec<TurnId>> = BTreeMap::new();
    for known in ledger {
        agents.entry(&known.agent).or_default().push(known.turn);
    }
    agents
}
