//! The one ending of a turn, shared by every step that ends one.

use turnmill_schema::{
    AgentId, Delta, End, Event, Manifest, Outcome, Timing, TranscriptEntry, TurnId, Usage,
};

use super::operate::DeadLetter;
use super::ready::TicketKey;
use super::state::{Ended, Hold, PACE_ENDS, Place, State, TurnRecord};

/// What an ended turn takes besides its texts and tokens, roughly.
const ENDED_OVERHEAD_BYTES: u64 = 1250;

/// How long what is left of an ended turn is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retention {
    pub(super) result_ttl_ms: u64,
    pub(super) outcome_ttl_ms: u64,
}

/// How a turn ends.
pub(super) struct Conclusion {
    pub(super) turn: TurnId,
    /// Below the End's; everything its worker may still publish is refused.
    pub(super) epoch: u64,
    pub(super) end: End,
    /// Of a dead letter.
    pub(super) reason: String,
    pub(super) entry: Option<TranscriptEntry>,
    pub(super) reply: Option<Delta>,
    /// None: the old one stays, or goes together with its history.
    pub(super) manifest: Option<Manifest>,
    pub(super) retention: Retention,
}

impl Conclusion {
    /// The end of a turn that no worker ended.
    pub(super) fn without_worker(
        (id, turn): (TurnId, &TurnRecord),
        (epoch, now_ms): (u64, u64),
        (outcome, error): (Outcome, String),
        retention: Retention,
    ) -> Self {
        let waited_ms = now_ms.saturating_sub(turn.enqueued_ms);
        let timing = Timing { queued_ms: waited_ms, first_token_ms: None, total_ms: waited_ms };
        let usage = Usage::default();
        let end = End { outcome, finish: None, stop: None, error: Some(error), usage, timing, worker: None };
        let (reason, entry, reply, manifest) = Default::default();
        Self { turn: id, epoch, end, reason, entry, reply, manifest, retention }
    }
}

impl State {
    /// Ends the head of its agent's backlog. True if the caller's worker goes on with the agent's next turn under
    /// the same ticket, if `keep_ticket` asks for that.
    pub(super) fn conclude(&mut self, conclusion: Conclusion, keep_ticket: bool) -> bool {
        let turn = &self.turns[&conclusion.turn];
        let (id, enqueued_ms) = (turn.agent.clone(), turn.enqueued_ms);
        let (epoch, failed) = (conclusion.epoch, conclusion.end.outcome == Outcome::Failed);
        let is_anew = turn.new_session && conclusion.end.outcome == Outcome::Completed;
        let manifest = conclusion.manifest;
        self.end_turn(conclusion);
        self.unlease(&id);
        self.stop_waiting(&id);
        self.open.remove(&(enqueued_ms, id.clone()));
        let agent = self.agent_mut(&id);
        agent.backlog.pop_front();
        agent.epoch = epoch + 1;
        if manifest.is_some() || is_anew {
            agent.set_manifest(manifest, epoch);
        }
        if failed && agent.halts_on_dead {
            agent.hold.get_or_insert(Hold::Halted);
        }
        if let Some(next) = self.head(&id) {
            self.open.insert((self.turns[&next].enqueued_ms, id.clone()));
        }
        if let Place::Ready(ticket) | Place::Leased { ticket, .. } = self.agent_mut(&id).place {
            if keep_ticket && self.may_keep(ticket, &id) {
                self.agent_mut(&id).place = Place::Ready(ticket);
                return true;
            }
            self.drop_ticket(ticket);
        }
        self.make_runnable(&id);
        false
    }

    /// Whether the ticket can stand for the agent's head: one of another priority would let it jump its queue, or wait
    /// in the wrong one.
    fn may_keep(&self, ticket: TicketKey, id: &AgentId) -> bool {
        let agent = &self.agents[id];
        let head = agent.backlog.front().map(|head| &self.turns[head]);
        let fits = |head: &TurnRecord| head.not_before_ms <= self.now_ms && head.priority == ticket.priority;
        agent.hold.is_none() && head.is_some_and(fits)
    }

    /// Turns that other workers completed, among the `newest` last ones that ended and are no dead letters.
    pub(super) fn completed_by_others(&self, worker: &str, newest: usize) -> Vec<TurnId> {
        let is_another = |turn: &TurnId| {
            let end = self.turns.get(turn).and_then(|turn| Some(&turn.ended.as_ref()?.end));
            end.is_some_and(|end| {
                end.outcome == Outcome::Completed
                    && end.worker.as_deref().is_some_and(|ended| ended != worker)
            })
        };
        self.ended.iter().rev().take(newest).copied().filter(is_another).collect()
    }

    /// The turn's own part of its end.
    pub(super) fn end_turn(&mut self, conclusion: Conclusion) {
        let Conclusion { turn: id, epoch, end, reason, entry, reply, retention, .. } = conclusion;
        let now_ms = self.now_ms;
        let turn = self.turn_mut(id);
        let (_, tokens) = turn.top();
        // The bumped epoch refuses everything a worker may still append.
        turn.publish(epoch + 1, tokens, now_ms, Event::End(end.clone()));
        turn.epoch = epoch;
        let texts = turn.results.iter().map(|entry| event_bytes(&entry.event)).sum::<u64>();
        let (outcome, bytes) = (end.outcome, ENDED_OVERHEAD_BYTES + texts);
        let results_until_ms = now_ms.saturating_add(retention.result_ttl_ms);
        let forget_ms = now_ms.saturating_add(retention.outcome_ttl_ms);
        turn.ended = Some(Ended { end, reply, results_until_ms, forget_ms, bytes });
        let (agent, priority, attempts, new_session) =
            (turn.agent.clone(), turn.priority, turn.attempts, turn.new_session);
        let key = turn.idempotency.clone();
        if outcome == Outcome::Failed {
            self.dead.push(DeadLetter { turn: id, agent: agent.clone(), reason, attempts });
        } else {
            turn.turn = None;
            self.ended.push_back(id);
            self.retained_bytes += bytes;
        }
        if let Some(keyed) =
            key.and_then(|key| self.idempotency.get_mut(&key)).filter(|keyed| keyed.turn == id)
        {
            keyed.until_ms = Some(forget_ms);
        }
        self.commit(&agent, outcome, new_session, entry);
        self.ended_turns[outcome as usize] += 1;
        self.open_turns[priority as usize] -= 1;
        self.tenant(&agent, |tenant| tenant.open -= 1);
        self.ends_ms.push_back(now_ms);
        if self.ends_ms.len() > PACE_ENDS {
            self.ends_ms.pop_front();
        }
    }

    /// What a completed turn adds to its agent's history.
    fn commit(&mut self, agent: &AgentId, outcome: Outcome, anew: bool, entry: Option<TranscriptEntry>) {
        if let Some(entry) = entry.filter(|_| outcome == Outcome::Completed && !agent.is_lone()) {
            let transcript = &mut self.agent_mut(agent).transcript;
            if anew {
                transcript.clear();
            }
            transcript.push(entry);
        }
    }
}

fn event_bytes(event: &Event) -> u64 {
    match event {
        Event::Delta(delta) => (delta.text.len() + 4 * delta.tokens.len()) as u64,
        Event::End(end) => end.error.as_ref().map_or(0, String::len) as u64,
        Event::Begin(_) => 0,
    }
}
