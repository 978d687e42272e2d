//! Leasing the head of an agent's backlog, with everything its run needs.

use std::time::Duration;

use redis::streams::StreamRangeReply;
use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::envelope::{EnvelopeError, decode};
use turnmill_schema::keys::{BacklogEntry, FIELD_AT, FIELD_EVENT};
use turnmill_schema::{Delta, Event, History, Manifest, StoredTurn, TranscriptEntry, TurnId, scripts};

use super::batch::Item;
use super::{BrokerError, Claim, Lease, RedisBroker, Ticket};
use crate::broker::Advice;

/// The script's reply to a lease that was granted.
struct Grant {
    epoch: u64,
    attempt: u32,
    alone: bool,
    deadline_ms: u64,
    envelope: Vec<u8>,
    /// What earlier attempts left in the result stream.
    entries: StreamRangeReply,
    transcript: Vec<Vec<u8>>,
    manifest: Vec<u8>,
}

/// The reply so far.
#[derive(Default)]
struct Published {
    deltas: Vec<Delta>,
    first_token_at_ms: Option<u64>,
    /// Of the newest lease before this one.
    earlier_epoch: Option<u64>,
}

impl RedisBroker {
    pub(super) async fn lease_head(&self, ticket: &Ticket) -> Result<Option<Claim>, BrokerError> {
        let leased = self.try_lease(ticket).await;
        if leased.as_ref().is_err_and(|error| error.advice() == Advice::Reject) {
            // Nobody keeps it alive from here on; the next attempt counts, and the last one ends the turn.
            self.held.drop_ticket(ticket);
        }
        leased
    }

    async fn try_lease(&self, ticket: &Ticket) -> Result<Option<Claim>, BrokerError> {
        let mut head = self.held.head(ticket);
        // Every round but the last ended a turn or met another's progress, so this comes to an end.
        loop {
            let reply = self.call_lease(ticket, head.as_ref()).await?;
            match (LeaseReply::from_redis_value(reply), head) {
                (Ok(LeaseReply::Leased(grant)), Some(entry)) => {
                    return self.claim(ticket, &entry, *grant).map(Some);
                }
                (Ok(LeaseReply::Head(text)), _) => head = Some(self.entry(ticket, &text)?),
                (Ok(LeaseReply::Gone), _) => {
                    self.held.drop_ticket(ticket);
                    return Ok(None);
                }
                (Ok(LeaseReply::Paused), _) => {
                    self.return_unleased(ticket).await?;
                    return Ok(None);
                }
                (Ok(LeaseReply::Leased(_)), None) => {
                    return Err(self.unreadable("a turn was leased that nobody named".to_owned()));
                }
                (Err(e), _) => {
                    // The client quotes the answer after that, and with it the turn.
                    let text = e.to_string();
                    let kind = text.split(" (response was").next().unwrap_or_default();
                    return Err(self.unreadable(kind.to_owned()));
                }
            }
        }
    }

    async fn call_lease(&self, ticket: &Ticket, head: Option<&BacklogEntry>) -> Result<Value, BrokerError> {
        let turn = head.map(|entry| (entry.turn, entry.idempotency.as_deref()));
        let head = head.map(ToString::to_string).unwrap_or_default();
        let args = [ticket.agent.as_str(), &ticket.entry, ticket.priority.as_str(), &head];
        let item = Item {
            keys: scripts::turn_keys(&self.keys(ticket), &ticket.agent, turn),
            args: args.map(|arg| arg.as_bytes().to_vec()).into(),
        };
        self.batches(ticket.shard)?.lease.call(item).await
    }

    /// What a backlog is said to hold.
    fn entry(&self, ticket: &Ticket, text: &str) -> Result<BacklogEntry, BrokerError> {
        BacklogEntry::parse(text).ok_or_else(|| {
            self.unreadable(format!("the backlog of {} holds {text:?}, which is no turn", ticket.agent))
        })
    }

    fn unreadable(&self, reason: String) -> BrokerError {
        BrokerError::Refused { step: "lease", passing: false, reason }
    }

    fn claim(&self, ticket: &Ticket, entry: &BacklogEntry, grant: Grant) -> Result<Claim, BrokerError> {
        let published = read_published(entry.turn, grant.epoch, &grant.entries)?;
        // A history that cannot be read ends the turn as an unreadable envelope does.
        let (turn, history) = match read_history(&grant.transcript) {
            Ok(history) => (StoredTurn::decode(&grant.envelope), history),
            Err(e) => (Err(e), History::default()),
        };
        let now_ms = self.held.clock().now_ms().max(0) as u64;
        let since_enqueue = |ms: u64| ms.saturating_sub(entry.enqueued_ms);
        let has_deadline = grant.deadline_ms > 0;
        let (epoch, attempt) = (grant.epoch, grant.attempt);
        let lease = Lease { turn: entry.turn, ticket: ticket.clone(), epoch, attempt };
        self.held.lease(&lease, entry);
        Ok(Claim {
            lease,
            turn,
            history,
            // Only a hint: one that cannot be read is none.
            manifest: decode::<Manifest>(&grant.manifest).ok(),
            published: published.deltas,
            queued_ms: since_enqueue(now_ms),
            expires_in: has_deadline.then(|| Duration::from_millis(grant.deadline_ms.saturating_sub(now_ms))),
            first_token_ms: published.first_token_at_ms.map(since_enqueue),
            earlier_epoch: published.earlier_epoch,
            alone: grant.alone,
        })
    }
}

enum LeaseReply {
    Leased(Box<Grant>),
    /// The head is another one than the caller named.
    Head(String),
    Gone,
    Paused,
}

impl FromRedisValue for LeaseReply {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let mut parts: Vec<Value> = redis::from_redis_value(value)?;
        let rest = Value::Array(parts.split_off(1.min(parts.len())));
        let (status,): (String,) = redis::from_redis_value(Value::Array(parts))?;
        match status.as_str() {
            "gone" => Ok(Self::Gone),
            "paused" => Ok(Self::Paused),
            "head" => redis::from_redis_value(rest).map(|(text,)| Self::Head(text)),
            _ => {
                let (epoch, attempt, alone, deadline_ms, envelope, entries, transcript, manifest) =
                    redis::from_redis_value(rest)?;
                Ok(Self::Leased(Box::new(Grant {
                    epoch,
                    attempt,
                    alone,
                    deadline_ms,
                    envelope,
                    entries,
                    transcript,
                    manifest,
                })))
            }
        }
    }
}

fn read_history(transcript: &[Vec<u8>]) -> Result<History, EnvelopeError> {
    transcript.iter().map(|entry| decode::<TranscriptEntry>(entry)).collect()
}

fn read_published(turn: TurnId, epoch: u64, entries: &StreamRangeReply) -> Result<Published, BrokerError> {
    let mut published = Published::default();
    let mut tokens = 0;
    for entry in &entries.ids {
        let event: Vec<u8> = entry.get(FIELD_EVENT).unwrap_or_default();
        let mut delta = match decode(&event)? {
            Event::Delta(delta) => delta,
            Event::Begin(begin) => {
                // One of this very lease is there when its reply was lost.
                published.earlier_epoch =
                    Some(begin.epoch).filter(|of| *of < epoch).or(published.earlier_epoch);
                continue;
            }
            Event::End(_) => continue,
        };
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
