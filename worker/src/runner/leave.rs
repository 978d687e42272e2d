//! How a turn leaves this worker: it is ended (finish), requeued, left for a later attempt (retry), or lost
//! (another worker has it, or it was ended elsewhere; then nothing more is written).

use std::time::Duration;

use tracing::{debug, info, warn};
use turnmill_schema::{DeadReason, End, Manifest, Outcome, Timing, TranscriptEntry, Usage};

use super::fitness::Blame;
use super::health::until_answered;
use super::keep::Late;
use super::payload;
use super::publish::Publisher;
use super::turn::{Attempt, Kept, Runner};
use crate::broker::{Advice, Broker, BrokerError, Ending, Lease, Retry, Ticket};
use crate::engine::{EngineHandle, Reply};
use crate::observe::metrics;

/// How a turn leaves.
pub(super) enum Leaving {
    Completed(Box<Reply>),
    /// It can never run.
    Rejected(Reason),
    /// This attempt failed.
    Failed(Failure),
    /// Its deadline passed.
    Expired,
    Requeued,
    Lost,
}

/// Why an attempt failed, in one word and in one sentence.
pub(super) struct Failure {
    blame: Blame,
    dead: DeadReason,
    reason: Reason,
}

/// A sentence for the turn's result, which its owner reads; others read the log.
pub(super) struct Reason {
    text: String,
    quotes: bool,
}

impl Reason {
    /// One in which nothing that the turn says can stand.
    pub(super) fn plain(text: impl ToString) -> Self {
        Self { text: text.to_string(), quotes: false }
    }

    /// One that may quote the turn: a template or a decoder made it.
    pub(super) fn quoting(text: impl ToString) -> Self {
        Self { text: text.to_string(), quotes: true }
    }

    /// What the log says of it.
    fn logged(&self, content: bool) -> &str {
        if self.quotes && !content {
            "told in the turn's result, because it may quote the turn"
        } else {
            &self.text
        }
    }
}

impl Leaving {
    pub(super) fn failed(blame: Blame, dead: DeadReason, reason: Reason) -> Self {
        Self::Failed(Failure { blame, dead, reason })
    }
}

impl<B: Broker, E: EngineHandle> Runner<B, E> {
    /// Ends the turn, requeues it or lets it go. The ticket returned stands for the agent's next turn.
    pub(super) async fn leave(
        &self,
        attempt: &Attempt,
        publisher: &mut Publisher<B>,
        leaving: Leaving,
        kept: Option<Kept>,
    ) -> Option<Ticket> {
        let published = publisher.published();
        let mut late = None;
        let ending = match leaving {
            Leaving::Lost => return self.lose(attempt),
            Leaving::Requeued => return self.requeue_kept(attempt, kept).await,
            Leaving::Failed(failure) => return self.retry(attempt, failure).await,
            Leaving::Rejected(reason) => {
                warn!(reason = reason.logged(self.settings.log_content), "the turn can never run");
                let end = self.end(attempt, published, Outcome::Failed, Some(reason.text));
                Ending { reason: Some(DeadReason::Rejected), ..self.ending(published, end) }
            }
            Leaving::Expired => {
                let text = "the deadline passed while it ran; allow more time".to_owned();
                self.ending(published, self.end(attempt, published, Outcome::Expired, Some(text)))
            }
            Leaving::Completed(reply) => {
                if self.settings.log_content {
                    debug!(text = reply.text(), "the turn's reply");
                }
                let kept = kept.expect("the tokens of a completed turn came back with its last one");
                let mut end = self.end(attempt, published, Outcome::Completed, None);
                end.finish = reply.finish();
                end.stop = reply.stop();
                end.usage.reasoning_tokens = reply.reasoning_tokens();
                if reply.made() == 0 {
                    // Its prompt was counted. What was not answered is no part of the conversation.
                    self.ending(published, end)
                } else {
                    let manifest;
                    (manifest, late) = self.manifest(attempt, &kept, &reply).await;
                    let entry = Some(entry(&attempt.lease, kept, &reply));
                    Ending { entry, manifest, ..self.ending(published, end) }
                }
            }
        };
        let entry = ending.entry.filter(|_| !attempt.lease.agent.is_lone());
        let ending = Ending { entry, reply: publisher.take_short_reply(), ..ending };
        self.finish(attempt, &ending, late).await
    }

    async fn finish(&self, attempt: &Attempt, ending: &Ending, late: Option<Late>) -> Option<Ticket> {
        let lease = &attempt.lease;
        let finished = until_answered(&self.health, "finish", || self.broker.finish(lease, ending)).await;
        match finished {
            Ok(next) => {
                let End { outcome, usage, timing, .. } = &ending.end;
                attempt.span.left(outcome.as_str());
                metrics::turn_ended(*outcome, Duration::from_millis(timing.total_ms));
                ending.reason.into_iter().for_each(metrics::turn_dead);
                if *outcome == Outcome::Completed {
                    self.fitness.completed();
                }
                if let Some(ms) = timing.first_token_ms {
                    metrics::first_token(Duration::from_millis(ms));
                }
                info!(
                    outcome = outcome.as_str(),
                    prompt_tokens = usage.prompt_tokens,
                    cached_tokens = usage.cached_tokens,
                    completion_tokens = usage.completion_tokens,
                    queued_ms = timing.queued_ms,
                    first_token_ms = timing.first_token_ms,
                    total_ms = timing.total_ms,
                    "the turn has ended"
                );
                if let (Some(keeper), Some(late)) = (&self.keeper, late) {
                    keeper.later(self.broker.clone(), lease.fence(), late);
                }
                payload::remove(
                    self.payloads.as_ref(),
                    attempt.payload.as_ref(),
                    *outcome,
                    &self.surroundings,
                )
                .await;
                next
            }
            Err(error @ BrokerError::Gap { .. }) => {
                warn!(%error, "published tokens are gone; the turn is requeued to go on before them");
                self.requeue(attempt, None).await
            }
            Err(BrokerError::Fenced { .. }) => self.lose(attempt),
            Err(error) => abandon(attempt, &error, "the turn could not be ended; it goes on after a lease"),
        }
    }

    /// Leaves the turn for a later attempt, of any worker.
    async fn retry(&self, attempt: &Attempt, failure: Failure) -> Option<Ticket> {
        let lease = &attempt.lease;
        let delay = self.settings.retries.delay(lease.attempt, &self.surroundings);
        let Failure { blame, dead, reason } = failure;
        let logged = reason.logged(self.settings.log_content);
        let retried =
            until_answered(&self.health, "retry", || self.broker.retry(lease, delay, dead, &reason.text))
                .await;
        match retried {
            Ok(Retry::Later) => {
                attempt.span.left("retried");
                metrics::turn_retried();
                warn!(reason = logged, ?delay, "the attempt failed; the turn is tried again");
            }
            Ok(Retry::Dead) => {
                attempt.span.left("dead");
                metrics::turn_ended(Outcome::Failed, attempt.age(self.surroundings.now()));
                metrics::turn_dead(dead);
                warn!(reason = logged, "the last attempt failed; the turn is a dead letter");
            }
            Err(BrokerError::Fenced { .. }) => return self.lose(attempt),
            Err(error) => {
                return abandon(
                    attempt,
                    &error,
                    "the failed turn could not be requeued; it goes on after a lease",
                );
            }
        }
        self.count_failure(attempt, blame, logged).await;
        None
    }

    /// Another worker has the turn, or it ended elsewhere.
    fn lose(&self, attempt: &Attempt) -> Option<Ticket> {
        attempt.span.left("lost");
        metrics::turn_fenced();
        info!("the turn is not ours any more");
        None
    }

    /// What is stored of the agent's K and V now that the turn is completed.
    async fn manifest(
        &self,
        attempt: &Attempt,
        Kept { chain, conversation, .. }: &Kept,
        reply: &Reply,
    ) -> (Option<Manifest>, Option<Late>) {
        let keeper = self.keeper.as_ref().filter(|_| !attempt.lease.agent.is_lone());
        let (Some(keeper), Some(conversation)) = (keeper, conversation) else { return (None, None) };
        // The last token was sampled, and never computed.
        let computed = reply.kept_tokens(chain.tokens()).len().min(chain.len().saturating_sub(1));
        keeper.end(conversation, (chain, computed)).await
    }

    /// Gives the turn back with what is stored of it, which is what the next worker goes on from. Of a turn whose tokens did not
    /// come back, because the engine is gone, nothing is said.
    async fn requeue_kept(&self, attempt: &Attempt, kept: Option<Kept>) -> Option<Ticket> {
        let manifest = match (&self.keeper, &kept) {
            // Of a turn that is another's nothing is to be said.
            (Some(keeper), Some(Kept { chain, conversation: Some(conversation), .. })) => tokio::select! {
                biased;
                () = attempt.lease.lost() => return self.lose(attempt),
                manifest = keeper.requeue(conversation, chain) => manifest,
            },
            _ => None,
        };
        self.requeue(attempt, manifest).await
    }

    async fn requeue(&self, attempt: &Attempt, manifest: Option<Manifest>) -> Option<Ticket> {
        if self.engine.is_gone() {
            // The turn may be what ended it: the lease runs out, and the attempt counts.
            attempt.span.left("abandoned");
            return None;
        }
        let requeued = until_answered(&self.health, "requeue", || {
            self.broker.requeue(&attempt.lease, manifest.as_ref())
        })
        .await;
        match requeued {
            Ok(()) => {
                attempt.span.left("requeued");
                metrics::turn_requeued();
                info!("the turn was requeued");
            }
            Err(BrokerError::Fenced { .. }) => return self.lose(attempt),
            Err(error) => {
                return abandon(attempt, &error, "the turn could not be requeued; it goes on after a lease");
            }
        }
        None
    }

    fn ending(&self, published: u32, end: End) -> Ending {
        let continues = !self.stop_claiming.is_cancelled();
        Ending { published, end, entry: None, reply: None, reason: None, continues, manifest: None }
    }

    fn end(&self, attempt: &Attempt, made: u32, outcome: Outcome, error: Option<String>) -> End {
        End {
            outcome,
            finish: None,
            stop: None,
            error,
            usage: Usage { completion_tokens: made, ..attempt.usage },
            timing: Timing {
                queued_ms: attempt.queued_ms,
                first_token_ms: attempt.first_token_ms,
                total_ms: attempt.age(self.surroundings.now()).as_millis() as u64,
            },
            worker: Some(self.settings.worker.clone()),
        }
    }
}

/// What a completed turn adds to its agent's history.
fn entry(lease: &Lease, kept: Kept, reply: &Reply) -> TranscriptEntry {
    let Kept { mut messages, keep, chain, rendering, .. } = kept;
    messages.push(reply.message(&lease.turn));
    let tokens = reply.kept_tokens(chain.tokens())[keep as usize..].to_vec();
    TranscriptEntry { turn: lease.turn, messages, keep, tokens, rendering }
}

/// Lets go of a turn whose last call was refused: it stays this worker's until the lease runs out.
fn abandon(attempt: &Attempt, error: &BrokerError, text: &'static str) -> Option<Ticket> {
    attempt.span.left("abandoned");
    warn!(error = error.without_content(), "{text}");
    None
}

/// What an error means for a turn that publishes, if trying again does not mend it.
pub(super) fn unpublished(error: &BrokerError) -> Leaving {
    let text = error.without_content();
    match (error, error.advice()) {
        (BrokerError::Fenced { .. }, _) => Leaving::Lost,
        (BrokerError::Gap { .. }, _) => {
            warn!(error = text, "published tokens are gone; the turn is requeued to go on before them");
            Leaving::Requeued
        }
        // It is about this turn. Requeued, it would fail for ever; attempts are counted.
        (_, Advice::Reject) => {
            warn!(error = text, "tokens could not be published");
            let text = format!("its tokens could not be published: {text}");
            Leaving::failed(Blame::Elsewhere, DeadReason::Attempts, Reason::plain(text))
        }
        (_, Advice::Retry | Advice::Stop) => {
            warn!(error = text, "tokens could not be published; the turn is requeued");
            Leaving::Requeued
        }
    }
}

#[cfg(test)]
mod tests {
    use turnmill_redis::Fault;
    use turnmill_schema::TurnId;
    use turnmill_schema::envelope::EnvelopeError;

    use super::*;

    #[test]
    fn a_turn_is_lost_to_another_lease_alone() {
        let turn = TurnId::new(0);
        let fault = |fault: Fault| unpublished(&fault.into());
        assert!(matches!(unpublished(&BrokerError::Fenced { turn }), Leaving::Lost));
        assert!(matches!(unpublished(&BrokerError::Gap { turn, expected: 2, found: 1 }), Leaving::Requeued));
        assert!(matches!(fault(Fault::Unsuitable("NOAUTH".into())), Leaving::Requeued));
        let wrong_type = Fault::Refused { step: "append", passing: false, reason: "WRONGTYPE".into() };
        assert!(matches!(fault(wrong_type), Leaving::Failed(_)));
        let unreadable = Fault::Unreadable { step: "append", reason: "a word too many".into() };
        assert!(matches!(fault(unreadable), Leaving::Failed(_)));
        let malformed = EnvelopeError::Encode("no place".into());
        assert!(matches!(unpublished(&malformed.into()), Leaving::Failed(_)));
    }
}
