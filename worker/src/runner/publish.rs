//! Publishes a turn's tokens, a few at a time and in order, and tries again through outages.

use std::sync::Arc;
use std::time::{Duration, Instant};

use turnmill_schema::Delta;

use super::QueueHealth;
use super::coalesce::Coalescing;
use super::health::until_answered;
use crate::broker::{Broker, BrokerError, Lease};
use crate::engine::MadeToken;

/// The unpublished end of a reply.
pub struct Publisher<B> {
    broker: Arc<B>,
    health: QueueHealth,
    lease: Arc<Lease>,
    /// A delta whose append may or may not have happened: repeated exactly as it is until it has.
    sending: Option<Delta>,
    /// Tokens after it.
    pending: Delta,
    /// When the pending tokens are due.
    due: Option<Instant>,
    coalescing: Arc<Coalescing>,
    /// When this attempt first published tokens.
    first_published: Option<Instant>,
    /// What is published of the reply, from its first token on; none if it is not short any more.
    short_reply: Option<Delta>,
}

/// Longest text and tokens, in bytes, that are kept with a turn's outcome. About what a result stream takes at least.
const SHORT_REPLY_BYTES: usize = 4096;

impl<B: Broker> Publisher<B> {
    /// Goes on after what earlier attempts published; later tokens wait for others as `coalescing` says.
    pub fn new(
        broker: Arc<B>,
        health: QueueHealth,
        lease: Arc<Lease>,
        published: &[Delta],
        coalescing: Arc<Coalescing>,
    ) -> Self {
        let index = published.last().map_or(0, Delta::published);
        let pending = Delta { index, ..Delta::default() };
        let short_reply = Some(Delta::default());
        let mut publisher = Self {
            broker,
            health,
            lease,
            sending: None,
            pending,
            due: None,
            coalescing,
            first_published: None,
            short_reply,
        };
        published.iter().for_each(|delta| publisher.keep(delta.clone()));
        publisher
    }

    /// All that is published of the reply, if it is short.
    pub fn take_short_reply(&mut self) -> Option<Delta> {
        self.short_reply.take()
    }

    /// A delta is published. Only then: what is kept of a reply must be what its stream shows, also if the rest cannot be published.
    fn keep(&mut self, published: Delta) {
        let Some(reply) = &mut self.short_reply else { return };
        reply.extend(published);
        // A token takes up to five bytes and its length one, an alternative ten.
        let alternatives: usize = reply.logprobs.iter().map(|at| at.top.len() + 1).sum();
        let spellings: usize =
            reply.logprobs.iter().flat_map(|at| &at.bytes).map(|bytes| bytes.0.len() + 2).sum();
        let bytes = reply.text.len() + 6 * reply.tokens.len() + 10 * alternatives + spellings;
        if bytes + 30 * reply.spans.len() > SHORT_REPLY_BYTES {
            self.short_reply = None;
        }
    }

    /// Adds a token. The first of an attempt is due at once: somebody waits for it.
    pub fn push(&mut self, token: &MadeToken) {
        self.pending.push_parts(token.id, &token.pieces, token.logprobs.clone());
        // Counted in any case: this is the worker's rate.
        let wait = self.coalescing.wait(token.at);
        let wait = if self.first_published.is_some() { wait } else { Duration::ZERO };
        // From when it was made: a token that waited for the append before it has waited already.
        self.due.get_or_insert(token.at + wait);
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
            until_answered(&self.health, "append", || self.broker.append(&self.lease, sending)).await?;
            self.sending.take().into_iter().for_each(|sent| self.keep(sent));
            self.first_published.get_or_insert_with(|| self.health.surroundings.now());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use turnmill_schema::{Part, TokenLogprobs};

    use super::*;
    use crate::broker::double::Double;
    use crate::lifecycle::{HeadroomLimits, Lifecycle};
    use crate::surroundings::Surroundings;

    /// Publishes to `queue` after what earlier attempts published.
    fn publisher(queue: &Arc<Double>, published: Vec<Delta>) -> Publisher<Double> {
        let limits = HeadroomLimits { low: 0.0, high: 0.0 };
        let lifecycle = Lifecycle::new(limits, Duration::from_secs(60), Instant::now());
        let health = QueueHealth::new(Arc::new(lifecycle), Surroundings::machine());
        let coalescing = Arc::new(Coalescing::new(Duration::from_millis(100)));
        let claim = Double::claim(published);
        Publisher::new(Arc::clone(queue), health, claim.lease, &claim.published, coalescing)
    }

    fn token(id: u32, text: &str) -> MadeToken {
        let logprobs = Some(TokenLogprobs { logprob: -0.5, top: vec![(id, -0.5)], bytes: vec![] });
        MadeToken {
            id,
            at: Instant::now(),
            pieces: vec![(Part::Content, text.into())],
            logprobs,
            finished: None,
        }
    }

    /// Held back, released together, of several bytes.
    const TEXTS: [&str; 6] = ["a", "", "", "⅔ é", "", "!"];

    #[tokio::test]
    async fn deltas_of_two_attempts_and_the_kept_reply_can_be_cut_at_the_same_bytes() {
        let mut expected = Delta::default();
        for (id, text) in (0..).zip(TEXTS) {
            expected.push(id, text, token(id, text).logprobs);
        }
        // Any frames, and any place at which another attempt goes on.
        for (frame, resumed) in (1..=6).flat_map(|frame| (0..6).map(move |resumed| (frame, resumed))) {
            let queue = Arc::new(Double::default());
            let mut first = publisher(&queue, Vec::new());
            for (id, text) in (0..resumed).zip(TEXTS) {
                first.push(&token(id, text));
                if (id + 1) % frame == 0 {
                    first.flush().await.expect("published");
                }
            }
            first.flush().await.expect("published");

            let mut second = publisher(&queue, queue.appended());
            for (id, text) in (0..).zip(TEXTS).skip(resumed as usize) {
                second.push(&token(id, text));
            }
            second.flush().await.expect("published");
            let mut told = Delta::default();
            for delta in queue.appended() {
                assert_eq!(delta.check_lengths(), Ok(()), "{delta:?}");
                told.extend(delta);
            }
            assert_eq!(told, expected, "frames of {frame}, resumed after {resumed}");
            assert_eq!(second.take_short_reply(), Some(expected.clone()));
        }
    }

    #[tokio::test]
    async fn what_is_kept_of_a_reply_is_what_is_published() {
        let mut publisher = publisher(&Arc::new(Double::default()), Vec::new());
        publisher.push(&token(0, "a"));
        publisher.flush().await.expect("published");
        // A turn that expires may leave tokens that Redis refused to take.
        publisher.push(&token(1, "b"));
        let kept = publisher.take_short_reply().expect("it is short");
        assert_eq!((kept.tokens, kept.text.as_str(), publisher.published()), (vec![0], "a", 1));
    }

    #[tokio::test]
    async fn the_first_token_is_due_at_once_and_the_others_wait_on_a_busy_worker_only() {
        let mut publisher = publisher(&Arc::new(Double::default()), Vec::new());
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        publisher.push(&MadeToken { at: at(0), ..token(0, "a") });
        assert_eq!(publisher.due(), Some(at(0)), "the first token");
        publisher.flush().await.expect("published");
        publisher.push(&MadeToken { at: at(4), ..token(1, "b") });
        assert_eq!(publisher.due(), Some(at(4)), "a lone turn");
        publisher.flush().await.expect("published");
        // Other turns make thousands of tokens a second.
        (5..5000).for_each(|ms| {
            publisher.coalescing.wait(at(ms));
        });
        publisher.push(&MadeToken { at: at(5000), ..token(2, "c") });
        publisher.push(&MadeToken { at: at(5020), ..token(3, "d") });
        assert_eq!(publisher.due(), Some(at(5100)), "from the first of those that wait");
    }
}
