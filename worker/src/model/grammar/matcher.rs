//! The state of one reply under a grammar.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use llguidance::TokenParser;
use llguidance::toktrie::TokenizerEnv;

use super::deadline::{Deadline, Step};
use super::error::rejected;
use super::{GrammarError, Vocabulary};
use crate::model::TokenMask;

/// One reply under a grammar. It consumes tokens that were sampled, and never goes back: llguidance keeps masks of where it was before a
/// rollback and can allow a wrong token after one.
///
/// Invariant: what it answers depends on the tokens consumed alone, not on what was asked before. What is forced is therefore always
/// looked up before a token is consumed.
pub struct Matcher {
    inner: llguidance::Matcher,
    env: Arc<dyn TokenizerEnv + Sync>,
    step: Arc<Step>,
    ends: Arc<[u32]>,
    /// Tokens that must come next, one by one. The first alone is allowed. Kept as long as they come, because the tokens of the rest of a
    /// forced text may be others than the rest of its tokens.
    ahead: VecDeque<u32>,
    /// Whether `ahead` was looked up here.
    looked: bool,
    mask: TokenMask,
    /// Whether `mask` is the one for the next token.
    masked: bool,
    /// Time that slow steps took.
    spent: Duration,
    ended: bool,
}

impl Matcher {
    pub(super) fn new(parser: TokenParser, vocabulary: &Vocabulary, deadline: &Deadline) -> Self {
        let inner = llguidance::Matcher::new(Ok(parser)).into_cancellable();
        Self {
            step: deadline.watch(inner.cancellation_handle().unwrap_or_default()),
            inner,
            env: vocabulary.factory().tok_env().clone(),
            ends: vocabulary.ends().into(),
            ahead: VecDeque::new(),
            looked: false,
            mask: TokenMask::none(vocabulary.size()),
            masked: false,
            spent: Duration::ZERO,
            ended: false,
        }
    }

    /// Another at the same place. Shares no lexer with this one, as a plain clone of llguidance's would.
    pub(super) fn fork(&self, deadline: &Deadline) -> Self {
        let inner = self.inner.deep_clone();
        Self {
            step: deadline.watch(inner.cancellation_handle().unwrap_or_default()),
            inner,
            env: self.env.clone(),
            ends: self.ends.clone(),
            ahead: self.ahead.clone(),
            looked: self.looked,
            mask: self.mask.clone(),
            masked: self.masked,
            spent: Duration::ZERO,
            ended: self.ended,
        }
    }

    /// The tokens that may come next: those that end a reply if the grammar can end here, and they alone if it must. An error ends the turn:
    /// a token is never sampled without its mask.
    pub fn mask(&mut self) -> Result<&TokenMask, GrammarError> {
        self.look_ahead()?;
        if !self.masked {
            let size = self.mask.vocabulary();
            self.mask = match self.ahead.front() {
                Some(forced) => TokenMask::of(&[*forced], size),
                None if self.must_end() => TokenMask::of(&self.ends, size),
                None => {
                    let allowed = self.run(llguidance::Matcher::compute_mask)?;
                    TokenMask::from_words(allowed.into(), size)
                }
            };
            self.masked = true;
        }
        Ok(&self.mask)
    }

    /// Goes on by a token of the reply. An error ends the turn: the token is not allowed (it was sampled under another grammar), or a limit was
    /// hit.
    pub fn consume(&mut self, token: u32) -> Result<(), GrammarError> {
        self.look_ahead()?;
        let ends = self.ends.contains(&token);
        if !self.allows(token, ends)? {
            return rejected(
                "the reply so far does not fit the grammar; if the turn was resumed, its grammar or the worker's version has changed: \
                 submit it again",
            );
        }
        match self.ahead.front() {
            Some(forced) if *forced == token => drop(self.ahead.pop_front()),
            _ => self.ahead.clear(),
        }
        self.looked = !self.ahead.is_empty();
        self.masked = false;
        if !(ends && self.must_end()) {
            self.run(|inner| inner.consume_token(token))?;
        }
        self.ended = ends;
        Ok(())
    }

    /// Goes on by text that is already there, as what follows a trigger in the token that held it.
    pub fn consume_bytes(&mut self, bytes: &[u8]) -> Result<(), GrammarError> {
        let tokens = self.env.tokenize_bytes(bytes);
        tokens.into_iter().try_for_each(|token| self.consume(token))
    }

    /// Tokens that must come next, in order; may be none. Masks allow exactly these, one by one.
    pub fn forced(&mut self) -> Result<Vec<u32>, GrammarError> {
        self.look_ahead()?;
        Ok(self.ahead.iter().copied().collect())
    }

    /// How many of `tokens` the grammar accepts, from the first on. The masks may allow fewer: a forced text has one spelling there.
    pub fn valid_prefix(&mut self, tokens: &[u32]) -> Result<usize, GrammarError> {
        self.look_ahead()?;
        if self.ended {
            return Ok(0);
        }
        let forced = self.ahead.iter().zip(tokens).take_while(|(forced, token)| forced == token).count();
        if forced < self.ahead.len().min(tokens.len()) {
            return Ok(forced);
        }
        if self.must_end() {
            return Ok(usize::from(tokens.first().is_some_and(|token| self.ends.contains(token))));
        }
        let known = tokens.iter().take_while(|token| (**token as usize) < self.mask.vocabulary()).count();
        self.run(|inner| inner.validate_tokens(&tokens[..known]))
    }

    /// Whether a token that ends replies was consumed.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether the end alone may come.
    fn must_end(&self) -> bool {
        self.inner.is_stopped()
    }

    fn allows(&mut self, token: u32, ends: bool) -> Result<bool, GrammarError> {
        if self.ended || token as usize >= self.mask.vocabulary() {
            return Ok(false);
        }
        if self.masked && self.mask.allows(token) {
            return Ok(true);
        }
        if self.must_end() {
            return Ok(ends);
        }
        Ok(self.run(|inner| inner.validate_tokens(&[token]))? == 1)
    }

    fn look_ahead(&mut self) -> Result<(), GrammarError> {
        if self.inner.is_error() {
            return Err(self.error());
        }
        if !self.looked && !self.must_end() {
            let ahead = self.run(|inner| Ok::<_, ()>(inner.compute_ff_tokens()))?;
            // An empty answer may be an error.
            if self.inner.is_error() {
                return Err(self.error());
            }
            self.ahead = ahead.into();
            self.looked = true;
        }
        Ok(())
    }

    /// One step of llguidance's, within its time.
    fn run<T, E>(
        &mut self,
        work: impl FnOnce(&mut llguidance::Matcher) -> Result<T, E>,
    ) -> Result<T, GrammarError> {
        let (result, took) = self.step.run(|| work(&mut self.inner));
        let result = result.map_err(|_| self.error())?;
        let times = self.step.times();
        self.spent += took.saturating_sub(times.free);
        if self.spent > times.patience {
            return Err(slow());
        }
        Ok(result)
    }

    /// Why the last step failed, without the text in llguidance's words.
    fn error(&self) -> GrammarError {
        if self.inner.is_cancelled() {
            return slow();
        }
        let reason = self.inner.get_error().unwrap_or_default();
        if reason.starts_with("panic") {
            return GrammarError::Failed("following the grammar failed inside the worker".to_owned());
        }
        let sentence = if reason.contains("NoExtension") {
            "the grammar allows no token here and cannot end here; remove the part that nothing matches"
        } else if reason.contains("satisfy the grammar") {
            "the grammar asks for bytes that this model has no token for; leave them out"
        } else {
            "the grammar is too complex to follow: a token takes more states or steps than are allowed; use fewer repetitions and \
             alternatives"
        };
        GrammarError::Rejected(sentence.to_owned())
    }
}

fn slow() -> GrammarError {
    GrammarError::Rejected(
        "the grammar is too slow to follow; use fewer repetitions, alternatives and long literals".to_owned(),
    )
}
