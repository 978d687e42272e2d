//! One attempt at a turn.

use std::sync::Arc;
use std::time::Duration;

use turnmill_schema::{
    DeadReason, Delta, Digest, End, FinishReason, Manifest, Outcome, StoredTurn, Timing, TranscriptEntry,
    TurnId, Usage,
};
use turnmill_worker::broker::{Broker, BrokerError, Claim, Ending, Lease, Retry, Ticket};

use super::plan::Plan;
use super::worker::Process;

/// Replies of so many tokens are kept with their outcome.
const SHORT_REPLY: usize = 6;

/// How an attempt goes on.
enum Step {
    Publish(Delta),
    End(Outcome),
    Release,
    Retry,
    Stop,
}

/// What an attempt works on.
struct Work {
    lease: Arc<Lease>,
    plan: Plan,
    history: Vec<u32>,
    reply: Vec<u32>,
    published: usize,
    expires_ms: Option<u64>,
}

impl Process {
    /// Runs the turn as far as this worker gets. Some: the worker continues with the agent's next turn.
    pub(super) async fn attempt(&self, claim: Claim) -> Option<Ticket> {
        let mut work = self.load(claim)?;
        loop {
            self.stage.sleep_below(self.stage.world.lease_ms / 3).await;
            match self.next_step(&work) {
                Step::Publish(delta) => {
                    let append = async || self.broker.append(&work.lease, &delta).await;
                    self.answered(&work.lease, self.insist(append).await)?;
                    work.published = delta.published() as usize;
                }
                Step::End(outcome) => return self.end(&work, outcome).await,
                Step::Release => {
                    self.note_ending(&work.lease);
                    self.note_requeued(&work.lease);
                    let manifest = self.stage.dice.chance(500).then(|| said_by(&work.lease));
                    let requeue = async || self.broker.requeue(&work.lease, manifest.as_ref()).await;
                    return self.answered(&work.lease, self.insist(requeue).await).and(None);
                }
                Step::Retry => return self.fail(&work).await,
                Step::Stop => {
                    self.advance_some_time(&work.lease).await;
                    return None;
                }
            }
        }
    }

    /// What the claim says must be what was published before: a beginning of the only right reply.
    fn load(&self, claim: Claim) -> Option<Work> {
        if let Some(manifest) = &claim.manifest {
            let key = (claim.lease.agent.clone(), claim.lease.epoch);
            self.stage.ledger().manifests.insert(key, who_said(manifest));
        }
        let Ok(StoredTurn::Inline(turn)) = claim.turn else { return None };
        let number: usize = turn.messages[0].content.parse().expect("messages are numbers");
        let plan = self.stage.world.plans[number].clone();
        let reply = plan.reply(&claim.history.tokens);
        let published: Vec<u32> = claim.published.into_iter().flat_map(|delta| delta.tokens).collect();
        if !reply.starts_with(&published) {
            let turn = claim.lease.turn;
            self.stage.violation(format!("{turn} is resumed after {published:?}, and makes {reply:?}"));
            return None;
        }
        let now_ms = self.stage.clock.now();
        Some(Work {
            lease: claim.lease,
            plan,
            history: claim.history.tokens.clone(),
            published: published.len(),
            reply,
            expires_ms: claim.expires_in.map(|left| now_ms + left.as_millis() as u64),
        })
    }

    fn next_step(&self, work: &Work) -> Step {
        let stage = &self.stage;
        if work.lease.is_lost() {
            return Step::Stop;
        }
        if work.expires_ms.is_some_and(|at_ms| stage.clock.now() >= at_ms) {
            return Step::End(Outcome::Expired);
        }
        if self.is_draining() || stage.fails(10) {
            return Step::Release;
        }
        if work.plan.is_poison || stage.fails(20) {
            return Step::Retry;
        }
        let rest = &work.reply[work.published..];
        if rest.is_empty() {
            return Step::End(Outcome::Completed);
        }
        let tokens = rest[..rest.len().min(stage.dice.between(1, 3) as usize)].to_vec();
        let index = work.published as u32;
        Step::Publish(Delta { index, tokens, ..Delta::default() })
    }

    async fn end(&self, work: &Work, outcome: Outcome) -> Option<Ticket> {
        self.note_ending(&work.lease);
        let manifest = self.stage.dice.chance(500).then(|| said_by(&work.lease));
        let ending = Ending { manifest, ..work.ending(outcome, &self.name, self.stage.dice.chance(500)) };
        let finish = async || self.broker.finish(&work.lease, &ending).await;
        let next = self.answered(&work.lease, self.insist(finish).await)?;
        self.note_end(work.lease.turn, outcome);
        if next.is_none() {
            self.advance_some_time(&work.lease).await;
        }
        next
    }

    /// The store acknowledges something late, whoever has the agent by then.
    async fn advance_some_time(&self, lease: &Lease) {
        if self.stage.dice.chance(300) {
            self.stage.sleep_below(self.stage.world.lease_ms).await;
            let advance = async || self.broker.advance(&lease.fence(), &said_by(lease)).await;
            self.answered(lease, self.insist(advance).await);
        }
    }

    async fn fail(&self, work: &Work) -> Option<Ticket> {
        self.note_ending(&work.lease);
        self.note_requeued(&work.lease);
        let delay = Duration::from_millis(self.stage.dice.below(200));
        let retry = async || self.broker.retry(&work.lease, delay, DeadReason::Attempts, "a fault").await;
        if self.answered(&work.lease, self.insist(retry).await)? == Retry::Dead {
            self.note_end(work.lease.turn, Outcome::Failed);
        }
        None
    }

    /// None where the lease is lost.
    fn answered<T>(&self, lease: &Lease, answer: Result<T, BrokerError>) -> Option<T> {
        match answer {
            Ok(answer) => Some(answer),
            Err(BrokerError::Fenced { .. }) => None,
            Err(error) => {
                self.stage.violation(format!("{} under {}: {error}", self.name, lease.turn));
                None
            }
        }
    }

    fn note_requeued(&self, lease: &Lease) {
        self.stage.ledger().requeued.insert((lease.turn, lease.epoch));
    }

    fn note_end(&self, turn: TurnId, outcome: Outcome) {
        self.stage.ledger().ended.insert(turn, outcome);
    }
}

/// A manifest that tells which lease said it.
fn said_by(lease: &Lease) -> Manifest {
    let mut last = [0; 32];
    last[..8].copy_from_slice(&lease.epoch.to_le_bytes());
    Manifest { namespace: Digest([0; 32]), tokens: 0, shared_tokens: 0, last: Digest(last) }
}

fn who_said(manifest: &Manifest) -> u64 {
    let (epoch, _) = manifest.last.as_bytes().split_first_chunk().expect("a digest has 32 bytes");
    u64::from_le_bytes(*epoch)
}

impl Work {
    fn ending(&self, outcome: Outcome, worker: &str, continues: bool) -> Ending {
        let is_completed = outcome == Outcome::Completed;
        let entry = TranscriptEntry {
            turn: self.lease.turn,
            messages: Vec::new(),
            keep: self.history.len() as u32,
            tokens: self.plan.adds(&self.history),
        };
        let end = End {
            outcome,
            finish: is_completed.then_some(FinishReason::Stop),
            error: None,
            usage: Usage::default(),
            timing: Timing::default(),
            worker: Some(worker.to_owned()),
        };
        let is_short = is_completed && self.reply.len() <= SHORT_REPLY;
        let whole = || Delta { tokens: self.reply.clone(), ..Delta::default() };
        Ending {
            published: self.published as u32,
            end,
            entry: is_completed.then_some(entry),
            reply: is_short.then(whole),
            reason: None,
            continues,
            manifest: None,
        }
    }
}
