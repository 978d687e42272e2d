//! Leasing the head of an agent's backlog, with everything its run needs.

use std::sync::Arc;
use std::time::Duration;

use turnmill_redis::Fault;
use turnmill_redis::steps::{Grant, LeaseAnswer, LeaseHead, ResultEntry};
use turnmill_schema::envelope::{EnvelopeError, decode};
use turnmill_schema::keys::BacklogEntry;
use turnmill_schema::{Delta, Event, History, Manifest, StoredTurn, TranscriptEntry, TurnId};

use super::histories::Part;
use super::{Broker, BrokerError, Claim, RedisBroker, Ticket};

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
        let (known, part) = self.histories.known(&ticket.agent).unzip();
        // Every round but the last ended a turn, met another's progress or waited for its part, so this comes to an end.
        loop {
            let item = LeaseHead {
                agent: ticket.agent.clone(),
                ticket: ticket.id.entry.clone(),
                priority: ticket.id.priority,
                head: head.clone(),
                known: known.clone(),
            };
            match (self.shard(&ticket.id)?.lease.call(item).await?, head.take()) {
                (LeaseAnswer::Leased(grant), Some(entry)) => {
                    return Ok(Some(self.claim(ticket, entry, *grant, part)));
                }
                (LeaseAnswer::Leased(_), None) => {
                    return Err(unreadable("a turn was leased that nobody named".to_owned()));
                }
                (LeaseAnswer::Head(text), known) => {
                    // One that reads as the one that was asked for is written in a way that nobody writes: it would be asked for
                    // for ever.
                    head = BacklogEntry::parse(&text).filter(|entry| known.as_ref() != Some(entry));
                    if head.is_none() {
                        let agent = &ticket.agent;
                        return Err(unreadable(format!(
                            "the backlog of {agent} holds {text:?}, which is no turn"
                        )));
                    }
                }
                (LeaseAnswer::Later, known) => head = known,
                (LeaseAnswer::Gone, _) => {
                    ticket.forget();
                    return Ok(None);
                }
                (LeaseAnswer::Paused, _) => {
                    self.note_paused();
                    self.return_ticket(ticket).await?;
                    return Ok(None);
                }
            }
        }
    }

    /// What was granted. The turn is this worker's, so whatever cannot be read of it comes with the lease: the attempt fails at
    /// once and says why, instead of idling for a lease.
    ///
    /// `known` is the history that the lease was asked with.
    fn claim(&self, ticket: &Ticket, entry: BacklogEntry, grant: Grant, known: Option<Part>) -> Claim {
        let (published, fault) = match read_published(entry.turn, grant.epoch, &grant.published) {
            Ok(published) => (published, None),
            Err(error) => {
                tracing::warn!(turn = %entry.turn, %error, "what was published of a turn cannot be read");
                (Published::default(), Some(error))
            }
        };
        let history = fault.map_or_else(|| read_history(&grant, known), Err);
        let (turn, history) = match history {
            Ok(part) => {
                self.histories.leased(&ticket.agent, grant.epoch, &part);
                (StoredTurn::decode(&grant.envelope), part.history)
            }
            Err(error) => {
                self.histories.forget(&ticket.agent);
                (Err(error), Arc::default())
            }
        };
        let now_ms = self.server.clock().now_ms();
        let since_enqueue = |ms: u64| ms.saturating_sub(entry.enqueued_ms);
        let has_deadline = grant.deadline_ms > 0;
        Claim {
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
        }
    }
}

fn unreadable(reason: String) -> BrokerError {
    Fault::Unreadable { step: "lease", reason }.into()
}

/// The history that was granted: all of it, or what follows the part that was known.
fn read_history(grant: &Grant, known: Option<Part>) -> Result<Part, EnvelopeError> {
    let new = grant.transcript.iter().map(|entry| decode::<TranscriptEntry>(entry));
    let known = known.filter(|known| grant.left_out == known.entries);
    let mut history = match known {
        Some(known) => known.history,
        None if grant.left_out == 0 => Arc::default(),
        None => {
            let reason = format!("{} entries of its history are left out that nobody knows", grant.left_out);
            return Err(EnvelopeError::Malformed { reason });
        }
    };
    if !grant.transcript.is_empty() {
        let new: Vec<TranscriptEntry> = new.collect::<Result<_, _>>()?;
        Arc::<History>::make_mut(&mut history).extend(new);
    }
    let entries = grant.left_out + grant.transcript.len() as u64;
    Ok(Part { history, entries, seeding: grant.seeding.clone() })
}

fn read_published(turn: TurnId, epoch: u64, entries: &[ResultEntry]) -> Result<Published, EnvelopeError> {
    let mut published = Published::default();
    let mut tokens = 0;
    for entry in entries {
        let delta: Delta = match decode(&entry.event) {
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
        // An append whose reply was lost was repeated with more: what is known is cut off.
        let malformed =
            |what: String| EnvelopeError::Malformed { reason: format!("the result of turn {turn} {what}") };
        let added =
            delta.beyond(tokens).map_err(|error| malformed(format!("has tokens twice, and {error}")))?;
        let Some(delta) = added else { continue };
        if delta.index > tokens {
            return Err(malformed(format!(
                "has a delta from token {} on after only {tokens} tokens",
                delta.index
            )));
        }
        if tokens == 0 {
            published.first_token_at_ms = entry.at_ms;
        }
        tokens = delta.published();
        published.deltas.push(delta);
    }
    Ok(published)
}

#[cfg(test)]
mod tests {
    use turnmill_schema::Begin;
    use turnmill_schema::envelope::encode;

    use super::*;

    /// An entry with tokens from `index` on, each of which is a character of "naïve ⅔".
    fn entry(index: u32, end: u32) -> ResultEntry {
        let mut delta = Delta { index, ..Delta::default() };
        let characters = (0..end).zip("naïve ⅔".chars()).skip(index as usize);
        characters.for_each(|(token, character)| delta.push(token, &character.to_string(), None));
        stored(&Event::Delta(delta))
    }

    fn stored(event: &Event) -> ResultEntry {
        ResultEntry { id: "5-1".into(), event: encode(event).expect("encodes"), at_ms: Some(9) }
    }

    fn read(entries: &[ResultEntry]) -> Result<Delta, EnvelopeError> {
        let published = read_published(TurnId::new(0), 7, entries)?;
        assert_eq!(published.earlier_epoch, Some(5));
        assert_eq!(published.first_token_at_ms, Some(9));
        let mut whole = Delta::default();
        published.deltas.into_iter().for_each(|delta| whole.extend(delta));
        Ok(whole)
    }

    #[test]
    fn tokens_and_text_that_stand_twice_are_read_once() {
        let begin = |epoch| {
            let begin = Begin { epoch, resume_from: 0, attempt: 1, worker: "w".into() };
            stored(&Event::Begin(begin))
        };
        let whole = read(&[begin(5), entry(0, 7), begin(7)]).expect("it joins");
        assert_eq!((whole.text.as_str(), whole.lengths.len()), ("naïve ⅔", 7));
        let twice = [begin(5), entry(0, 3), entry(0, 3), entry(1, 4), entry(2, 7), begin(7)];
        assert_eq!(read(&twice).expect("it joins"), whole);
    }

    #[test]
    fn text_that_cannot_be_cut_is_told() {
        let silent = Delta { tokens: vec![1, 2], text: "ab".into(), ..Delta::default() };
        let entries = [entry(0, 1), stored(&Event::Delta(silent))];
        let error =
            read_published(TurnId::new(0), 7, &entries).err().expect("the text of one token is not known");
        assert!(error.to_string().contains("how many bytes"), "{error}");
        let gap =
            read_published(TurnId::new(0), 7, &[entry(1, 2)]).err().expect("the first token is missing");
        assert!(gap.to_string().contains("from token 1 on after only 0"), "{gap}");
    }
}
