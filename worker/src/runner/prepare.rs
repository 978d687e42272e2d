//! From a claimed turn to what the engine is given: its tokens, the reply so far, and what the store knows of them.
//!
//! Invariants: a turn's tokens are put together and hashed here and nowhere else, and have one owner from here on; what earlier
//! attempts published is replayed here and nowhere else, so that a turn that had ended already is not computed.

use std::sync::Arc;

use tracing::info;
use turnmill_schema::{DeadReason, Delta, History, InvalidMessage, Manifest, Turn, check_results};

use super::Runner;
use super::conversation::{Conversation, Known};
use super::fitness::Blame;
use super::form::Forms;
use super::leave::{Leaving, Reason};
use crate::broker::Broker;
use crate::engine::{EngineHandle, Reply};
use crate::kv::{Namespace, Segment, TokenChain};
use crate::model::{
    Asked, Dialogue, GrammarError, Prompt, PromptError, Rendering, Tokenizer, prompt, raw_prompt,
};

/// What is needed of a model to make prompts.
pub struct Prompting {
    /// Text to tokens.
    pub tokenizer: Arc<Tokenizer>,
    /// Conversation to text.
    pub dialogue: Dialogue,
    /// What replies look like.
    pub forms: Forms,
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

/// A turn's tokens and what is left to make.
pub(super) struct Work {
    pub(super) turn: Turn,
    /// The prompt, and then the reply's tokens.
    pub(super) chain: TokenChain,
    pub(super) reply: Reply,
    pub(super) lengths: Lengths,
    pub(super) conversation: Option<Conversation>,
    /// Its segments that may be stored, first to last.
    pub(super) stored: Vec<Arc<Segment>>,
}

/// Extents of a turn, in tokens.
#[derive(Clone, Copy)]
pub(super) struct Lengths {
    /// What the prompt keeps of the agent's history: its first tokens.
    pub(super) kept: u32,
    pub(super) prompt: u32,
    /// Prompt and reply at most.
    pub(super) max_total: u32,
}

/// What is made of a turn on a thread that may compute.
struct Made {
    work: Work,
    retokenised: bool,
}

/// Why nothing can be made of a turn.
#[derive(Debug, thiserror::Error)]
enum Unmade {
    #[error(transparent)]
    Message(#[from] InvalidMessage),
    #[error(transparent)]
    Prompt(#[from] PromptError),
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// What it asks for is not to be had.
    #[error("{0}")]
    Asked(String),
    /// It has more tokens than there is room for.
    #[error(
        "the prompt has {prompt} tokens; the context holds {context} and the worker's pool {pool}, reply included: \
         shorten it, or start a new session"
    )]
    NoRoom { prompt: usize, context: u32, pool: u32 },
    /// Another model, or a smaller context or pool than theirs, cannot go on from there.
    #[error(
        "{published} tokens were published by a worker with another model, or with more context or pool, and this one \
         cannot follow them past {index}; give the workers of a queue the same settings"
    )]
    CannotFollow { published: usize, index: usize },
}

impl Unmade {
    fn leaving(self) -> Leaving {
        let is_turns_fault = match &self {
            Self::Message(_) | Self::NoRoom { .. } | Self::Asked(_) => true,
            Self::Prompt(error) => error.is_turns_fault(),
            Self::Grammar(error) => error.is_turns_fault(),
            Self::CannotFollow { .. } => {
                return Leaving::failed(Blame::Worker, DeadReason::Unreadable, Reason::plain(self));
            }
        };
        let reason = Reason::quoting(self);
        match is_turns_fault {
            true => Leaving::Rejected(reason),
            false => Leaving::failed(Blame::Worker, DeadReason::Attempts, reason),
        }
    }
}

impl<B: Broker, E: EngineHandle> Runner<B, E> {
    /// Makes the prompt and replays what is published. The error is how the turn leaves instead.
    pub(super) async fn prepare(&self, turn: Turn, leased: Leased) -> Result<Work, Leaving> {
        turn.validate().map_err(|error| Leaving::Rejected(Reason::plain(error)))?;
        let prompting = self.prompting.clone();
        let is_stored = self.keeper.as_ref().is_some_and(|keeper| keeper.serves(turn.tenant.as_str()));
        let attempt = leased.attempt;
        // Tokenising a long conversation takes milliseconds of pure computing, and so do hashing it and compiling a grammar.
        let made = self.surroundings.run_blocking(move || prompting.make(turn, leased, is_stored));
        let made = made.await.map_err(|_| {
            let text = "the prompt could not be made: a bug in the worker; please report its log";
            Leaving::failed(Blame::Worker, DeadReason::Attempts, Reason::plain(text))
        })?;
        let Made { work, retokenised } = made.map_err(Unmade::leaving)?;
        if retokenised && attempt == 1 {
            info!(kept = work.lengths.kept, "the template rewrote the history; it was tokenised again");
        }
        Ok(work)
    }
}

impl Prompting {
    /// Puts a turn's tokens together, cuts them into segments if they are stored, and replays what is published.
    fn make(&self, turn: Turn, leased: Leased, is_stored: bool) -> Result<Made, Unmade> {
        let Leased { history, manifest, published, attempt } = leased;
        self.check_tokens(&turn).and_then(|()| self.check_calls(&turn)).map_err(Unmade::Asked)?;
        check_results(&history.messages, &turn.messages)?;
        let rendering = self.rendering(&turn, &history);
        let Prompt { tokens, kept, retokenised, rendered } = self.prompt(&turn, &history, rendering)?;
        let prompt = tokens.len();
        let max_total = self.max_total_tokens(&turn, prompt)?;
        let namespace = self.namespace.for_tenant(turn.tenant.as_str());
        let mut chain = TokenChain::new(namespace, self.block_tokens, tokens);
        published.iter().for_each(|delta| chain.extend(&delta.tokens));
        let form = self.forms.of(&turn, &rendered)?;
        let max_tokens = max_total.saturating_sub(prompt as u32);
        let mut reply = Reply::new(self.tokenizer.clone(), &turn.sampling, max_tokens, form);
        self.replay(&mut reply, &chain.tokens()[prompt..])?;
        let conversation = is_stored.then(|| {
            let known = Known {
                tenant: turn.tenant.as_str(),
                messages: &[&history.messages[..], &turn.messages].concat(),
                rendering,
                chain: &chain,
                manifest,
                has_history: !history.tokens.is_empty(),
                resumed: attempt > 1 || chain.len() > prompt,
            };
            Conversation::new(self, &known)
        });
        let (conversation, stored) = conversation.unzip();
        let lengths = Lengths { kept: kept as u32, prompt: prompt as u32, max_total };
        let work = Work { turn, chain, reply, lengths, conversation, stored: stored.unwrap_or_default() };
        Ok(Made { work, retokenised })
    }

    /// What the template is given besides messages.
    fn rendering<'a>(&self, turn: &'a Turn, history: &History) -> Rendering<'a> {
        Rendering {
            tools: turn.callable_tools(),
            arguments: Some(&turn.template_arguments),
            thinks: turn.reasoning.enabled,
            effort: turn.reasoning.effort,
            // The day of the agent's first turn: another day would be another prompt, from its first block on.
            date_ms: Some(history.first.unwrap_or(turn.id).unix_ms()),
            generation_prompt: true,
        }
    }

    fn prompt(
        &self,
        turn: &Turn,
        history: &History,
        rendering: Rendering<'_>,
    ) -> Result<Prompt, PromptError> {
        let room = self.context_tokens.min(self.pool_tokens) as usize;
        if let Some(text) = &turn.prompt {
            return raw_prompt(&self.tokenizer, text, room);
        }
        let digest = turn.rendering();
        let asked = Asked {
            messages: &turn.messages,
            rendering,
            digest: digest.as_deref(),
            keep_thoughts: turn.keep_thoughts,
            room,
        };
        prompt(&self.tokenizer, &self.dialogue, history, &asked)
    }

    /// Tools are there for models that call them.
    fn check_calls(&self, turn: &Turn) -> Result<(), String> {
        if turn.callable_tools().is_empty() || self.dialogue.tools().is_some() {
            return Ok(());
        }
        Err("the turn has tools, and the workers were told that their model calls none (--tool-format none); leave the tools out, or \
             give the workers another format"
            .to_owned())
    }

    /// Token ids that a turn names are the model's, and so are control tokens in its stop strings.
    fn check_tokens(&self, turn: &Turn) -> Result<(), String> {
        let vocabulary = self.tokenizer.vocabulary() as u32;
        let sampling = &turn.sampling;
        for (field, mut ids) in [
            ("logit_bias", sampling.logit_bias.keys().copied().collect::<Vec<_>>()),
            ("stop_token_ids", sampling.stop_token_ids.clone()),
        ] {
            ids.retain(|id| *id >= vocabulary);
            if let Some(id) = ids.first() {
                return Err(format!(
                    "{field} names the token {id}, and this model has {vocabulary} tokens; give ids below that"
                ));
            }
        }
        for stop in &sampling.stop {
            let ids = self.tokenizer.encode(stop).unwrap_or_default();
            let control = ids.iter().find(|id| self.tokenizer.is_control(**id));
            if let Some(control) = control.filter(|_| ids.len() > 1) {
                let name = self.tokenizer.token(*control).unwrap_or_default();
                return Err(format!(
                    "the stop string {stop:?} has the control token {name}, which has no text in a reply; \
                     give {name} alone as a stop string, or leave it out"
                ));
            }
        }
        Ok(())
    }

    /// Restores the state after the tokens that earlier attempts published.
    fn replay(&self, reply: &mut Reply, tokens: &[u32]) -> Result<(), Unmade> {
        let vocabulary = self.tokenizer.vocabulary() as u32;
        for (index, token) in tokens.iter().enumerate() {
            if *token < vocabulary && reply.finish().is_none() {
                reply.push(*token);
                if reply.stuck().is_none() {
                    continue;
                }
            }
            return Err(Unmade::CannotFollow { published: tokens.len(), index });
        }
        Ok(())
    }

    /// Prompt and reply at most. A turn that names no limit gets what context and pool leave.
    fn max_total_tokens(&self, turn: &Turn, prompt: usize) -> Result<u32, Unmade> {
        let (context, pool) = (self.context_tokens, self.pool_tokens);
        let room = context.min(pool);
        match turn.sampling.max_tokens {
            Some(max_tokens) => Ok((prompt as u32).saturating_add(max_tokens)),
            None if (prompt as u32) < room => Ok(room),
            None => Err(Unmade::NoRoom { prompt, context, pool }),
        }
    }
}
