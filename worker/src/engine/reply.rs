//! A reply as it grows: text that is safe to publish, and when it ends.
//!
//! Invariant: what has been published after n tokens is a function of those n tokens and the turn's rules
//! alone. So replaying the published tokens restores the state on another worker, and shows whether the turn
//! had ended already.

use std::sync::Arc;

use turnmill_schema::{FinishReason, Sampling};

use crate::model::{Detokenizer, Tokenizer};

/// A turn's reply so far: its text, and how many tokens made it. The tokens themselves are in the turn's
/// [`crate::kv::TokenChain`].
pub struct Reply {
    tokenizer: Arc<Tokenizer>,
    rules: Rules,
    detokenizer: Detokenizer,
    /// Text that may turn out to be the start of a stop string.
    held: String,
    text: String,
    /// Length of the decoded text, held text included, before each token.
    lengths: Vec<usize>,
    decoded: usize,
    ending: Option<Ending>,
}

struct Rules {
    stop: Vec<String>,
    stop_tokens: Vec<u32>,
    ends: Vec<u32>,
    min_tokens: u32,
    max_tokens: u32,
}

#[derive(Clone, Copy, Debug)]
struct Ending {
    reason: FinishReason,
    /// How many tokens belong to the conversation; what a stop rule cut off does not.
    kept: usize,
}

/// What a token added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// Text to publish.
    pub text: String,
    /// Set with the last token.
    pub finish: Option<FinishReason>,
}

impl Reply {
    /// An empty reply under `sampling`'s rules, of at most `max_tokens` tokens.
    pub fn new(tokenizer: Arc<Tokenizer>, sampling: &Sampling, max_tokens: u32) -> Self {
        let ends = if sampling.ignore_eos { Vec::new() } else { tokenizer.ends().to_vec() };
        let rules = Rules {
            stop: sampling.stop.clone(),
            stop_tokens: sampling.stop_token_ids.clone(),
            ends,
            min_tokens: sampling.min_tokens,
            max_tokens,
        };
        Self {
            tokenizer,
            rules,
            detokenizer: Detokenizer::default(),
            held: String::new(),
            text: String::new(),
            lengths: Vec::new(),
            decoded: 0,
            ending: None,
        }
    }

    /// Takes the next token. After an ending nothing may follow.
    pub fn push(&mut self, token: u32) -> Added {
        assert!(self.ending.is_none(), "no token follows the end of a reply");
        self.lengths.push(self.decoded);
        let may_stop = self.made() as u32 > self.rules.min_tokens;
        let stopped = may_stop && self.is_stop(token);
        if !stopped {
            let bytes = self.tokenizer.bytes(token);
            self.decoded += bytes.len();
            let text = self.detokenizer.push(bytes);
            self.held.push_str(&text);
        }
        let added = self.next(token, stopped, may_stop);
        self.text.push_str(&added.text);
        added
    }

    /// Tokens that may not be sampled next, because the reply is too short to end.
    pub fn forbidden(&self) -> Vec<u32> {
        if self.made() as u32 >= self.rules.min_tokens {
            return Vec::new();
        }
        self.rules.ends.iter().chain(&self.rules.stop_tokens).copied().collect()
    }

    /// How many tokens it has.
    pub fn made(&self) -> usize {
        self.lengths.len()
    }

    /// What becomes part of the agent's history of `tokens`, which end with all tokens of this reply: everything but what a
    /// stop rule cut off. The model's own end-of-sequence token stays.
    ///
    /// # Panics
    /// If there are fewer `tokens` than the reply has.
    pub fn kept_tokens<'a>(&self, tokens: &'a [u32]) -> &'a [u32] {
        let cut = self.ending.map_or(0, |ending| self.made() - ending.kept);
        &tokens[..tokens.len() - cut]
    }

    /// All text published so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Why it ended, once it has.
    pub fn finish(&self) -> Option<FinishReason> {
        self.ending.map(|ending| ending.reason)
    }

    fn is_stop(&self, token: u32) -> bool {
        self.rules.ends.contains(&token) || self.rules.stop_tokens.contains(&token)
    }

    fn next(&mut self, token: u32, stopped: bool, may_stop: bool) -> Added {
        if stopped {
            self.held.push_str(&self.detokenizer.finish());
        }
        if may_stop && let Some(start) = self.first_stop_string() {
            let before = self.decoded.saturating_sub(self.held.len() - start);
            self.held.truncate(start);
            let kept = self.lengths.iter().skip(1).filter(|length| **length <= before).count();
            return self.end(FinishReason::Stop, kept);
        }
        let all = self.made();
        if stopped {
            // The model's own ending is part of the conversation, a stop token of the user's is not.
            let own = self.rules.ends.contains(&token);
            return self.end(FinishReason::Stop, if own { all } else { all - 1 });
        }
        if all as u32 >= self.rules.max_tokens {
            let rest = self.detokenizer.finish();
            self.held.push_str(&rest);
            return self.end(FinishReason::Length, all);
        }
        let safe = self.held.len() - if self.rules.stop.is_empty() { 0 } else { self.possible_stop() };
        let text = self.held.drain(..safe).collect();
        Added { text, finish: None }
    }

    fn end(&mut self, reason: FinishReason, kept: usize) -> Added {
        self.ending = Some(Ending { reason, kept });
        Added { text: std::mem::take(&mut self.held), finish: Some(reason) }
    }

    fn first_stop_string(&self) -> Option<usize> {
        self.rules.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min()
    }

    /// Length of the longest end of the held text that is the start of a stop string, and not all of it: a
    /// whole one that is still here was too early to count.
    fn possible_stop(&self) -> usize {
        let longest = self.rules.stop.iter().map(String::len).max().unwrap_or(0);
        let from = (self.held.len() + 1).saturating_sub(longest);
        let mut starts = self.held.char_indices().map(|(start, _)| start).skip_while(|start| *start < from);
        let may_become = |start: &usize| {
            let end = &self.held[*start..];
            self.rules.stop.iter().any(|stop| stop.len() > end.len() && stop.starts_with(end))
        };
        starts.find(may_become).map_or(0, |start| self.held.len() - start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Tokenizer;

    /// Ids 0.. are the bytes; 256 is a piece of three letters, 257 the end.
    fn tokenizer() -> Arc<Tokenizer> {
        let mut bytes: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
        bytes.push(b"abc".to_vec());
        bytes.push(Vec::new());
        Arc::new(Tokenizer::of_bytes(bytes, vec![257]))
    }

    fn reply(change: impl FnOnce(&mut Sampling), max_tokens: u32) -> Reply {
        let mut sampling = Sampling::default();
        change(&mut sampling);
        Reply::new(tokenizer(), &sampling, max_tokens)
    }

    /// Pushes bytes until the end; returns what was published token by token.
    fn run(reply: &mut Reply, tokens: &[u32]) -> Vec<String> {
        let mut published = Vec::new();
        for token in tokens {
            let added = reply.push(*token);
            published.push(added.text);
            if added.finish.is_some() {
                break;
            }
        }
        published
    }

    fn bytes(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    #[test]
    fn the_models_end_is_kept_and_a_stop_token_is_not() {
        let mut ended = reply(|_| (), 9);
        let tokens = [104, 105, 257];
        run(&mut ended, &tokens);
        assert_eq!((ended.text(), ended.finish()), ("hi", Some(FinishReason::Stop)));
        assert_eq!(ended.kept_tokens(&tokens), [104, 105, 257]);
        let mut stopped = reply(|s| s.stop_token_ids = vec![105], 9);
        run(&mut stopped, &[104, 105]);
        assert_eq!((stopped.text(), stopped.kept_tokens(&[104, 105])), ("h", &[104][..]));
        // A prompt before them stays.
        assert_eq!(stopped.kept_tokens(&[1, 2, 104, 105]), [1, 2, 104]);
        let mut ignored = reply(|s| s.ignore_eos = true, 9);
        run(&mut ignored, &[104, 257, 105]);
        assert_eq!((ignored.text(), ignored.finish()), ("hi", None));
    }

    #[test]
    fn a_stop_string_is_held_back_until_it_is_or_is_not() {
        let mut stopped = reply(|s| s.stop = vec!["\n\nUser:".to_owned()], 99);
        let tokens = bytes("a\n\nb\n\nUser: x");
        let published = run(&mut stopped, &tokens);
        assert_eq!(published[..4], ["a", "", "", "\n\nb"]);
        assert_eq!((stopped.text(), stopped.finish()), ("a\n\nb", Some(FinishReason::Stop)));
        assert_eq!(stopped.kept_tokens(&tokens[..stopped.made()]), bytes("a\n\nb"));
    }

    #[test]
    fn a_stop_string_inside_a_token_keeps_the_tokens_before_it() {
        let mut stopped = reply(|s| s.stop = vec!["bc".to_owned()], 99);
        run(&mut stopped, &[120, 256]);
        assert_eq!((stopped.text(), stopped.kept_tokens(&[120, 256])), ("xa", &[120][..]));
    }

    #[test]
    fn length_publishes_what_was_held() {
        let mut long = reply(|s| s.stop = vec!["bcd".to_owned()], 3);
        assert_eq!(run(&mut long, &bytes("abc")), ["a", "", "bc"]);
        assert_eq!((long.finish(), long.kept_tokens(&bytes("abc")).len()), (Some(FinishReason::Length), 3));
        let mut cut = reply(|_| (), 2);
        run(&mut cut, &[97, 0xe2]);
        assert_eq!(cut.text(), "a\u{fffd}");
    }

    #[test]
    fn min_tokens_forbids_and_ignores_endings() {
        let mut short = reply(
            |s| {
                s.min_tokens = 3;
                s.stop = vec!["a".to_owned()];
            },
            9,
        );
        assert_eq!(short.forbidden(), [257]);
        assert_eq!(run(&mut short, &bytes("abc")), ["a", "b", "c"]);
        assert!(short.forbidden().is_empty(), "the fourth token may end it");
        run(&mut short, &bytes("a"));
        assert_eq!(short.finish(), Some(FinishReason::Stop));
    }

    proptest! {
        #[test]
        fn replaying_any_prefix_restores_the_state(
            tokens in prop::collection::vec(prop::sample::select(vec![97u32, 98, 99, 0xf0, 0x9f, 256]), 1..30),
            cut in 0usize..30,
        ) {
            let new = || reply(|s| s.stop = vec!["aab".to_owned(), "cc".to_owned()], 25);
            let mut whole = new();
            let published = run(&mut whole, &tokens);
            let made = &tokens[..published.len()];
            let cut = cut.min(made.len());
            let mut resumed = new();
            run(&mut resumed, &made[..cut]);
            let rest = run(&mut resumed, &made[cut..]);
            prop_assert_eq!(&rest[..], &published[cut..]);
            prop_assert_eq!(resumed.text(), whole.text());
            prop_assert_eq!((resumed.made(), whole.made()), (made.len(), made.len()));
            prop_assert_eq!(resumed.kept_tokens(made), whole.kept_tokens(made));
            prop_assert!(!whole.text().contains("aab") && !whole.text().contains("cc"));
        }
    }
}
