//! What a worker does with a turn it has leased: publish, end it, give it back.
//!
//! Invariant: none of it writes anything once another lease began or the turn ended.

use std::time::Duration;

use turnmill_schema::envelope::EnvelopeError;
use turnmill_schema::{AgentId, DeadReason, Delta, Event, Manifest, Outcome, Priority};
use turnmill_worker::broker::{BrokerError, Ending, Fence, Retry};

use super::conclude::{Conclusion, Retention};
use super::ready::LeaseKey;
use super::state::{Place, State};
use super::{MemorySettings, Mutation};

impl State {
    pub(super) fn append(&mut self, lease: &LeaseKey, delta: &Delta) -> Result<(), BrokerError> {
        if delta.tokens.is_empty() {
            let reason = "a delta without tokens has no place of its own; publish its text with a token";
            return Err(EnvelopeError::Encode(reason.into()).into());
        }
        let (now_ms, fenced) = (self.now_ms, BrokerError::Fenced { turn: lease.turn });
        let is_fenced = self.mutation != Mutation::NoFence;
        let turn = self.turns.get_mut(&lease.turn).ok_or(fenced.clone())?;
        let (epoch, found) = turn.top();
        if is_fenced && epoch != lease.epoch {
            return Err(fenced);
        }
        if found < delta.index {
            return Err(BrokerError::Gap { turn: lease.turn, expected: delta.index, found });
        }
        if is_fenced && found >= delta.published() {
            return Ok(());
        }
        turn.publish(epoch, delta.published(), now_ms, Event::Delta(delta.clone()));
        Ok(())
    }

    /// Whether the worker continues with the agent's next turn.
    pub(super) fn finish(
        &mut self,
        worker: &MemorySettings,
        lease: &LeaseKey,
        ending: &Ending,
    ) -> Result<bool, BrokerError> {
        let fenced = BrokerError::Fenced { turn: lease.turn };
        let turn = self.turns.get(&lease.turn).ok_or(fenced.clone())?;
        if turn.ended.is_some() {
            return if turn.epoch == lease.epoch {
                Ok(self.has_continued(worker, lease))
            } else {
                Err(fenced)
            };
        }
        if !self.is_held(worker, lease) {
            return Err(fenced);
        }
        let (_, found) = self.turns[&lease.turn].top();
        if found != ending.published {
            return Err(BrokerError::Gap { turn: lease.turn, expected: ending.published, found });
        }
        let goes_on = ending.continues && self.may_go_on(worker, lease);
        let conclusion = Conclusion {
            turn: lease.turn,
            epoch: lease.epoch,
            end: ending.end.clone(),
            reason: ending.reason.map_or("", DeadReason::as_str).to_owned(),
            entry: ending.entry.clone(),
            reply: ending.reply.clone(),
            manifest: ending.manifest,
            retention: match ending.reply {
                Some(_) => Retention { result_ttl_ms: worker.keep_stream_ms, ..Retention::from(worker) },
                None => Retention::from(worker),
            },
        };
        let continued = self.conclude(conclusion, goes_on);
        if continued {
            self.agent_mut(&lease.agent).continues += 1;
            // The worker has the ticket for another whole lease.
            let (ticket, now_ms) = (lease.ticket, self.now_ms);
            self.ready_mut(ticket.priority).keep(ticket.number, &worker.worker, now_ms);
        }
        Ok(continued)
    }

    /// Whether the worker may go on with the agent: within its budget, or while nobody else waits.
    fn may_go_on(&self, worker: &MemorySettings, lease: &LeaseKey) -> bool {
        let continues = self.agents[&lease.agent].continues;
        worker.max_continues > 0
            && (continues < worker.max_continues || !self.others_wait(worker, &lease.agent))
    }

    /// Whether somebody waits for a worker: an agent with an undelivered ticket, one that is due, one whose worker is silent
    /// for a whole lease, or one of the same tenant that waits for a place.
    fn others_wait(&self, worker: &MemorySettings, id: &AgentId) -> bool {
        let has_undelivered = Priority::ALL.iter().any(|priority| self.ready(*priority).waiting_len() > 0);
        let is_due = self.delayed.first().is_some_and(|(due_ms, _)| *due_ms <= self.now_ms);
        let is_parked = self.tenants.get(id.tenant()).is_some_and(|tenant| !tenant.parked.is_empty());
        if self.mutation == Mutation::BlindContinues {
            return has_undelivered;
        }
        has_undelivered || is_due || is_parked || !self.silent(worker).is_empty()
    }

    /// Repeated after a lost reply: whether the worker still has the ticket it continued with.
    fn has_continued(&self, worker: &MemorySettings, lease: &LeaseKey) -> bool {
        let ticket = lease.ticket;
        let kept = self.agents.get(&lease.agent).is_some_and(|agent| {
            agent.continues > 0 && agent.epoch == lease.epoch + 1 && agent.place == Place::Ready(ticket)
        });
        let pending = self.ready(ticket.priority).pending(ticket.number);
        kept && pending.is_some_and(|pending| pending.worker == worker.worker)
    }

    /// Whether the lease is the newest of its agent and the turn its head.
    fn is_held(&self, worker: &MemorySettings, lease: &LeaseKey) -> bool {
        let Some(agent) = self.agents.get(&lease.agent) else { return false };
        let is_head = agent.backlog.front() == Some(&lease.turn);
        if self.mutation == Mutation::NoFence {
            return is_head;
        }
        let is_ours = matches!(&agent.place, Place::Leased { worker: owner, .. } if *owner == worker.worker);
        is_head && is_ours && agent.epoch == lease.epoch
    }

    pub(super) fn requeue(
        &mut self,
        worker: &MemorySettings,
        lease: &LeaseKey,
        manifest: Option<Manifest>,
    ) -> Result<(), BrokerError> {
        if self.was_requeued(lease) {
            return Ok(());
        }
        if !self.is_held(worker, lease) {
            return Err(BrokerError::Fenced { turn: lease.turn });
        }
        let turn = self.turn_mut(lease.turn);
        turn.barren = turn.barren_now().saturating_sub(1);
        turn.attempts -= 1;
        if manifest.is_some() {
            self.agent_mut(&lease.agent).set_manifest(manifest, lease.epoch);
        }
        self.requeue_at(lease, 0);
        Ok(())
    }

    /// One that comes too late is ignored.
    pub(super) fn advance(&mut self, lease: &Fence, manifest: Manifest) {
        let is_fenced = self.mutation != Mutation::NoManifestFence;
        if let Some(agent) = self.agents.get_mut(&lease.agent)
            && (lease.epoch >= agent.manifest_epoch || !is_fenced)
        {
            agent.set_manifest(Some(manifest), lease.epoch);
        }
    }

    pub(super) fn retry(
        &mut self,
        worker: &MemorySettings,
        lease: &LeaseKey,
        delay: Duration,
        (reason, text): (DeadReason, &str),
    ) -> Result<Retry, BrokerError> {
        if self.was_requeued(lease) {
            return Ok(Retry::Later);
        }
        let turn = self.turns.get(&lease.turn);
        if turn.is_some_and(|turn| turn.ended.is_some() && turn.epoch == lease.epoch) {
            return Ok(Retry::Dead);
        }
        let Some(turn) = turn.filter(|_| self.is_held(worker, lease)) else {
            return Err(BrokerError::Fenced { turn: lease.turn });
        };
        let barren = turn.barren_now();
        if barren < worker.max_attempts {
            self.turn_mut(lease.turn).barren = barren;
            self.requeue_at(lease, self.now_ms.saturating_add(delay.as_millis() as u64));
            return Ok(Retry::Later);
        }
        let error = format!("gave up after {barren} attempts that made no progress; the last one: {text}");
        let (at, retention) = ((lease.epoch, self.now_ms), Retention::from(worker));
        let mut end = Conclusion::without_worker((lease.turn, turn), at, (Outcome::Failed, error), retention);
        end.reason = reason.as_str().to_owned();
        self.conclude(end, false);
        Ok(Retry::Dead)
    }

    fn was_requeued(&self, lease: &LeaseKey) -> bool {
        self.turns.get(&lease.turn).is_some_and(|turn| turn.requeued == Some(lease.epoch))
    }

    /// The turn stays the head of its agent's backlog; its agent waits with it, so order holds.
    fn requeue_at(&mut self, lease: &LeaseKey, due_ms: u64) {
        let turn = self.turn_mut(lease.turn);
        turn.progress = turn.top().1;
        turn.requeued = Some(lease.epoch);
        let id = &lease.agent;
        self.unlease(id);
        self.drop_ticket(lease.ticket);
        self.make_runnable_at(id, due_ms);
    }
}
