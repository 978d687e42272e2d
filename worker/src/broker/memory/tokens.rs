//! Tokens between the queue and its workers: reading, keeping alive, taking over, putting back; and agents that waited
//! for a time or a place.

use std::collections::BTreeMap;

use turnmill_schema::{AgentId, Priority};

use super::ready::Token;
use super::state::{Place, State};
use super::{MemorySettings, Mutation};
use crate::broker::{Lease, ReadyToken};

/// After so many tokens of interactive agents one of a batch agent comes first, where one waits: so neither starves.
const INTERACTIVE_A_BATCH: usize = 3;

impl State {
    /// At most `room` tokens; `since_batch` counts the interactive ones since the last one of a batch agent.
    pub(super) fn read(&mut self, worker: &str, room: usize, since_batch: &mut usize) -> Vec<ReadyToken> {
        let now_ms = self.now_ms;
        let share = (*since_batch + room) / (INTERACTIVE_A_BATCH + 1);
        let turns = [(Priority::Batch, share), (Priority::Interactive, room), (Priority::Batch, room)];
        let mut tokens = Vec::new();
        for (priority, most) in turns {
            while tokens.len() < most
                && let Some((number, agent)) = self.ready_mut(priority).deliver(worker, now_ms)
            {
                tokens.push(ready_token(agent, Token { priority, number }));
            }
        }
        let has_batch = tokens.iter().any(|token: &ReadyToken| token.priority == Priority::Batch);
        let since = if has_batch { 0 } else { *since_batch + tokens.len() };
        *since_batch = since.min(INTERACTIVE_A_BATCH);
        tokens
    }

    /// Delivers pending tokens again, to `worker`: at most `room` of those that `is_free` picks, which is told whose
    /// they are and for how many milliseconds nobody kept them.
    pub(super) fn claim_pending(
        &mut self,
        worker: &str,
        room: usize,
        is_free: impl Fn(Token, &str, u64) -> bool,
    ) -> Vec<ReadyToken> {
        let now_ms = self.now_ms;
        let mut tokens = Vec::new();
        for priority in Priority::ALL {
            let pending = self.ready(priority).all_pending();
            let free = pending.filter(|(number, held)| {
                let idle_ms = now_ms.saturating_sub(held.since_ms);
                is_free(Token { priority, number: *number }, &held.worker, idle_ms)
            });
            let free = free.map(|(number, held)| (held.agent.clone(), Token { priority, number }));
            let free: Vec<(AgentId, Token)> = free.take(room - tokens.len()).collect();
            for (agent, token) in free {
                self.ready_mut(priority).claim(token.number, worker, now_ms);
                tokens.push(ready_token(agent, token));
            }
        }
        tokens
    }

    /// Which of the leases are lost. An unleased token that is lost shows when it is leased.
    pub(super) fn heartbeat(&mut self, worker: &str, held: &[Lease], unleased: &[ReadyToken]) -> Vec<Lease> {
        if self.mutation == Mutation::NoHeartbeat {
            return Vec::new();
        }
        let now_ms = self.now_ms;
        let mut lost = Vec::new();
        for lease in held {
            let token = Token::from(&lease.token);
            if self.leases(worker, lease) {
                self.ready_mut(token.priority).keep(token.number, worker, now_ms);
            } else {
                lost.push(lease.clone());
            }
        }
        for ready in unleased {
            let token = Token::from(ready);
            let of_priority = self.ready_mut(token.priority);
            if of_priority.pending(token.number).is_some_and(|pending| pending.worker == worker) {
                of_priority.keep(token.number, worker, now_ms);
            }
        }
        lost
    }

    fn leases(&self, worker: &str, lease: &Lease) -> bool {
        self.agents.get(&lease.token.agent).is_some_and(|agent| {
            let is_ours = matches!(&agent.place, Place::Leased { worker: owner, .. } if owner == worker);
            is_ours && agent.epoch == lease.epoch
        })
    }

    /// Makes a token that was read but not leased readable by others.
    pub(super) fn put_back(&mut self, worker: &str, token: &ReadyToken) {
        let number = Token::from(token);
        let pending = self.ready(number.priority).pending(number.number);
        if pending.is_none_or(|pending| pending.worker != worker) {
            return;
        }
        self.drop_token(number);
        let is_agents = self.agents.get(&token.agent).is_some_and(|agent| match agent.place {
            // Leased: the token was taken over from a silent worker, whose lease ends here.
            Place::Ready(held) | Place::Leased { token: held, .. } => held == number,
            _ => false,
        });
        if is_agents {
            self.unlease(&token.agent);
            self.let_run(&token.agent);
        }
    }

    /// Gives agents a token whose head is due, or whose tenant has a place.
    pub(super) fn promote(&mut self, worker: &MemorySettings) {
        while let Some((due_ms, id)) = self.delayed.first().cloned()
            && due_ms <= self.now_ms
        {
            self.stop_waiting(&id);
            self.add_token(&id);
        }
        // More tokens than there are places would only be parked again.
        let mut given: BTreeMap<&str, u64> = BTreeMap::new();
        let parked: Vec<AgentId> =
            self.tenants.values().flat_map(|tenant| tenant.parked.iter()).map(|(_, id)| id.clone()).collect();
        for id in &parked {
            let more = given.entry(id.tenant()).or_default();
            if self.has_place(id.tenant(), *more, worker.tenant_max_running) {
                *more += 1;
                self.stop_waiting(id);
                self.add_token(id);
            }
        }
    }
}

fn ready_token(agent: AgentId, token: Token) -> ReadyToken {
    ReadyToken { agent, priority: token.priority, shard: 0, entry: token.number.to_string() }
}

impl From<&ReadyToken> for Token {
    /// What is no number is the token of another queue: none has number 0.
    fn from(token: &ReadyToken) -> Self {
        Self { priority: token.priority, number: token.entry.parse().unwrap_or(0) }
    }
}
