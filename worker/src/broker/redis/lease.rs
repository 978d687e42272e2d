//! Leasing the head of an agent's backlog, with everything its run needs.

use std::sync::Arc;
use std::time::Duration;

use turnmill_redis::Fault;
use turnmill_redis::steps::{Grant, LeaseAnswer, LeaseHead, ResultEntry};
use turnmill_schema::envelope::{EnvelopeError, decode};
use turnmill_schema::keys::BacklogEntry;
use turnmill_schema::{Delta, Event, History, Manifest, StoredTurn, TranscriptEntry, TurnId};

use super::{BrokerError, Claim, RedisBroker, Ticket};

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
        let mut head = ticket.head();
        // Every round but the last ended a turn, met another's progress or waited for its part, so this comes to an end.
        loop {
            let item = LeaseHead {
                agent: ticket.agent.clone(),
                ticket: ticket.id.entry.clone(),
                priority: ticket.id.priority,
                head: head.clone(),
            };
            match (self.shard(&ticket.id)?.lease.call(item).await?, head.take()) {
                (LeaseAnswer::Leased(grant), Some(entry)) => {
                    return self.claim(ticket, entry, *grant).map(Some);
                }
                (LeaseAnswer::Leased(_), None) => {
                    return Err(unreadable("a turn was leased that nobody named".to_owned()));
                }
                (LeaseAnswer::Head(text), _) => {
                    let entry = BacklogEntry::parse(&text);
                    head = Some(entry.ok_or_else(|| {
                        unreadable(format!(
                            "the backlog of {} holds {text:?}, which is no turn",
                            ticket.agent
                        ))
                    })?);
                }
                (LeaseAnswer::Later, known) => head = known,
                (LeaseAnswer::Gone, _) => {
                    ticket.forget();
                    return Ok(None);
                }
                (LeaseAnswer::Paused, _) => {
                    self.note_paused();
                    self.give_back_ticket(ticket).await?;
                    return Ok(None);
                }
            }
        }
    }

    fn claim(&self, ticket: &Ticket, entry: BacklogEntry, grant: Grant) -> Result<Claim, BrokerError> {
        let published = read_published(entry.turn, grant.epoch, &grant.published)?;
        // A history that cannot be read ends the turn as an unreadable envelope does.
        let (turn, history) = match read_history(&grant.transcript) {
            Ok(history) => (StoredTurn::decode(&grant.envelope), history),
            Err(error) => (Err(error), History::default()),
        };
        let now_ms = self.server.clock().now_ms();
        let since_enqueue = |ms: u64| ms.saturating_sub(entry.enqueued_ms);
        let has_deadline = grant.deadline_ms > 0;
        Ok(Claim {
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
            lease: Arc::new(ticket.leased(entry, grant.epoch, grant.attempt)),
        })
    }
}

fn unreadable(reason: String) -> BrokerError {
    Fault::Unreadable { step: "lease", reason }.into()
}

fn read_history(transcript: &[Vec<u8>]) -> Result<History, EnvelopeError> {
    transcript.iter().map(|entry| decode::<TranscriptEntry>(entry)).collect()
}

fn read_published(turn: TurnId, epoch: u64, entries: &[ResultEntry]) -> Result<Published, BrokerError> {
    let mut published = Published::default();
    let mut tokens = 0;
    for entry in entries {
        let mut delta = match decode(&entry.event) {
            Ok(Event::Delta(delta)) => delta,
            Ok(Event::Begin(begin)) => {
                // One of this very lease is there when its reply was lost.
                published.earlier_epoch =
                    Some(begin.epoch).filter(|of| *of < epoch).or(published.earlier_epoch);
                continue;
            }
            Ok(Event::End(_)) => continue,
            // A foreign or newer entry is passed by; if it held tokens, the next delta shows the gap.
            Err(_) => {
                tracing::warn!(%turn, entry = entry.id, "passing by an entry of a result stream that cannot be read");
                continue;
            }
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
            published.first_token_at_ms = entry.at_ms;
        }
        tokens = delta.published();
        published.deltas.push(delta);
    }
    Ok(published)
}
