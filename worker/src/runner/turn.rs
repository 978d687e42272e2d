//! One turn's life in this worker: claim -> prompt -> steps -> how it leaves ([`super::leave`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, info, info_span, warn};
use turnmill_schema::{DeadReason, Message, PayloadReference, StoredTurn, Turn, Usage};

use super::conversation::{Conversation, Known};
use super::held::{HeldLease, HeldToken};
use super::keep::Keeper;
use super::leave::{Leaving, lost_to};
use super::publish::Publisher;
use super::retries::Retries;
use super::{Held, Link};
use crate::broker::{Broker, Claim, Lease};
use crate::engine::{EngineHandle, MadeToken, Progress, Reply, Saving, Start};
use crate::kv::{Namespace, Run};
use crate::model::{ChatTemplate, Prompt, PromptError, Tokenizer, prompt};
use crate::schedule::SequenceId;
use crate::store::Payloads;

/// What is needed of a model to make prompts.
pub struct Prompting {
    /// Text to tokens.
    pub tokenizer: Arc<Tokenizer>,
    /// Conversation to text.
    pub template: ChatTemplate,
    /// Identity of the model's blocks, before the tenant.
    pub namespace: Namespace,
    /// Longest context, in tokens.
    pub context_tokens: u32,
    /// Tokens that the whole pool holds.
    pub pool_tokens: u32,
    /// Tokens a block.
    pub block_tokens: usize,
}

impl Prompting {
    /// The block after the run's last.
    fn end(&self, run: &Run) -> usize {
        run.first_block + run.tokens.len() / self.block_tokens
    }
}

/// What a runner is told.
#[derive(Clone, Debug)]
pub struct RunnerSettings {
    /// This worker, as results name it.
    pub worker: String,
    /// How long a token waits for others.
    pub flush: Duration,
    /// Pauses before attempts after the first.
    pub retries: Retries,
}

/// Runs turns; shared by all of them.
pub struct Runner<B> {
    /// The queue.
    pub broker: Arc<B>,
    /// The engine.
    pub engine: EngineHandle,
    /// The model's texts.
    pub prompting: Arc<Prompting>,
    /// Where turns too large for Redis are.
    pub payloads: Option<Payloads>,
    /// Where K and V are kept outside the pool.
    pub keeper: Option<Arc<Keeper>>,
    /// What is held.
    pub held: Held,
    /// Whether the queue answers.
    pub link: Link,
    /// Settings.
    pub settings: RunnerSettings,
    /// Cancelled when the worker drains: it takes no agent's next turn any more.
    pub stop_claiming: CancellationToken,
    /// Cancelled when the drain window is over: what still runs is given back.
    pub give_back: CancellationToken,
    /// The next sequence's id.
    pub sequences: AtomicU64,
}

/// A turn that is being run.
pub(super) struct Attempt {
    pub(super) lease: Lease,
    /// Where its payload is, when that is not in Redis.
    pub(super) payload: Option<PayloadReference>,
    pub(super) queued_ms: u64,
    pub(super) leased: Instant,
    deadline: Option<Instant>,
    /// Milliseconds from enqueue to the first token, where an earlier attempt published it.
    pub(super) first_token_ms: Option<u64>,
    pub(super) usage: Usage,
    /// Prompt and reply so far.
    pub(super) tokens: Vec<u32>,
}

/// A prompt and what is left to make.
struct Work {
    turn: Turn,
    prompt: Prompt,
    reply: Reply,
    max_total_tokens: u32,
    conversation: Option<Conversation>,
}

/// What is still wanted of a turn when it leaves.
pub(super) struct Kept {
    pub(super) messages: Vec<Message>,
    pub(super) prompt: Prompt,
    pub(super) conversation: Option<Conversation>,
}

/// A turn that has no room in the pool for so long gets its stored runs read into the host cache.
const PREFETCH_AFTER: Duration = Duration::from_millis(20);

impl<B: Broker> Runner<B> {
    /// Runs a leased turn to its end. `token` is what it was leased with; the one returned stands for the agent's next
    /// turn, which this worker may go on with.
    pub async fn run(&self, claim: Claim, token: HeldToken) -> Option<HeldToken> {
        let span = info_span!("turn", turn = %claim.lease.turn, agent = %claim.lease.token.agent);
        let held = self.held.add_lease(claim.lease.clone());
        // Only now: between the two heartbeats would miss it.
        drop(token);
        self.run_claim(claim, held).instrument(span).await
    }

    async fn run_claim(&self, claim: Claim, held: HeldLease) -> Option<HeldToken> {
        let mut attempt = Attempt {
            lease: claim.lease.clone(),
            payload: claim.turn.as_ref().ok().and_then(StoredTurn::reference),
            queued_ms: claim.queued_ms,
            leased: Instant::now(),
            deadline: claim.expires_in.and_then(|left| Instant::now().checked_add(left)),
            first_token_ms: claim.first_token_ms,
            usage: Usage::default(),
            tokens: Vec::new(),
        };
        let mut publisher = Publisher::new(
            self.broker.clone(),
            self.link.clone(),
            attempt.lease.clone(),
            &claim.published,
            self.settings.flush,
        );
        let alone = claim.alone;
        let (leaving, kept) = match self.prepare(claim, &held.lost).await {
            Err(leaving) => (leaving, None),
            Ok(work) => {
                attempt.usage.prompt_tokens = work.prompt.tokens.len() as u32;
                let kept = Kept {
                    messages: work.turn.messages.clone(),
                    prompt: work.prompt.clone(),
                    conversation: work.conversation.clone(),
                };
                let leaving = self.compute(&mut attempt, &mut publisher, work, alone, &held.lost).await;
                (leaving, Some(kept))
            }
        };
        if let Some(first) = publisher.first_published() {
            let ms = attempt.queued_ms + (first - attempt.leased).as_millis() as u64;
            attempt.first_token_ms.get_or_insert(ms);
        }
        self.leave(attempt, &mut publisher, leaving, kept, &held.lost).await
    }

    /// Makes the prompt and replays what is published. The error is how the turn leaves instead.
    async fn prepare(&self, claim: Claim, lost: &CancellationToken) -> Result<Work, Leaving> {
        // Another worker may be of a version that reads it.
        let stored =
            claim.turn.map_err(|error| Leaving::failed(DeadReason::Unreadable, error.to_string()))?;
        let turn = self.fetch(stored, lost).await?;
        turn.validate().map_err(|error| Leaving::Rejected(error.to_string()))?;
        let prompting = self.prompting.clone();
        let published: Vec<u32> = claim.published.into_iter().flat_map(|delta| delta.tokens).collect();
        let keeper = self.keeper.as_ref().filter(|keeper| keeper.serves(turn.tenant.as_str()));
        let is_stored = keeper.is_some();
        let (manifest, attempt) = (claim.manifest, claim.lease.attempt);
        // Tokenising a long conversation takes milliseconds of pure computing.
        let made = tokio::task::spawn_blocking(move || {
            let prompt = prompt(&prompting.tokenizer, &prompting.template, &claim.history, &turn.messages)?;
            let conversation = is_stored.then(|| {
                let known = Known {
                    tenant: turn.tenant.as_str(),
                    messages: &[&claim.history.messages[..], &turn.messages].concat(),
                    tokens: &[&prompt.tokens[..], &published].concat(),
                    manifest,
                    has_history: !claim.history.tokens.is_empty(),
                    resumed: attempt > 1 || !published.is_empty(),
                };
                Conversation::new(&prompting, &known)
            });
            Ok::<_, PromptError>((turn, prompt, published, conversation))
        });
        let made = made.await.map_err(|_| {
            let text = "the prompt could not be made: a bug in the worker; please report its log";
            Leaving::failed(DeadReason::Attempts, text.to_owned())
        })?;
        let (turn, prompt, published, conversation) =
            made.map_err(|error| Leaving::Rejected(error.to_string()))?;
        if prompt.retokenised && claim.lease.attempt == 1 {
            info!(kept = prompt.kept, "the template rewrote the history; it was tokenised again");
        }
        let max_total_tokens =
            self.max_total_tokens(&turn, prompt.tokens.len() as u32).map_err(Leaving::Rejected)?;
        let max_tokens = max_total_tokens - prompt.tokens.len() as u32;
        let mut reply = Reply::new(self.prompting.tokenizer.clone(), &turn.sampling, max_tokens);
        self.replay(&mut reply, &published).map_err(|text| Leaving::failed(DeadReason::Unreadable, text))?;
        Ok(Work { turn, prompt, reply, max_total_tokens, conversation })
    }

    /// Restores the state after the tokens that earlier attempts published. Another model, or a smaller context
    /// or pool than theirs, cannot go on from there.
    fn replay(&self, reply: &mut Reply, published: &[u32]) -> Result<(), String> {
        let vocabulary = self.prompting.tokenizer.vocabulary() as u32;
        for (index, token) in published.iter().enumerate() {
            if *token >= vocabulary || reply.finish().is_some() {
                return Err(format!(
                    "{} tokens were published by a worker with another model, or with more context or pool, and \
                     this one cannot follow them past {index}; give the workers of a queue the same settings",
                    published.len()
                ));
            }
            reply.push(*token);
        }
        Ok(())
    }

    /// Prompt and reply at most. A turn that names no limit gets what context and pool leave.
    fn max_total_tokens(&self, turn: &Turn, prompt: u32) -> Result<u32, String> {
        let (context, pool) = (self.prompting.context_tokens, self.prompting.pool_tokens);
        let room = context.min(pool);
        match turn.sampling.max_tokens {
            Some(max_tokens) => Ok(prompt.saturating_add(max_tokens)),
            None if prompt < room => Ok(room),
            None => Err(format!(
                "the prompt has {prompt} tokens; the context holds {context} and the worker's pool {pool}, \
                 reply included: shorten it, or start a new session"
            )),
        }
    }

    async fn compute(
        &self,
        attempt: &mut Attempt,
        publisher: &mut Publisher<B>,
        work: Work,
        alone: bool,
        lost: &CancellationToken,
    ) -> Leaving {
        if work.reply.finish().is_some() {
            // The worker before us died between the last token and the end.
            return Leaving::Completed(Box::new(work.reply));
        }
        let id = SequenceId(self.sequences.fetch_add(1, Ordering::Relaxed));
        let left =
            work.max_total_tokens as usize - work.prompt.tokens.len().min(work.max_total_tokens as usize);
        let (sender, mut progress) = mpsc::channel(left + 3);
        attempt.tokens = [&work.prompt.tokens[..], work.reply.tokens()].concat();
        let stored = work.conversation.as_ref().map_or_else(Vec::new, |of| of.stored.clone());
        let saving = work.conversation.map(|conversation| Saving {
            grid: conversation.grid,
            only_shared: attempt.lease.token.agent.is_lone(),
        });
        let start = Start {
            id,
            prompt: work.prompt.tokens,
            reply: work.reply,
            sampling: work.turn.sampling,
            max_total_tokens: work.max_total_tokens,
            namespace: self.prompting.namespace.for_tenant(work.turn.tenant.as_str()),
            priority: work.turn.priority,
            alone,
            restorable_blocks: stored.last().map_or(0, |run| self.prompting.end(run)),
            saving,
            progress: sender,
        };
        if self.engine.start(start).await.is_err() {
            return Leaving::GivenBack;
        }
        let guard = StopOnDrop { engine: Some(self.engine.clone()), id };
        let expires = attempt.deadline;
        let leaving = tokio::select! {
            leaving = self.receive(attempt, publisher, &mut progress, (id, stored)) => leaving,
            () = lost.cancelled() => Leaving::Lost,
            () = self.give_back.cancelled() => Leaving::GivenBack,
            () = until(expires) => Leaving::Expired,
        };
        guard.disarm();
        if matches!(leaving, Leaving::GivenBack | Leaving::Lost | Leaving::Expired) {
            // An engine that is gone needs no stopping.
            let _ = self.engine.stop(id, matches!(leaving, Leaving::GivenBack)).await;
        }
        if matches!(leaving, Leaving::GivenBack | Leaving::Expired | Leaving::Failed(_)) {
            self.publish_rest(attempt, publisher, &mut progress, lost).await;
        }
        leaving
    }

    /// Publishes tokens as they come, until the turn is over. Before the first one the `stored` runs come back, where the
    /// pool lacks them.
    async fn receive(
        &self,
        attempt: &mut Attempt,
        publisher: &mut Publisher<B>,
        progress: &mut mpsc::Receiver<Progress>,
        (id, stored): (SequenceId, Vec<Arc<Run>>),
    ) -> Leaving {
        let mut prefetch = self.prefetch(&stored);
        loop {
            let flush = until(publisher.due());
            let next = tokio::select! {
                biased;
                next = progress.recv() => next,
                () = flush => match publisher.flush().await {
                    Ok(()) => continue,
                    Err(error) => return lost_to(&error),
                },
            };
            match next {
                Some(Progress::Room { blocks }) => {
                    drop(prefetch.take());
                    if let Some(keeper) = &self.keeper {
                        keeper.restorer.restore(id, &stored, blocks).await;
                    }
                    if self.engine.end_restore(id).await.is_err() {
                        return Leaving::GivenBack;
                    }
                }
                Some(Progress::Admitted { cached_tokens }) => {
                    drop(prefetch.take());
                    attempt.usage.cached_tokens = cached_tokens;
                }
                Some(Progress::Token(token)) => {
                    attempt.tokens.push(token.id);
                    publisher.push(&token);
                    let MadeToken { reply: Some(reply), .. } = token else { continue };
                    return match publisher.flush().await {
                        Ok(()) => Leaving::Completed(reply),
                        Err(error) => lost_to(&error),
                    };
                }
                Some(Progress::Refused(text)) => return Leaving::Rejected(text),
                Some(Progress::Failed(text)) => return Leaving::failed(DeadReason::Attempts, text),
                None => return Leaving::GivenBack,
            }
        }
    }

    /// Brings stored runs into the host cache while the turn waits for room; until the handle is dropped.
    fn prefetch(&self, stored: &[Arc<Run>]) -> Option<AbortOnDropHandle<()>> {
        let keeper = self.keeper.clone().filter(|_| !stored.is_empty())?;
        let stored = stored.to_vec();
        Some(AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep(PREFETCH_AFTER).await;
            keeper.restorer.prefetch(&stored).await;
        })))
    }

    /// What the engine made before it was stopped is published too: the next worker goes on after it.
    async fn publish_rest(
        &self,
        attempt: &mut Attempt,
        publisher: &mut Publisher<B>,
        progress: &mut mpsc::Receiver<Progress>,
        lost: &CancellationToken,
    ) {
        while let Some(next) = progress.recv().await {
            if let Progress::Token(token) = next {
                attempt.tokens.push(token.id);
                publisher.push(&token);
            }
        }
        tokio::select! {
            flushed = publisher.flush() => if let Err(error) = flushed {
                warn!(%error, "the last tokens were not published; the next worker makes them again");
            },
            () = lost.cancelled() => {}
        }
    }
}

/// Takes a turn whose task dies out of the engine, where it would wait for its blocks for ever.
struct StopOnDrop {
    engine: Option<EngineHandle>,
    id: SequenceId,
}

impl StopOnDrop {
    fn disarm(mut self) {
        self.engine = None;
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if let (Some(engine), Ok(runtime)) = (self.engine.take(), Handle::try_current()) {
            let id = self.id;
            // An engine that is gone needs no stopping.
            runtime.spawn(async move { engine.stop(id, false).await.ok() });
        }
    }
}

/// Waits for a time; for ever where there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
