//! One turn: what became of it, and running it now or again.

use serde::Serialize;
use turnmill_redis::steps::Promote;
use turnmill_redis::{TurnPlace, TurnRecord, TurnWait};
use turnmill_schema::{AgentName, End, Outcome, Priority, TurnId};

use super::Operator;
use crate::error::ClientError;

/// A turn as it is now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TurnView {
    /// The turn.
    pub turn: TurnId,
    /// Its tenant.
    pub tenant: String,
    /// Its agent; none for a turn that stands alone.
    pub agent: Option<AgentName>,
    /// `queued`, `leased` or `ended`.
    pub state: String,
    /// The agent's own state, until the turn ended: why a queued turn does not run.
    pub agent_state: Option<String>,
    /// Turns of its agent that end before it; none once it ended.
    pub behind: Option<u64>,
    /// Its priority.
    pub priority: Priority,
    /// When it was enqueued, in Unix milliseconds by Redis's clock.
    pub enqueued_ms: u64,
    /// It does not run before, in Unix milliseconds.
    pub not_before_ms: Option<u64>,
    /// It is not worth running after, in Unix milliseconds.
    pub deadline_ms: Option<u64>,
    /// Its idempotency key with its tenant.
    pub idempotency: Option<String>,
    /// Leases that count as attempts.
    pub attempts: u32,
    /// The epoch of its newest lease or of its end.
    pub epoch: Option<u64>,
    /// The worker that runs it or ended it.
    pub worker: Option<String>,
    /// Tokens published so far; none if it ended and its reply has expired.
    pub published: Option<u64>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// When it ended, in Unix milliseconds by Redis's clock.
    pub ended_ms: Option<u64>,
    /// Its terminal result.
    pub end: Option<End>,
}

/// What [`Operator::run_now`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunNow {
    /// It waited for a time and may be leased at once.
    Promoted,
    /// It ended: a dead letter can be replayed.
    Ended(Outcome),
    /// It does not wait for a time: it is queued behind others, runs, or its agent is held.
    NotDelayed,
}

impl Operator {
    /// The turn as it is now.
    pub async fn turn(&self, turn: TurnId) -> Result<TurnView, ClientError> {
        let keys = self.client.keys_of(turn);
        let found = self.redis().ask(|server| server.turn(&keys, turn)).await?;
        let record = found.ok_or_else(|| self.client.unknown_turn(turn))?;
        if record.state == "ended" {
            return Ok(view(turn, record, TurnWait::default()));
        }
        let wait = self.redis().ask(|server| server.turn_wait(&keys, &record.place)).await?;
        Ok(view(turn, record, wait))
    }

    /// Lets a turn that waits for a time (a retry, or a schedule) run at once.
    pub async fn run_now(&self, turn: TurnId) -> Result<RunNow, ClientError> {
        let keys = self.client.keys_of(turn);
        let found = self.redis().ask(|server| server.turn(&keys, turn)).await?;
        let TurnRecord { place: TurnPlace { agent, entry }, end, .. } =
            found.ok_or_else(|| self.client.unknown_turn(turn))?;
        if let Some(end) = end {
            return Ok(RunNow::Ended(end.outcome));
        }
        let head = self.redis().ask(|server| server.agent_head(&keys, &agent)).await?;
        if head != Some(entry) {
            return Ok(RunNow::NotDelayed);
        }
        // An agent that waits for a place among its tenant's turns gets a ticket only if none of them runs.
        let promote = Promote { tenant_max_running: 1, now: true, agents: &[agent] };
        let promoted = self.redis().run(&keys, &promote).await?;
        if let Some(error) = promoted.errors.first() {
            return Err(self.unreadable(format!("the agent of turn {turn}"), error.clone()));
        }
        Ok(if promoted.count == 1 { RunNow::Promoted } else { RunNow::NotDelayed })
    }

    pub(super) fn unreadable(&self, what: String, reason: String) -> ClientError {
        ClientError::Unreadable { what, reason }
    }
}

fn view(turn: TurnId, record: TurnRecord, wait: TurnWait) -> TurnView {
    let TurnRecord { place, state, deadline_ms, attempts, epoch, published, end, ended_ms } = record;
    let TurnPlace { agent, entry } = place;
    let runs_it = wait.worker.filter(|_| state == "leased");
    TurnView {
        turn,
        tenant: agent.tenant().to_owned(),
        agent: agent.agent(),
        state,
        agent_state: wait.agent_state,
        behind: wait.behind,
        priority: entry.priority,
        enqueued_ms: entry.enqueued_ms,
        not_before_ms: Some(entry.not_before_ms).filter(|ms| *ms > 0),
        deadline_ms,
        idempotency: entry.idempotency,
        attempts,
        epoch,
        worker: end.as_ref().and_then(|end| end.worker.clone()).or(runs_it),
        published,
        outcome: end.as_ref().map(|end| end.outcome),
        ended_ms,
        end,
    }
}
