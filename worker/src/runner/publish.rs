//! Publishes a turn's tokens, a few at a time and in order, and tries again through outages.

use std::sync::Arc;
use std::time::{Duration, Instant};

use turnmill_schema::{Delta, TokenLogprobs};

use super::Link;
use super::link::Backoff;
use crate::broker::{Advice, Broker, BrokerError, Lease};
use crate::engine::MadeToken;

/// The unpublished end of a reply.
pub struct Publisher<B> {
    broker: Arc<B>,
    link: Link,
    lease: Arc<Lease>,
    /// A delta whose append may or may not have happened: repeated exactly as it is until it has.
    sending: Option<Delta>,
    /// Tokens after it.
    pending: Delta,
    /// When the pending tokens are due.
    due: Option<Instant>,
    flush: Duration,
    /// When this attempt first published tokens.
    first_published: Option<Instant>,
    /// The reply from its first token on; none where it is not short any more.
    short_reply: Option<Delta>,
}

/// Longest text and tokens, in bytes, that are kept with a turn's outcome. About what a result stream takes at least.
const SHORT_REPLY_BYTES: usize = 4096;

impl<B: Broker> Publisher<B> {
    /// Goes on after what earlier attempts published; later tokens wait up to `flush` for others.
    pub fn new(broker: Arc<B>, link: Link, lease: Arc<Lease>, published: &[Delta], flush: Duration) -> Self {
        let index = published.last().map_or(0, Delta::published);
        let pending = Delta { index, ..Delta::default() };
        let short_reply = Some(Delta::default());
        let mut publisher = Self {
            broker,
            link,
            lease,
            sending: None,
            pending,
            due: None,
            flush,
            first_published: None,
            short_reply,
        };
        published.iter().for_each(|delta| publisher.keep(&delta.tokens, &delta.text, &delta.logprobs));
        publisher
    }

    /// The whole reply, where it is short.
    pub fn take_short_reply(&mut self) -> Option<Delta> {
        self.short_reply.take()
    }

    fn keep(&mut self, tokens: &[u32], text: &str, logprobs: &[TokenLogprobs]) {
        let Some(reply) = &mut self.short_reply else { return };
        reply.tokens.extend(tokens);
        reply.text.push_str(text);
        reply.logprobs.extend_from_slice(logprobs);
        // A token takes up to five bytes, an alternative ten.
        let alternatives: usize = reply.logprobs.iter().map(|at| at.top.len() + 1).sum();
        if reply.text.len() + 5 * reply.tokens.len() + 10 * alternatives > SHORT_REPLY_BYTES {
            self.short_reply = None;
        }
    }

    /// Adds a token. The first of an attempt is due at once: somebody waits for it.
    pub fn push(&mut self, token: &MadeToken) {
        self.keep(&[token.id], &token.text, token.logprobs.as_slice());
        self.pending.tokens.push(token.id);
        self.pending.text.push_str(&token.text);
        self.pending.logprobs.extend(token.logprobs.clone());
        let wait = if self.first_published.is_some() { self.flush } else { Duration::ZERO };
        self.due.get_or_insert(Instant::now() + wait);
    }

    /// When [`Self::flush`] should be called; none while nothing is pending.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// How many tokens of the reply are published.
    pub fn published(&self) -> u32 {
        self.sending.as_ref().map_or(self.pending.index, |sending| sending.index)
    }

    /// When this attempt first published tokens.
    pub fn first_published(&self) -> Option<Instant> {
        self.first_published
    }

    /// Publishes what is pending. Through outages it keeps trying; dropping the future in between loses
    /// nothing. The error is one that trying again does not mend.
    pub async fn flush(&mut self) -> Result<(), BrokerError> {
        while self.sending.is_some() || !self.pending.tokens.is_empty() {
            let sending = self.sending.get_or_insert_with(|| {
                self.due = None;
                let next = Delta { index: self.pending.published(), ..Delta::default() };
                std::mem::replace(&mut self.pending, next)
            });
            persist(&self.link, || self.broker.append(&self.lease, sending)).await?;
            self.sending = None;
            self.first_published.get_or_insert_with(Instant::now);
        }
        Ok(())
    }
}

/// Calls until it works or trying again cannot help.
pub async fn persist<T, F>(link: &Link, mut call: impl FnMut() -> F) -> Result<T, BrokerError>
where
    F: Future<Output = Result<T, BrokerError>>,
{
    let mut backoff = Backoff::default();
    loop {
        match link.note(call().await) {
            Err(error) if error.advice() == Advice::Retry => backoff.pause().await,
            result => return result,
        }
    }
}
