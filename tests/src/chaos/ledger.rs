//! What was promised: every turn that Redis acknowledged to a producer, in order, and what its reader was told.
//!
//! Invariant: turns stand in the order of their last acknowledgement. One producer has each agent, and asks for its
//! next turn only after the one before was acknowledged, so this is each agent's order.

use std::sync::{Mutex, MutexGuard, PoisonError};

use turnmill_client::NewTurn;
use turnmill_schema::{AgentId, TenantName, TurnId};

/// Tokens and text of a reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Text.
    pub text: String,
}

/// A turn that a producer was told is in the queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Acknowledged {
    /// The id the producer was given.
    pub turn: TurnId,
    /// Whose backlog it waits in.
    pub agent: AgentId,
    /// What was asked for.
    pub request: NewTurn,
    /// What a reader of the result saw, where one saw all of it.
    pub told: Option<Words>,
}

impl Acknowledged {
    /// `request`, acknowledged as `turn` to a producer of `tenant`.
    pub fn new(tenant: &TenantName, turn: TurnId, request: NewTurn) -> Self {
        let agent = match &request.agent {
            Some(agent) => AgentId::named(tenant, agent),
            None => AgentId::lone(tenant, turn),
        };
        Self { turn, agent, request, told: None }
    }
}

/// Shared by all producers of a run.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    acknowledged: Vec<Acknowledged>,
    re_enqueued: u64,
}

impl Ledger {
    /// Notes that a turn is in the queue.
    pub fn acknowledge(&self, turn: Acknowledged) {
        self.lock().acknowledged.push(turn);
    }

    /// Notes that a turn which Redis forgot is in the queue again, as `again`: after everything else.
    pub fn re_enqueue(&self, forgotten: TurnId, again: Acknowledged) {
        let mut inner = self.lock();
        inner.acknowledged.retain(|known| known.turn != forgotten);
        inner.acknowledged.push(again);
        inner.re_enqueued += 1;
    }

    /// Notes what a reader saw of a turn that ended.
    pub fn tell(&self, turn: TurnId, words: Words) {
        if let Some(known) = self.lock().acknowledged.iter_mut().find(|known| known.turn == turn) {
            known.told = Some(words);
        }
    }

    /// Every turn, in order.
    pub fn turns(&self) -> Vec<Acknowledged> {
        self.lock().acknowledged.clone()
    }

    /// How many turns there are.
    pub fn len(&self) -> usize {
        self.lock().acknowledged.len()
    }

    /// True where nothing was acknowledged.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often a turn was enqueued again because Redis forgot it.
    pub fn re_enqueued(&self) -> u64 {
        self.lock().re_enqueued
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_enqueued_again_is_last_and_counted() {
        let tenant = TenantName::new("t").expect("a name");
        let known = |text: &str| Acknowledged::new(&tenant, TurnId::new(0), NewTurn::user(text));
        let (first, second, again) = (known("1"), known("2"), known("1"));
        assert!(first.agent.is_lone());
        let ledger = Ledger::default();
        ledger.acknowledge(first.clone());
        ledger.acknowledge(second.clone());
        ledger.re_enqueue(first.turn, again.clone());
        ledger.tell(second.turn, Words { tokens: vec![1], text: "x".into() });
        let turns = ledger.turns();
        assert_eq!(turns.iter().map(|turn| turn.turn).collect::<Vec<_>>(), [second.turn, again.turn]);
        assert_eq!(
            (turns[0].told.clone().map(|words| words.tokens), ledger.re_enqueued()),
            (Some(vec![1]), 1)
        );
    }
}
