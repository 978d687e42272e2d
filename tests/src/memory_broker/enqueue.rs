//! Enqueueing: all turns of a call, or no turn if they do not fit.

use std::collections::{BTreeMap, HashMap};

use turnmill_redis::steps::DepthLimits;
use turnmill_schema::keys::idempotency_name;
use turnmill_schema::{Turn, TurnId};

use super::state::{Place, State, TurnRecord};

/// Bounds of what a producer is told to wait.
const MIN_RETRY_MS: u64 = 100;
const MAX_RETRY_MS: u64 = 60_000;

/// Why turns were not enqueued: too many are open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full: {open} turns are open, at most {limit} may be; try again in {retry_after_ms} ms")]
pub struct QueueFull {
    /// Whose turns are too many; none: everybody's.
    pub tenant: Option<String>,
    /// Turns that are open.
    pub open: u64,
    /// How many may be.
    pub limit: u64,
    /// When to try again.
    pub retry_after_ms: u64,
}

/// Why turns were not enqueued. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotEnqueued {
    /// Too many are open.
    #[error(transparent)]
    Full(#[from] QueueFull),
    /// A turn has the idempotency key of an earlier one that asks for something else.
    #[error(
        "turn {first} was enqueued under the idempotency key of turn number {place} and asks for something else; give another key"
    )]
    Conflict {
        /// Its place among the turns, from 0.
        place: usize,
        /// The earlier turn.
        first: TurnId,
    },
    /// A turn would follow another one than it must.
    #[error(
        "turn number {place} would follow another turn than it must: {head:?} is the newest of its agent"
    )]
    Stale {
        /// Its place among the turns, from 0.
        place: usize,
        /// The newest turn of its agent.
        head: Option<TurnId>,
    },
}

/// A turn, and the one that it must follow; none: any.
pub type AfterTurn<'a> = (&'a Turn, Option<TurnId>);

/// What was enqueued under an idempotency key.
#[derive(Clone, Debug)]
pub(super) struct Keyed {
    pub(super) turn: TurnId,
    /// Of what it asks for.
    digest: String,
    /// Once the turn has ended: until when the key is kept, however early the turn is forgotten.
    pub(super) until_ms: Option<u64>,
}

impl State {
    /// The ids under which the turns run: those of turns enqueued before under the same idempotency key or id.
    pub(super) fn enqueue(
        &mut self,
        turns: &[AfterTurn<'_>],
        limits: DepthLimits,
    ) -> Result<Vec<TurnId>, NotEnqueued> {
        let mut ids = Vec::with_capacity(turns.len());
        let mut fresh: Vec<&Turn> = Vec::new();
        let mut by_key: HashMap<String, Keyed> = HashMap::new();
        let mut renamed: HashMap<TurnId, TurnId> = HashMap::new();
        for (place, (turn, after)) in turns.iter().enumerate() {
            let key = turn.idempotency_key.as_ref().map(|key| idempotency_name(&turn.tenant, key));
            let digest = turn.asked_digest();
            let same_key = key.as_ref().and_then(|key| by_key.get(key).or_else(|| self.enqueued_under(key)));
            if let Some(first) = same_key.filter(|first| first.digest != digest) {
                return Err(NotEnqueued::Conflict { place, first: first.turn });
            }
            let same_key = same_key.map(|first| first.turn);
            let same_turn = || {
                let known =
                    self.turns.contains_key(&turn.id) || fresh.iter().any(|other| other.id == turn.id);
                known.then_some(turn.id)
            };
            let known = same_key.or_else(same_turn);
            if known.is_none() {
                if let Some(after) = after {
                    let (after, head) = (renamed.get(after).unwrap_or(after), self.newest_of(&fresh, turn));
                    if head != Some(*after) {
                        return Err(NotEnqueued::Stale { place, head });
                    }
                }
                fresh.push(turn);
            }
            let id = known.unwrap_or(turn.id);
            renamed.insert(turn.id, id);
            by_key.extend(key.map(|key| (key, Keyed { turn: id, digest, until_ms: None })));
            ids.push(id);
        }
        self.check_room(&fresh, limits)?;
        for turn in fresh {
            self.add(turn);
        }
        Ok(ids)
    }

    /// The turn that was enqueued under an idempotency key.
    fn enqueued_under(&self, key: &str) -> Option<&Keyed> {
        self.idempotency.get(key).filter(|keyed| keyed.until_ms.is_none_or(|until_ms| until_ms > self.now_ms))
    }

    /// The turn that `turn` would follow: the newest of its agent's that has not ended, those of the same call included, else
    /// the last that completed.
    fn newest_of(&self, fresh: &[&Turn], turn: &Turn) -> Option<TurnId> {
        let id = turn.agent_id();
        let of_call = fresh.iter().rev().find(|other| other.agent_id() == id).map(|other| other.id);
        let agent = self.agents.get(&id);
        let waiting = || agent.and_then(|agent| agent.backlog.back().copied());
        let completed = || agent.and_then(|agent| agent.transcript.last()).map(|entry| entry.turn);
        of_call.or_else(waiting).or_else(completed)
    }

    fn check_room(&self, fresh: &[&Turn], limits: DepthLimits) -> Result<(), QueueFull> {
        if fresh.is_empty() {
            return Ok(());
        }
        let open = self.open_turns.iter().sum::<u64>();
        self.check_limit(None, open, fresh.len() as u64, limits.queue)?;
        let mut by_tenant: BTreeMap<&str, u64> = BTreeMap::new();
        for turn in fresh {
            *by_tenant.entry(turn.tenant.as_str()).or_default() += 1;
        }
        for (tenant, more) in by_tenant {
            let open = self.tenants.get(tenant).map_or(0, |tenant| tenant.open);
            self.check_limit(Some(tenant), open, more, limits.tenant)?;
        }
        Ok(())
    }

    fn check_limit(&self, tenant: Option<&str>, open: u64, more: u64, limit: u64) -> Result<(), QueueFull> {
        match (open + more).checked_sub(limit) {
            None | Some(0) => Ok(()),
            Some(over) => {
                let tenant = tenant.map(str::to_owned);
                Err(QueueFull { tenant, open, limit, retry_after_ms: self.retry_after_ms(over) })
            }
        }
    }

    /// When `places` will be free, at the pace of the newest ends.
    fn retry_after_ms(&self, places: u64) -> u64 {
        let Some(oldest_ms) = self.ends_ms.front() else { return MAX_RETRY_MS };
        let since_ms = self.now_ms.saturating_sub(*oldest_ms);
        (since_ms * places).div_ceil(self.ends_ms.len() as u64).clamp(MIN_RETRY_MS, MAX_RETRY_MS)
    }

    fn add(&mut self, turn: &Turn) {
        let id = turn.agent_id();
        let enqueued_ms = self.now_ms;
        let record = TurnRecord {
            agent: id.clone(),
            priority: turn.priority,
            enqueued_ms,
            not_before_ms: turn.not_before_ms.unwrap_or(0),
            deadline_ms: turn.deadline_ms,
            new_session: turn.new_session,
            idempotency: turn.idempotency_key.as_ref().map(|key| idempotency_name(&turn.tenant, key)),
            turn: Some(turn.clone()),
            attempts: 0,
            barren: 0,
            progress: 0,
            epoch: 0,
            requeued: None,
            results: Vec::new(),
            ended: None,
        };
        let keyed = Keyed { turn: turn.id, digest: turn.asked_digest(), until_ms: None };
        self.idempotency.extend(record.idempotency.clone().map(|key| (key, keyed)));
        self.turns.insert(turn.id, record);
        self.open_turns[turn.priority as usize] += 1;
        self.enqueued += 1;
        self.tenant(&id, |tenant| tenant.open += 1);
        let agent = self.agents.entry(id.clone()).or_default();
        agent.backlog.push_back(turn.id);
        if agent.backlog.len() == 1 {
            self.open.insert((enqueued_ms, id.clone()));
        }
        if self.agent_mut(&id).place == Place::Idle {
            self.make_runnable(&id);
        }
    }
}
