//! From a claimed turn to what the engine is given: its prompt, the reply so far, and its tokens as the store knows them.
//!
//! Invariant: what earlier attempts published is replayed here and nowhere else, so that a turn that had ended already is
//! not computed.

use std::sync::Arc;

use tracing::info;
use turnmill_schema::{DeadReason, Delta, History, Manifest, Turn};

use super::Runner;
use super::conversation::{Conversation, Known};
use super::leave::{Leaving, Reason};
use crate::broker::Broker;
use crate::engine::{EngineHandle, Reply};
use crate::kv::Namespace;
use crate::model::{ChatTemplate, Prompt, PromptError, Tokenizer, prompt};

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

/// What a lease brought along besides the turn.
pub(super) struct Leased {
    pub(super) history: Arc<History>,
    pub(super) manifest: Option<Manifest>,
    pub(super) published: Vec<Delta>,
    pub(super) attempt: u32,
}

/// A prompt and what is left to make.
pub(super) struct Work {
    pub(super) turn: Turn,
    pub(super) prompt: Prompt,
    pub(super) reply: Reply,
    pub(super) max_total_tokens: u32,
    pub(super) conversation: Option<Conversation>,
}

impl<B: Broker, E: EngineHandle> Runner<B, E> {
    /// Makes the prompt and replays what is published. The error is how the turn leaves instead.
    pub(super) async fn prepare(&self, turn: Turn, leased: Leased) -> Result<Work, Leaving> {
        turn.validate().map_err(|error| Leaving::Rejected(Reason::plain(error)))?;
        let prompting = self.prompting.clone();
        let published: Vec<u32> = leased.published.into_iter().flat_map(|delta| delta.tokens).collect();
        let keeper = self.keeper.as_ref().filter(|keeper| keeper.serves(turn.tenant.as_str()));
        let is_stored = keeper.is_some();
        let Leased { history, manifest, attempt, .. } = leased;
        // Tokenising a long conversation takes milliseconds of pure computing.
        let made = self.surroundings.run_blocking(move || {
            let prompt = prompt(&prompting.tokenizer, &prompting.template, &history, &turn.messages)?;
            let conversation = is_stored.then(|| {
                let known = Known {
                    tenant: turn.tenant.as_str(),
                    messages: &[&history.messages[..], &turn.messages].concat(),
                    tokens: &[&prompt.tokens[..], &published].concat(),
                    manifest,
                    has_history: !history.tokens.is_empty(),
                    resumed: attempt > 1 || !published.is_empty(),
                };
                Conversation::new(&prompting, &known)
            });
            Ok::<_, PromptError>((turn, prompt, published, conversation))
        });
        let made = made.await.map_err(|_| {
            let text = "the prompt could not be made: a bug in the worker; please report its log";
            Leaving::failed(DeadReason::Attempts, Reason::plain(text))
        })?;
        let (turn, prompt, published, conversation) =
            made.map_err(|error| Leaving::Rejected(Reason::quoting(error)))?;
        if prompt.retokenised && attempt == 1 {
            info!(kept = prompt.kept, "the template rewrote the history; it was tokenised again");
        }
        let max_total_tokens = self
            .max_total_tokens(&turn, prompt.tokens.len() as u32)
            .map_err(Reason::plain)
            .map_err(Leaving::Rejected)?;
        let max_tokens = max_total_tokens - prompt.tokens.len() as u32;
        let mut reply = Reply::new(self.prompting.tokenizer.clone(), &turn.sampling, max_tokens);
        self.replay(&mut reply, &published)
            .map_err(|text| Leaving::failed(DeadReason::Unreadable, Reason::plain(text)))?;
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
}
