//! One turn's life in this worker: claim -> prompt -> steps -> how it leaves ([`super::leave`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, warn};
use turnmill_schema::{DeadReason, Message, PayloadReference, StoredTurn, Turn, Usage};

use super::QueueHealth;
use super::coalesce::Coalescing;
use super::conversation::Conversation;
use super::fitness::{Blame, Fitness};
use super::keep::Keeper;
use super::leave::{Leaving, Reason, unpublished};
use super::prepare::{Leased, Prompting, Work};
use super::publish::Publisher;
use super::restore::Restored;
use super::retries::Retries;
use crate::broker::{Broker, Claim, Lease, Ticket};
use crate::engine::{EngineHandle, Finished, MadeToken, Progress, Reply, Saving, Start};
use crate::kv::{Segment, TokenChain};
use crate::lifecycle::Lifecycle;
use crate::observe::{Claimed, Traces, TurnSpan};
use crate::schedule::SequenceId;
use crate::store::Payloads;
use crate::surroundings::{Running, Surroundings};

/// What a runner is told.
#[derive(Clone, Debug)]
pub struct RunnerSettings {
    /// This worker, as results name it.
    pub worker: String,
    /// Pauses before attempts after the first.
    pub retries: Retries,
    /// Whether log lines may say what turns say.
    pub log_content: bool,
}

/// Runs turns; shared by all of them.
pub struct Runner<B, E> {
    /// The queue.
    pub broker: Arc<B>,
    /// The engine.
    pub engine: E,
    /// The model's texts.
    pub prompting: Arc<Prompting>,
    /// Where turns too large for Redis are.
    pub payloads: Option<Payloads>,
    /// Where K and V are kept outside the pool.
    pub keeper: Option<Arc<Keeper<E>>>,
    /// Whether the queue answers.
    pub health: QueueHealth,
    /// How the worker does.
    pub lifecycle: Arc<Lifecycle>,
    /// Whether turns fail here that other workers complete.
    pub(super) fitness: Fitness,
    /// How long tokens wait for others.
    pub coalescing: Arc<Coalescing>,
    /// Makes turns' spans.
    pub traces: Traces,
    /// Settings.
    pub settings: RunnerSettings,
    /// Cancelled when the worker drains, or by the runner when it fails: it takes no agent's next turn any more.
    pub stop_claiming: CancellationToken,
    /// Cancelled when the drain window is over: what still runs is requeued.
    pub requeue: CancellationToken,
    /// The next sequence's id.
    pub sequences: AtomicU64,
    /// Where the worker runs.
    pub surroundings: Surroundings,
}

/// A turn that is being run.
pub(super) struct Attempt {
    pub(super) lease: Arc<Lease>,
    /// Where its payload is, when that is not in Redis.
    pub(super) payload: Option<PayloadReference>,
    pub(super) queued_ms: u64,
    pub(super) leased: Instant,
    pub(super) deadline: Option<Instant>,
    /// Milliseconds from enqueue to the first token, if an earlier attempt published it.
    pub(super) first_token_ms: Option<u64>,
    pub(super) usage: Usage,
    /// Prompt and reply, once the engine has given them back.
    returned: Option<TokenChain>,
    pub(super) span: TurnSpan,
}

impl Attempt {
    /// The engine made a token. Returns the reply that ended with it.
    fn take<B: Broker>(&mut self, token: MadeToken, publisher: &mut Publisher<B>) -> Option<Reply> {
        self.span.token(token.at);
        publisher.push(&token);
        let Finished { reply, chain } = *token.finished?;
        self.returned = Some(chain);
        Some(reply)
    }

    /// Time since the turn was enqueued.
    pub(super) fn age(&self, now: Instant) -> Duration {
        Duration::from_millis(self.queued_ms) + (now - self.leased)
    }
}

/// What is still wanted of a turn when it leaves, if its tokens have come back.
pub(super) struct Kept {
    pub(super) messages: Vec<Message>,
    /// Prompt and reply.
    pub(super) chain: TokenChain,
    /// How many of these tokens are the agent's history already.
    pub(super) keep: u32,
    /// What the template was given besides messages.
    pub(super) rendering: Option<String>,
    pub(super) conversation: Option<Conversation>,
}

/// A turn that has had no room in the pool for this long gets its stored segments read into the host cache.
const PREFETCH_AFTER: Duration = Duration::from_millis(20);

impl<B: Broker, E: EngineHandle> Runner<B, E> {
    /// Runs a leased turn to its end. `ticket` is what it was leased with; the one returned stands for the agent's next
    /// turn, which this worker may go on with.
    pub async fn run(&self, claim: Claim, claimed: Claimed, ticket: Ticket) -> Option<Ticket> {
        let request = match &claim.turn {
            Ok(StoredTurn::Inline(turn)) => Some(turn.request_id()),
            Ok(StoredTurn::Reference(_)) | Err(_) => None,
        };
        let span = TurnSpan::new(&claim.lease, request.as_ref());
        // The lease holds what the ticket did.
        drop(ticket);
        let log = span.log().clone();
        self.run_claim(claim, claimed, span).instrument(log).await
    }

    async fn run_claim(&self, claim: Claim, claimed: Claimed, span: TurnSpan) -> Option<Ticket> {
        let leased = self.surroundings.now();
        let mut attempt = Attempt {
            lease: Arc::clone(&claim.lease),
            payload: claim.turn.as_ref().ok().and_then(StoredTurn::reference),
            queued_ms: claim.queued_ms,
            leased,
            deadline: claim.expires_in.and_then(|left| leased.checked_add(left)),
            first_token_ms: claim.first_token_ms,
            usage: Usage::default(),
            returned: None,
            span,
        };
        let mut publisher = Publisher::new(
            self.broker.clone(),
            self.health.clone(),
            Arc::clone(&attempt.lease),
            &claim.published,
            self.coalescing.clone(),
        );
        let alone = claim.alone;
        let (leaving, kept) = match self.work(&mut attempt, claim, claimed).await {
            Err(leaving) => (leaving, None),
            Ok(mut work) => {
                self.log_asked(&work.turn);
                attempt.usage.prompt_tokens = work.lengths.prompt;
                let (rendering, keep) = (work.turn.rendering(), work.lengths.kept);
                let messages = std::mem::take(&mut work.turn.messages);
                let conversation = work.conversation.clone();
                let leaving = self.compute(&mut attempt, &mut publisher, work, alone).await;
                attempt.span.computed();
                let returned = attempt.returned.take();
                (leaving, returned.map(|chain| Kept { messages, chain, keep, rendering, conversation }))
            }
        };
        if let Some(first) = publisher.first_published() {
            let ms = attempt.queued_ms + (first - attempt.leased).as_millis() as u64;
            attempt.first_token_ms.get_or_insert(ms);
        }
        let began_to_leave = self.surroundings.now();
        let next = self.leave(&attempt, &mut publisher, leaving, kept).await;
        attempt.span.end((began_to_leave, self.surroundings.now()), attempt.usage);
        next
    }

    /// What is to be done: the turn is read, wherever it is, and its prompt made. From here on its span is known.
    async fn work(&self, attempt: &mut Attempt, claim: Claim, claimed: Claimed) -> Result<Work, Leaving> {
        let turn = match claim.turn {
            Ok(stored) => self.fetch(stored, attempt).await,
            // Another worker may be of a version that reads it.
            Err(error) => {
                Err(Leaving::failed(Blame::Elsewhere, DeadReason::Unreadable, Reason::quoting(error)))
            }
        };
        let about = (claimed, claim.earlier_epoch);
        attempt.span.begin(&self.traces, &attempt.lease, turn.as_ref().ok(), about);
        let leased = Leased {
            history: claim.history,
            manifest: claim.manifest,
            published: claim.published,
            attempt: attempt.lease.attempt,
        };
        self.prepare(turn?, leased).await
    }

    /// What is asked, if the log may say it.
    fn log_asked(&self, turn: &Turn) {
        if self.settings.log_content {
            debug!(messages = ?turn.messages, "the turn's new messages");
        }
    }

    async fn compute(
        &self,
        attempt: &mut Attempt,
        publisher: &mut Publisher<B>,
        work: Work,
        alone: bool,
    ) -> Leaving {
        if work.reply.finish().is_some() {
            // The worker before us died between the last token and the end.
            attempt.returned = Some(work.chain);
            return Leaving::Completed(Box::new(work.reply));
        }
        let id = SequenceId(self.sequences.fetch_add(1, Ordering::Relaxed));
        let (max_total_tokens, stored) = (work.lengths.max_total, work.stored);
        let left = max_total_tokens.saturating_sub(work.lengths.prompt) as usize;
        let (sender, mut progress) = mpsc::channel(left + 3);
        let saving = work.conversation.map(|conversation| Saving {
            grid: conversation.grid,
            only_shared: attempt.lease.agent.is_lone(),
        });
        let start = Start {
            id,
            chain: work.chain,
            reply: work.reply,
            sampling: work.turn.sampling,
            max_total_tokens,
            priority: work.turn.priority,
            alone,
            restorable_blocks: stored
                .last()
                .map_or(0, |segment| segment.end_block(self.prompting.block_tokens)),
            saving,
            progress: sender,
        };
        if self.engine.start(start).await.is_err() {
            return Leaving::Requeued;
        }
        let guard =
            StopOnDrop { engine: Some(self.engine.clone()), surroundings: self.surroundings.clone(), id };
        let (expires, lease) = (attempt.deadline, Arc::clone(&attempt.lease));
        // A turn that is another's is let go whatever else there is, and one that is done is done though its time is over.
        let leaving = tokio::select! {
            biased;
            () = lease.lost() => Leaving::Lost,
            leaving = self.receive(attempt, publisher, &mut progress, (id, stored)) => leaving,
            () = self.requeue.cancelled() => Leaving::Requeued,
            () = until(expires, &self.surroundings) => Leaving::Expired,
        };
        guard.disarm();
        if !matches!(leaving, Leaving::Completed(_) | Leaving::Rejected(_)) {
            // Of a turn that failed in the engine nothing is left there. An engine that is gone needs no stopping.
            let _ = self.engine.stop(id, matches!(leaving, Leaving::Requeued)).await;
        }
        if matches!(leaving, Leaving::Requeued | Leaving::Expired | Leaving::Failed(_)) {
            self.publish_rest(attempt, publisher, &mut progress).await;
        }
        leaving
    }

    /// Publishes tokens as they come, until the turn is over. Before the first one the `stored` segments come back, if the
    /// pool lacks them.
    async fn receive(
        &self,
        attempt: &mut Attempt,
        publisher: &mut Publisher<B>,
        progress: &mut mpsc::Receiver<Progress>,
        (id, mut stored): (SequenceId, Vec<Arc<Segment>>),
    ) -> Leaving {
        let mut prefetch = self.prefetch(&stored);
        loop {
            let flush = until(publisher.due(), &self.surroundings);
            let next = tokio::select! {
                biased;
                next = progress.recv() => next,
                () = flush => match publisher.flush().await {
                    Ok(()) => continue,
                    Err(error) => return unpublished(&error),
                },
            };
            match next {
                Some(Progress::Room { blocks }) => {
                    drop(prefetch.take());
                    if let Some(keeper) = &self.keeper {
                        let began = self.surroundings.now();
                        let Restored { tokens, outcome } = keeper.restorer.restore(id, &stored, blocks).await;
                        attempt.span.restored((began, self.surroundings.now()), outcome, tokens);
                    }
                    if self.engine.end_restore(id).await.is_err() {
                        return Leaving::Requeued;
                    }
                }
                Some(Progress::Admitted { cached_tokens, at }) => {
                    drop(prefetch.take());
                    // They hold tokens, and nothing more comes back.
                    stored = Vec::new();
                    attempt.span.admitted(at, cached_tokens);
                    attempt.usage.cached_tokens = cached_tokens;
                }
                Some(Progress::Token(token)) => {
                    let Some(reply) = attempt.take(token, publisher) else { continue };
                    return match publisher.flush().await {
                        Ok(()) => Leaving::Completed(Box::new(reply)),
                        Err(error) => unpublished(&error),
                    };
                }
                Some(Progress::Stopped(chain)) => {
                    attempt.returned = Some(chain);
                    return Leaving::Requeued;
                }
                Some(Progress::Refused(text)) => return Leaving::Rejected(Reason::plain(text)),
                Some(Progress::Failed(text)) => {
                    return Leaving::failed(Blame::Step, DeadReason::Attempts, Reason::plain(text));
                }
                None => return Leaving::Requeued,
            }
        }
    }

    /// Brings stored segments into the host cache while the turn waits for room; until the handle is dropped.
    fn prefetch(&self, stored: &[Arc<Segment>]) -> Option<Running<()>> {
        let keeper = self.keeper.clone().filter(|_| !stored.is_empty())?;
        let (stored, surroundings) = (stored.to_vec(), self.surroundings.clone());
        let fetch = async move {
            surroundings.sleep(PREFETCH_AFTER).await;
            keeper.restorer.prefetch(&stored).await;
        };
        Some(self.surroundings.run(fetch.in_current_span()))
    }

    /// What the engine made before it was stopped is published too: the next worker goes on after it. Last, the turn's tokens
    /// come back, unless the turn failed or the engine is gone.
    async fn publish_rest(
        &self,
        attempt: &mut Attempt,
        publisher: &mut Publisher<B>,
        progress: &mut mpsc::Receiver<Progress>,
    ) {
        while let Some(next) = progress.recv().await {
            match next {
                Progress::Token(token) => drop(attempt.take(token, publisher)),
                Progress::Stopped(chain) => attempt.returned = Some(chain),
                Progress::Room { .. }
                | Progress::Admitted { .. }
                | Progress::Refused(_)
                | Progress::Failed(_) => {}
            }
        }
        tokio::select! {
            biased;
            flushed = publisher.flush() => if let Err(error) = flushed {
                warn!(error = error.without_content(), "the last tokens were not published; the next worker makes them again");
            },
            () = attempt.lease.lost() => {}
        }
    }
}

/// Takes a turn whose task dies out of the engine: it would wait there for its blocks for ever.
struct StopOnDrop<E: EngineHandle> {
    engine: Option<E>,
    surroundings: Surroundings,
    id: SequenceId,
}

impl<E: EngineHandle> StopOnDrop<E> {
    fn disarm(mut self) {
        self.engine = None;
    }
}

impl<E: EngineHandle> Drop for StopOnDrop<E> {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            let id = self.id;
            self.surroundings.spawn(async move {
                // An engine that is gone needs no stopping.
                let _ = engine.stop(id, false).await;
            });
        }
    }
}

/// Waits for a time; for ever if there is none.
pub(super) async fn until(time: Option<Instant>, surroundings: &Surroundings) {
    match time {
        Some(time) => surroundings.sleep_until(time).await,
        None => std::future::pending().await,
    }
}
