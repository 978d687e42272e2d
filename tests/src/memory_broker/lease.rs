//! Leasing the head of an agent's backlog to the worker that holds the agent's ticket.

use std::sync::Arc;
use std::time::Duration;

use turnmill_schema::keys::BacklogEntry;
use turnmill_schema::{AgentId, Begin, Delta, Event, History, Manifest, Outcome, StoredTurn, Turn, TurnId};
use turnmill_worker::broker::{Claim, Ticket};

use super::conclude::{Conclusion, Retention};
use super::ready::TicketKey;
use super::state::{Place, State};
use super::{MemorySettings, Mutation};

/// Attempts in a row that published nothing, after which the next one is told that it runs alone.
const BARREN_BEFORE_ALONE: u32 = 2;

/// A lease that was granted, with everything its run needs.
pub(super) struct Granted {
    entry: BacklogEntry,
    epoch: u64,
    attempt: u32,
    turn: Turn,
    history: History,
    manifest: Option<Manifest>,
    published: Vec<Delta>,
    queued_ms: u64,
    expires_in: Option<Duration>,
    first_token_ms: Option<u64>,
    earlier_epoch: Option<u64>,
    alone: bool,
}

impl Granted {
    /// The claim of the worker that holds `ticket`.
    pub(super) fn claim(self, ticket: &Ticket) -> Claim {
        Claim {
            lease: Arc::new(ticket.leased(self.entry, self.epoch, self.attempt)),
            turn: Ok(StoredTurn::Inline(Box::new(self.turn))),
            history: Arc::new(self.history),
            manifest: self.manifest,
            published: self.published,
            queued_ms: self.queued_ms,
            expires_in: self.expires_in,
            first_token_ms: self.first_token_ms,
            earlier_epoch: self.earlier_epoch,
            alone: self.alone,
        }
    }
}

impl State {
    /// None: the ticket is dealt with.
    pub(super) fn lease(
        &mut self,
        worker: &MemorySettings,
        number: TicketKey,
        id: &AgentId,
    ) -> Option<Granted> {
        let delivery = self.delivery(worker, number)?;
        if self.paused {
            self.return_ticket(&worker.worker, number, id);
            return None;
        }
        let is_checked = self.mutation != Mutation::NoTicketCheck;
        let leasable = self.agents.get(id).is_some_and(|agent| match agent.place {
            Place::Ready(held) | Place::Leased { ticket: held, .. } => held == number || !is_checked,
            _ => false,
        });
        if !leasable {
            self.drop_ticket(number);
            return None;
        }
        loop {
            let head = self.head(id).expect("an agent with a ticket has work");
            if self.is_leased_already(worker, id, head, delivery) {
                return Some(self.granted(id, head));
            }
            if self.is_at_cap(worker, id) {
                self.park(id, head, number);
                return None;
            }
            match self.verdict(worker, head) {
                None => {
                    self.begin(worker, number, id, head, delivery);
                    return Some(self.granted(id, head));
                }
                Some(ending) => {
                    if !self.conclude(ending, true) {
                        return None;
                    }
                }
            }
        }
    }

    /// How often the ticket was delivered, if it is this worker's.
    fn delivery(&self, worker: &MemorySettings, ticket: TicketKey) -> Option<u32> {
        let pending = self.ready(ticket.priority).pending(ticket.number);
        if self.mutation == Mutation::NoTicketCheck {
            return Some(pending.map_or(0, |pending| pending.deliveries));
        }
        pending.filter(|pending| pending.worker == worker.worker).map(|pending| pending.deliveries)
    }

    /// The same delivery leased before, and its reply was lost.
    fn is_leased_already(&self, worker: &MemorySettings, id: &AgentId, head: TurnId, now: u32) -> bool {
        let agent = &self.agents[id];
        let Place::Leased { worker: owner, delivery, .. } = &agent.place else { return false };
        *owner == worker.worker && *delivery == now && self.turns[&head].top().0 == agent.epoch
    }

    /// Whether the agent must wait for a place: its tenant runs as many turns as it may, or others of it wait longer.
    fn is_at_cap(&self, worker: &MemorySettings, id: &AgentId) -> bool {
        let agent = &self.agents[id];
        let is_new = matches!(agent.place, Place::Ready(_)) && worker.tenant_max_running > 0;
        let others = self.tenants.get(id.tenant()).is_some_and(|tenant| !tenant.parked.is_empty());
        is_new
            && (!self.has_place(id.tenant(), 0, worker.tenant_max_running)
                || (others && !agent.waited_for_place))
    }

    /// Whether one more turn of the tenant may run besides `more` that will.
    pub(super) fn has_place(&self, tenant: &str, more: u64, max_running: u64) -> bool {
        let leased = self.tenants.get(tenant).map_or(0, |tenant| tenant.leased);
        max_running == 0 || leased + more < max_running
    }

    /// The agent waits until one of its tenant's turns ends. Agents wait in the order in which their heads were enqueued.
    fn park(&mut self, id: &AgentId, head: TurnId, ticket: TicketKey) {
        self.drop_ticket(ticket);
        let since_ms = self.turns[&head].enqueued_ms;
        self.agent_mut(id).place = Place::Parked { since_ms };
        self.tenant(id, |tenant| {
            tenant.parked.insert((since_ms, id.clone()));
        });
    }

    /// How the head ends at once instead of running.
    fn verdict(&self, worker: &MemorySettings, head: TurnId) -> Option<Conclusion> {
        let turn = &self.turns[&head];
        let late_ms = turn.deadline_ms.and_then(|deadline_ms| self.now_ms.checked_sub(deadline_ms));
        let barren = turn.barren_now();
        let (outcome, error) = if let Some(late_ms) = late_ms {
            let error =
                format!("the deadline had passed by {late_ms} ms when a worker was free; allow more time");
            (Outcome::Expired, error)
        } else if barren >= worker.max_attempts {
            let error =
                format!("gave up after {barren} attempts that made no progress; see the workers' logs");
            (Outcome::Failed, error)
        } else {
            return None;
        };
        let at = (self.next_epoch(head), self.now_ms);
        let mut ending =
            Conclusion::without_worker((head, turn), at, (outcome, error), Retention::from(worker));
        if outcome == Outcome::Failed {
            ending.reason = "attempts".to_owned();
        }
        Some(ending)
    }

    /// Above every epoch that wrote for the turn or leased its agent.
    pub(super) fn next_epoch(&self, head: TurnId) -> u64 {
        let turn = &self.turns[&head];
        let agent_epoch = self.agents.get(&turn.agent).map_or(0, |agent| agent.epoch);
        self.now_ms.max(agent_epoch + 1).max(turn.top().0 + 1)
    }

    /// Counts the attempt before it runs: one that kills its worker cannot be counted after.
    fn begin(
        &mut self,
        worker: &MemorySettings,
        ticket: TicketKey,
        id: &AgentId,
        head: TurnId,
        delivery: u32,
    ) {
        let (epoch, now_ms) = (self.next_epoch(head), self.now_ms);
        let turn = self.turn_mut(head);
        let (_, tokens) = turn.top();
        turn.barren = turn.barren_now() + 1;
        turn.attempts += 1;
        turn.progress = tokens;
        turn.epoch = epoch;
        let begin =
            Begin { epoch, resume_from: tokens, attempt: turn.attempts, worker: worker.worker.clone() };
        turn.publish(epoch, tokens, now_ms, Event::Begin(begin));
        let agent = self.agent_mut(id);
        agent.epoch = epoch;
        agent.waited_for_place = false;
        let leased = Place::Leased { ticket, worker: worker.worker.clone(), delivery };
        if matches!(std::mem::replace(&mut agent.place, leased), Place::Ready(_)) {
            self.tenant(id, |tenant| tenant.leased += 1);
        }
    }

    fn granted(&self, id: &AgentId, head: TurnId) -> Granted {
        let turn = &self.turns[&head];
        let whole = turn.turn.clone().expect("a turn that has not ended is whole");
        let agent = &self.agents[id];
        let kept = !turn.new_session && !id.is_lone();
        let deltas = turn.results.iter().filter_map(|entry| match &entry.event {
            Event::Delta(delta) => Some((entry.at_ms, delta.clone())),
            _ => None,
        });
        let earlier = turn.results.iter().filter(|entry| matches!(entry.event, Event::Begin(_)));
        let earlier = earlier.map(|begin| begin.epoch).filter(|epoch| *epoch < agent.epoch);
        let first_token_at_ms = deltas.clone().next().map(|(at_ms, _)| at_ms);
        let since_enqueue = |ms: u64| ms.saturating_sub(turn.enqueued_ms);
        Granted {
            entry: BacklogEntry {
                turn: head,
                priority: turn.priority,
                enqueued_ms: turn.enqueued_ms,
                not_before_ms: turn.not_before_ms,
                idempotency: None,
            },
            epoch: agent.epoch,
            attempt: turn.attempts,
            turn: whole,
            history: agent.transcript.iter().filter(|_| kept).cloned().collect::<History>(),
            manifest: agent.manifest,
            published: deltas.map(|(_, delta)| delta).collect(),
            queued_ms: since_enqueue(self.now_ms),
            expires_in: turn
                .deadline_ms
                .map(|deadline_ms| Duration::from_millis(deadline_ms.saturating_sub(self.now_ms))),
            first_token_ms: first_token_at_ms.map(since_enqueue),
            earlier_epoch: earlier.max(),
            alone: turn.barren.saturating_sub(1) >= BARREN_BEFORE_ALONE,
        }
    }
}
