//! From a claimed turn to what the engine is given: its tokens, the reply so far, and what the store knows of them.
//!
//! Invariants: a turn's tokens are put together and hashed here and nowhere else, and have one owner from here on; what earlier
//! attempts published is replayed here and nowhere else, so that a turn that had ended already is not computed.

use std::sync::Arc;

use tracing::info;
use turnmill_schema::{DeadReason, Delta, History, Manifest, Turn};

use super::Runner;
use super::conversation::{Conversation, Known};
use super::leave::{Leaving, Reason};
use crate::broker::Broker;
use crate::engine::{EngineHandle, Reply};
use crate::kv::{Namespace, Segment, TokenChain};
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
    turn: Turn,
    chain: TokenChain,
    kept: usize,
    prompt: usize,
    retokenised: bool,
    conversation: Option<(Conversation, Vec<Arc<Segment>>)>,
}

impl<B: Broker, E: EngineHandle> Runner<B, E> {
    /// Makes the prompt and replays what is published. The error is how the turn leaves instead.
    pub(super) async fn prepare(&self, turn: Turn, leased: Leased) -> Result<Work, Leaving> {
        turn.validate().map_err(|error| Leaving::Rejected(Reason::plain(error)))?;
        let prompting = self.prompting.clone();
        let is_stored = self.keeper.as_ref().is_some_and(|keeper| keeper.serves(turn.tenant.as_str()));
        let attempt = leased.attempt;
        // Tokenising a long conversation takes milliseconds of pure computing, and so does hashing it.
        let made = self.surroundings.run_blocking(move || make(&prompting, turn, leased, is_stored));
        let made = made.await.map_err(|_| {
            let text = "the prompt could not be made: a bug in the worker; please report its log";
            Leaving::failed(DeadReason::Attempts, Reason::plain(text))
        })?;
        let made = made.map_err(|error| Leaving::Rejected(Reason::quoting(error)))?;
        let Made { turn, chain, kept, prompt, retokenised, conversation } = made;
        if retokenised && attempt == 1 {
            info!(kept, "the template rewrote the history; it was tokenised again");
        }
        let (kept, prompt) = (kept as u32, prompt as u32);
        let max_total =
            self.max_total_tokens(&turn, prompt).map_err(Reason::plain).map_err(Leaving::Rejected)?;
        let mut reply = Reply::new(self.prompting.tokenizer.clone(), &turn.sampling, max_total - prompt);
        self.replay(&mut reply, &chain.tokens()[prompt as usize..])
            .map_err(|text| Leaving::failed(DeadReason::Unreadable, Reason::plain(text)))?;
        let (conversation, stored) = conversation.unzip();
        let lengths = Lengths { kept, prompt, max_total };
        Ok(Work { turn, chain, reply, lengths, conversation, stored: stored.unwrap_or_default() })
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

/// Puts a turn's tokens together, and cuts them into segments if they are stored.
fn make(prompting: &Prompting, turn: Turn, leased: Leased, is_stored: bool) -> Result<Made, PromptError> {
    let Leased { history, manifest, published, attempt } = leased;
    let Prompt { tokens, kept, retokenised } =
        prompt(&prompting.tokenizer, &prompting.template, &history, &turn.messages)?;
    let prompt = tokens.len();
    let namespace = prompting.namespace.for_tenant(turn.tenant.as_str());
    let mut chain = TokenChain::new(namespace, prompting.block_tokens, tokens);
    published.iter().for_each(|delta| chain.extend(&delta.tokens));
    let conversation = is_stored.then(|| {
        let known = Known {
            tenant: turn.tenant.as_str(),
            messages: &[&history.messages[..], &turn.messages].concat(),
            chain: &chain,
            manifest,
            has_history: !history.tokens.is_empty(),
            resumed: attempt > 1 || chain.len() > prompt,
        };
        Conversation::new(prompting, &known)
    });
    Ok(Made { turn, chain, kept, prompt, retokenised, conversation })
}
