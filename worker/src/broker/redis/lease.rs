//! Leasing the head of an agent's backlog, and loading what its run needs.

use redis::streams::StreamRangeReply;
use redis::{FromRedisValue, Value};
use turnmill_schema::envelope::{EnvelopeError, decode};
use turnmill_schema::keys::{BacklogEntry, FIELD_AT, FIELD_EVENT};
use turnmill_schema::{Delta, Event, History, TranscriptEntry, Turn, TurnId, scripts};

use super::{BrokerError, Claim, Lease, ReadyToken, RedisBroker, steps};
use crate::broker::Advice;

/// The script's reply to a lease that was granted.
struct Grant {
    epoch: u64,
    attempt: u32,
    alone: bool,
    new_session: bool,
    enqueued_ms: u64,
    now_ms: u64,
    envelope: Vec<u8>,
}

/// What earlier attempts left in the result stream.
#[derive(Default)]
struct Published {
    deltas: Vec<Delta>,
    first_token_at_ms: Option<u64>,
}

impl RedisBroker {
    pub(super) async fn lease_head(&self, token: &ReadyToken) -> Result<Option<Claim>, BrokerError> {
        let leased = self.try_lease(token).await;
        if leased.as_ref().is_err_and(|error| error.advice() == Advice::Reject) {
            // Nobody keeps it alive from here on; the next attempt counts, and the last one ends the turn.
            self.held.drop_token(token);
        }
        leased
    }

    async fn try_lease(&self, token: &ReadyToken) -> Result<Option<Claim>, BrokerError> {
        // Every round but the last ended a turn or met another worker's progress, so this comes to an end.
        loop {
            let Some(text) = self.head(token).await? else {
                if self.discard(token).await? {
                    return Ok(None);
                }
                continue;
            };
            let entry = BacklogEntry::parse(&text).ok_or_else(|| BrokerError::Refused {
                step: "lease",
                passing: false,
                reason: format!("the backlog of {} holds {text:?}, which is no turn", token.agent),
            })?;
            let reply = self.call_lease(token, &entry, &text).await?;
            match reply {
                LeaseReply::Leased(grant) => return self.load(token, entry.turn, grant).await.map(Some),
                LeaseReply::Again => {}
                LeaseReply::Gone => {
                    self.held.drop_token(token);
                    return Ok(None);
                }
            }
        }
    }

    /// The backlog's head. Read first, because a script's keys are declared before it runs.
    pub(super) async fn head(&self, token: &ReadyToken) -> Result<Option<String>, BrokerError> {
        let mut connection = self.server.connection().await?;
        let mut command = redis::cmd("LINDEX");
        command.arg(self.keys(token).backlog(&token.agent)).arg(0);
        command.query_async(&mut connection).await.map_err(|e| self.server.error("lease", &e))
    }

    /// False where the agent has work by now.
    async fn discard(&self, token: &ReadyToken) -> Result<bool, BrokerError> {
        let keys = self.keys(token);
        let mut call = steps::DISCARD.script.prepare_invoke();
        call.key(keys.agent(&token.agent)).key(keys.backlog(&token.agent));
        call.key(keys.ready(token.priority)).key(keys.open());
        call.arg(token.agent.as_str()).arg(&token.entry).arg(&self.settings.worker);
        let done = self.server.run(&steps::DISCARD, &call).await?;
        if done {
            self.held.drop_token(token);
        }
        Ok(done)
    }

    async fn call_lease(
        &self,
        token: &ReadyToken,
        entry: &BacklogEntry,
        text: &str,
    ) -> Result<LeaseReply, BrokerError> {
        let keys = self.keys(token);
        let idempotency = entry.idempotency.as_deref();
        let mut call = steps::LEASE.script.prepare_invoke();
        call.key(scripts::agent_keys(&keys, &token.agent, entry.turn, idempotency));
        call.arg(token.agent.as_str()).arg(&token.entry).arg(token.priority.as_str());
        call.arg(&self.settings.worker).arg(text).arg(self.settings.max_attempts);
        call.arg(self.settings.result_ttl_ms).arg(self.settings.outcome_ttl_ms);
        self.server.run(&steps::LEASE, &call).await
    }

    async fn load(&self, token: &ReadyToken, turn: TurnId, grant: Grant) -> Result<Claim, BrokerError> {
        self.held.clock().set(grant.now_ms);
        let keys = self.keys(token);
        let mut load = redis::pipe();
        load.cmd("XRANGE").arg(keys.result(turn)).arg("-").arg("+");
        load.cmd("LRANGE").arg(keys.transcript(&token.agent)).arg(0).arg(-1);
        let mut connection = self.server.connection().await?;
        let (entries, transcript): (StreamRangeReply, Vec<Vec<u8>>) =
            load.query_async(&mut connection).await.map_err(|e| self.server.error("lease", &e))?;
        let published = read_published(turn, &entries)?;
        let history = if grant.new_session { Ok(History::default()) } else { read_history(&transcript) };
        // A history that cannot be read ends the turn as an unreadable envelope does.
        let (turn_read, history) = match history {
            Ok(history) => (decode::<Turn>(&grant.envelope), history),
            Err(e) => (Err(e), History::default()),
        };
        let since_enqueue = |ms: u64| ms.saturating_sub(grant.enqueued_ms);
        Ok(Claim {
            lease: Lease { turn, token: token.clone(), epoch: grant.epoch, attempt: grant.attempt },
            turn: turn_read,
            history,
            published: published.deltas,
            queued_ms: since_enqueue(grant.now_ms),
            first_token_ms: published.first_token_at_ms.map(since_enqueue),
            alone: grant.alone,
        })
    }
}

enum LeaseReply {
    Leased(Grant),
    /// The head changed.
    Again,
    Gone,
}

impl FromRedisValue for LeaseReply {
    fn from_redis_value(value: Value) -> Result<Self, redis::ParsingError> {
        let mut parts: Vec<Value> = redis::from_redis_value(value)?;
        let rest = parts.split_off(1.min(parts.len()));
        let (status,): (String,) = redis::from_redis_value(Value::Array(parts))?;
        match status.as_str() {
            "gone" => Ok(Self::Gone),
            "moved" | "next" => Ok(Self::Again),
            _ => {
                let (epoch, attempt, alone, new_session, enqueued_ms, now_ms, envelope) =
                    redis::from_redis_value(Value::Array(rest))?;
                Ok(Self::Leased(Grant { epoch, attempt, alone, new_session, enqueued_ms, now_ms, envelope }))
            }
        }
    }
}

fn read_history(transcript: &[Vec<u8>]) -> Result<History, EnvelopeError> {
    transcript.iter().map(|entry| decode::<TranscriptEntry>(entry)).collect()
}

fn read_published(turn: TurnId, entries: &StreamRangeReply) -> Result<Published, BrokerError> {
    let mut published = Published::default();
    let mut tokens = 0;
    for entry in &entries.ids {
        let event: Vec<u8> = entry.get(FIELD_EVENT).unwrap_or_default();
        let Event::Delta(mut delta) = decode(&event)? else { continue };
        if delta.index < tokens {
            // An append whose reply was lost was repeated with more: what is known is skipped.
            let known = ((tokens - delta.index) as usize).min(delta.tokens.len());
            delta.tokens.drain(..known);
            delta.index = tokens;
        }
        if delta.index > tokens {
            return Err(BrokerError::Gap { turn, expected: tokens, found: delta.index });
        }
        if tokens == 0 {
            published.first_token_at_ms = entry.get(FIELD_AT);
        }
        tokens = delta.published();
        published.deltas.push(delta);
    }
    Ok(published)
}
