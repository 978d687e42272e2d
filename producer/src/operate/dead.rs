//! Dead letters: turns that ended as failed, kept with what was asked until somebody replays or purges them.
//!
//! A replay is a new turn (a turn has one End for ever) at the end of its agent's backlog, enqueued under an idempotency
//! key made of the old one's id: a replay that is cut off between enqueueing and purging can be repeated.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde::Serialize;
use turnmill_redis::DeadRecord;
use turnmill_redis::steps::{Letter, Purge};
use turnmill_schema::{AgentName, IdempotencyKey, StoredTurn, StreamId, Turn, TurnId};

use super::{Operator, Scope};
use crate::error::ClientError;
use crate::passed_by::PassedBy;

/// Letters read or purged in one call.
const PAGE: usize = 500;

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeadLetter {
    /// The turn that failed.
    pub turn: TurnId,
    /// Its tenant.
    pub tenant: String,
    /// Its agent; none for a turn that stood alone.
    pub agent: Option<AgentName>,
    /// Why it is here: `attempts`, `rejected` or `unreadable`.
    pub reason: String,
    /// Leases that counted as attempts.
    pub attempts: u64,
    /// When it failed, in Unix milliseconds by Redis's clock.
    pub failed_ms: u64,
    /// What was wrong, in a sentence; none where it was not asked for or is not known.
    pub error: Option<String>,
    /// Its entry in the stream of dead letters.
    #[serde(skip)]
    pub entry: String,
}

/// Which dead letters; those that fit all that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadQuery {
    /// Of which tenants.
    pub scope: Scope,
    /// These turns only, unless empty.
    pub turns: Vec<TurnId>,
    /// Of this reason.
    pub reason: Option<String>,
    /// Of this agent.
    pub agent: Option<AgentName>,
    /// That failed at least so long ago.
    pub older_than: Option<Duration>,
}

/// The letters of a query, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DeadLetters {
    /// How many there are of each reason.
    pub reasons: BTreeMap<String, u64>,
    /// The letters, without their errors.
    pub letters: Vec<DeadLetter>,
}

impl Operator {
    /// The dead letters that fit the query.
    pub async fn dead_letters(&self, query: &DeadQuery) -> Result<DeadLetters, ClientError> {
        let mut found = DeadLetters::default();
        self.each_dead_letter(query, |letter| {
            *found.reasons.entry(letter.reason.clone()).or_default() += 1;
            found.letters.push(letter);
        })
        .await?;
        Ok(found)
    }

    /// How many dead letters of each reason fit the query.
    pub async fn count_dead_letters(&self, query: &DeadQuery) -> Result<BTreeMap<String, u64>, ClientError> {
        let mut reasons = BTreeMap::new();
        self.each_dead_letter(query, |letter| *reasons.entry(letter.reason).or_default() += 1).await?;
        Ok(reasons)
    }

    /// Reads through the dead letters, oldest first, and takes those that fit the query.
    async fn each_dead_letter(
        &self,
        query: &DeadQuery,
        mut take: impl FnMut(DeadLetter),
    ) -> Result<(), ClientError> {
        let failed_before_ms = match query.older_than {
            Some(age) => self.now_ms().await?.saturating_sub(age.as_millis() as u64),
            None => u64::MAX,
        };
        let turns: HashSet<TurnId> = query.turns.iter().copied().collect();
        let mut passed_by = PassedBy::of_dead_letters();
        for keys in self.client.queue.all_keys() {
            let mut after = StreamId::START;
            loop {
                let page = self.redis().ask(|server| server.dead_letters(&keys, after, PAGE)).await?;
                let Some(last) = page.last() else { break };
                after = last.id;
                let ours = page.into_iter().filter_map(|entry| passed_by.ours(entry));
                let fit =
                    ours.map(letter).filter(|letter| self.fits(query, &turns, failed_before_ms, letter));
                fit.for_each(&mut take);
            }
        }
        Ok(())
    }

    /// The newest dead letters of all tenants, newest first, each with what was wrong; at most `limit`.
    pub async fn newest_dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, ClientError> {
        let (mut letters, mut passed_by) = (Vec::new(), PassedBy::of_dead_letters());
        for keys in self.client.queue.all_keys() {
            let newest = self.redis().ask(|server| server.newest_dead_letters(&keys, limit)).await?;
            let ours = newest.into_iter().filter_map(|entry| passed_by.ours(entry));
            letters.extend(ours.map(letter));
        }
        letters.sort_by_key(|letter| std::cmp::Reverse(letter.failed_ms));
        letters.truncate(limit);
        self.add_errors(&mut letters).await?;
        Ok(letters)
    }

    fn fits(
        &self,
        query: &DeadQuery,
        turns: &HashSet<TurnId>,
        failed_before_ms: u64,
        letter: &DeadLetter,
    ) -> bool {
        query.scope.covers(&self.client.settings.tenant, &letter.tenant)
            && (turns.is_empty() || turns.contains(&letter.turn))
            && query.reason.as_ref().is_none_or(|reason| *reason == letter.reason)
            && query.agent.as_ref().is_none_or(|agent| letter.agent.as_ref() == Some(agent))
            && letter.failed_ms <= failed_before_ms
    }

    /// Adds what was wrong with each.
    pub async fn add_errors(&self, letters: &mut [DeadLetter]) -> Result<(), ClientError> {
        for keys in self.client.queue.all_keys() {
            let mut here: Vec<&mut DeadLetter> =
                letters.iter_mut().filter(|letter| letter.turn.shard() == keys.shard()).collect();
            for page in here.chunks_mut(PAGE) {
                let turns: Vec<TurnId> = page.iter().map(|letter| letter.turn).collect();
                let ends = self.redis().ask(|server| server.turn_ends(&keys, &turns)).await?;
                for (letter, end) in page.iter_mut().zip(ends) {
                    letter.error = end.and_then(|end| end.error);
                }
            }
        }
        Ok(())
    }

    /// The turn as it was asked for.
    pub async fn dead_turn(&self, letter: &DeadLetter) -> Result<Turn, ClientError> {
        let (turn, keys) = (letter.turn, self.client.keys_of(letter.turn));
        let stored = self.redis().ask(|server| server.turn_payload(&keys, turn)).await?;
        let stored = StoredTurn::decode(&stored.ok_or_else(|| self.client.unknown_turn(turn))?);
        let what = || format!("what is stored of turn {turn}");
        self.client.load(stored.map_err(|error| self.unreadable(what(), error.to_string()))?).await
    }

    /// Enqueues what the letter asked for as a new turn, then purges the letter; the new turn. A deadline is dropped: it was
    /// that of the first try.
    pub async fn replay(&self, letter: &DeadLetter) -> Result<TurnId, ClientError> {
        let turn = self.dead_turn(letter).await?;
        let key = IdempotencyKey::new(format!("replay-{}", turn.id));
        let key = key.map_err(|error| self.unreadable("a replay's key".into(), error.to_string()))?;
        let replay = Turn {
            id: self.client.queue.new_turn_id(&turn.tenant, turn.agent.as_ref()),
            deadline_ms: None,
            not_before_ms: None,
            idempotency_key: Some(key),
            replay_of: Some(turn.id),
            ..turn
        };
        let id = replay.id;
        let enqueued =
            self.client.enqueue_new(vec![replay.into()]).await.map_err(|error| error.of_one(id))?;
        self.purge(std::slice::from_ref(letter)).await?;
        Ok(enqueued.first().map_or(id, |enqueued| enqueued.turn))
    }

    /// Forgets letters, their turns and results; how many were there.
    pub async fn purge(&self, letters: &[DeadLetter]) -> Result<u64, ClientError> {
        let mut purged = 0;
        for keys in self.client.queue.all_keys() {
            let here: Vec<&DeadLetter> =
                letters.iter().filter(|letter| letter.turn.shard() == keys.shard()).collect();
            for page in here.chunks(PAGE) {
                let turns: Vec<_> = page.iter().map(|letter| letter.turn).collect();
                let objects = self.client.objects_of(&turns).await?;
                let letters = page.iter().map(|letter| Letter { entry: &letter.entry, turn: letter.turn });
                purged +=
                    self.redis().run(&keys, &Purge { over_bytes: None, letters: letters.collect() }).await?;
                self.client.remove_objects(&objects).await;
            }
        }
        Ok(purged)
    }
}

fn letter((id, record): (StreamId, DeadRecord)) -> DeadLetter {
    let DeadRecord { turn, agent, reason, attempts } = record;
    DeadLetter {
        turn,
        tenant: agent.tenant().to_owned(),
        agent: agent.agent(),
        reason,
        attempts,
        failed_ms: id.epoch,
        error: None,
        entry: id.to_string(),
    }
}
