//! A reply as it grows: text that is safe to publish, in parts, what may come next, and when it ends.
//!
//! Invariant: what has been published after n tokens, and what may follow them, is a function of those n tokens and the turn's rules
//! alone. So replaying the published tokens restores the state on another worker, and shows whether the turn had ended already.

use std::collections::VecDeque;
use std::sync::Arc;

use turnmill_schema::{FinishReason, Message, Part, Role, Sampling, StopRule, ToolCall, TurnId};

use super::guide::{Guide, Thinking};
use crate::model::{Detokenizer, TokenMask, Tokenizer};
use crate::tools::Parser;

/// A turn's reply so far: its text, and how many tokens made it. The tokens themselves are in the turn's
/// [`crate::kv::TokenChain`].
pub struct Reply {
    tokenizer: Arc<Tokenizer>,
    rules: Rules,
    form: Form,
    detokenizer: Detokenizer,
    /// Text that may turn out to be the start of a stop string.
    held: String,
    /// What was said.
    text: String,
    /// What was thought, and calls, in order.
    beside: Vec<(Part, String)>,
    /// Length of the decoded text, held text included, before each token.
    lengths: Vec<usize>,
    decoded: usize,
    /// Tokens that come next, whatever the model would like.
    forced: VecDeque<u32>,
    reasoning_tokens: u32,
    ending: Option<Ending>,
    /// Why it cannot go on, though it has not ended.
    stuck: Option<String>,
}

/// What the parts of a reply are, and what it must be. The default is any text, all of it content.
#[derive(Default)]
pub struct Form {
    /// Tells the parts.
    pub parser: Parser,
    /// Control tokens that are markers of parts.
    pub shown: Vec<u32>,
    /// All control tokens stand for text.
    pub shows_controls: bool,
    /// How the model thinks, if it does.
    pub thinking: Option<Thinking>,
    /// What the reply must be; none: anything.
    pub guide: Option<Guide>,
}

struct Rules {
    stop: Vec<String>,
    stop_tokens: Vec<u32>,
    /// Control tokens whose names were given as stop strings.
    stop_controls: Vec<(u32, String)>,
    ends: Vec<u32>,
    min_tokens: u32,
    max_tokens: u32,
}

#[derive(Clone, Debug)]
struct Ending {
    reason: FinishReason,
    rule: Option<StopRule>,
    /// How many tokens belong to the conversation; what a stop rule cut off does not.
    kept: usize,
}

/// What a token added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// Text to publish, in pieces of one part each.
    pub pieces: Vec<(Part, String)>,
    /// Set with the last token.
    pub finish: Option<FinishReason>,
}

impl Reply {
    /// An empty reply under `sampling`'s rules, of at most `max_tokens` tokens.
    pub fn new(tokenizer: Arc<Tokenizer>, sampling: &Sampling, max_tokens: u32, form: Form) -> Self {
        let ends = if sampling.ignore_eos { Vec::new() } else { tokenizer.ends().to_vec() };
        // A control token has no text that a stop string could be found in.
        let (mut stop, mut stop_controls) = (Vec::new(), Vec::new());
        for text in &sampling.stop {
            match tokenizer.control(text) {
                Some(id) => stop_controls.push((id, text.clone())),
                None => stop.push(text.clone()),
            }
        }
        let rules = Rules {
            stop,
            stop_tokens: sampling.stop_token_ids.clone(),
            stop_controls,
            ends,
            min_tokens: sampling.min_tokens,
            max_tokens,
        };
        let mut reply = Self {
            tokenizer,
            rules,
            form,
            detokenizer: Detokenizer::default(),
            held: String::new(),
            text: String::new(),
            beside: Vec::new(),
            lengths: Vec::new(),
            decoded: 0,
            forced: VecDeque::new(),
            reasoning_tokens: 0,
            ending: if max_tokens == 0 {
                Some(Ending { reason: FinishReason::Length, rule: None, kept: 0 })
            } else {
                None
            },
            stuck: None,
        };
        reply.end_long_thoughts();
        reply
    }

    /// Takes the next token. After an ending nothing may follow.
    pub fn push(&mut self, token: u32) -> Added {
        assert!(self.ending.is_none(), "no token follows the end of a reply");
        self.lengths.push(self.decoded);
        if self.forced.pop_front().is_some_and(|forced| forced != token) {
            self.stuck = Some("a token is not the one that ends its thoughts".to_owned());
        }
        if let Some(guide) = &mut self.form.guide
            && let Err(error) = guide.take(token)
        {
            self.stuck = Some(error.to_string());
        }
        let may_stop = self.made() as u32 > self.rules.min_tokens || self.grammar_ended();
        let stopped = may_stop && self.is_stop(token);
        if !stopped {
            let is_shown = self.form.shows_controls || self.form.shown.contains(&token);
            let spelling = is_shown.then(|| self.tokenizer.spelling(token));
            let bytes = spelling.as_deref().unwrap_or_else(|| self.tokenizer.bytes(token));
            self.decoded += bytes.len();
            let text = self.detokenizer.push(bytes);
            self.held.push_str(&text);
        }
        let thought = self.form.parser.in_reasoning();
        let (text, finish) = self.next(token, stopped, may_stop);
        let mut pieces = Vec::new();
        self.form.parser.push(&text, &mut pieces);
        match finish {
            Some(FinishReason::Stop) if self.stop().is_none() => self.form.parser.finish(&mut pieces),
            Some(_) => self.form.parser.cut(&mut pieces),
            None => {}
        }
        self.reasoning_tokens += u32::from(thought || self.form.parser.in_reasoning());
        if let Some(ending) = &mut self.ending
            && ending.reason == FinishReason::Stop
            && ending.rule.is_none()
            && self.form.parser.calls() > 0
        {
            ending.reason = FinishReason::ToolCalls;
        }
        pieces.iter().for_each(|(part, text)| self.keep(*part, text));
        if let Some(guide) = &mut self.form.guide
            && self.ending.is_none()
        {
            let looked = guide.look(&self.form.parser);
            self.stuck = looked.err().map(|error| error.to_string()).or(self.stuck.take());
        }
        self.end_long_thoughts();
        Added { pieces, finish: self.finish() }
    }

    fn keep(&mut self, part: Part, text: &str) {
        match self.beside.last_mut() {
            _ if part == Part::Content => self.text.push_str(text),
            Some((last, so_far)) if *last == part => so_far.push_str(text),
            _ => self.beside.push((part, text.to_owned())),
        }
    }

    /// Thoughts that have used up their budget are ended, once no character is cut in two.
    fn end_long_thoughts(&mut self) {
        let Some(Thinking { budget: Some(budget), end }) = &self.form.thinking else { return };
        let is_due = self.form.parser.in_reasoning() && self.reasoning_tokens >= *budget;
        if is_due && self.forced.is_empty() && self.detokenizer.is_whole() && self.ending.is_none() {
            self.forced.extend(end);
        }
    }

    /// Which tokens may come next; none: any. The error says why none can.
    pub fn mask(&mut self) -> Result<Option<TokenMask>, String> {
        if let Some(stuck) = &self.stuck {
            return Err(stuck.clone());
        }
        let vocabulary = self.tokenizer.vocabulary();
        if let Some(forced) = self.forced.front() {
            return Ok(Some(TokenMask::of(&[*forced], vocabulary)));
        }
        let is_short = (self.made() as u32) < self.rules.min_tokens;
        let waits = self.form.guide.as_ref().is_some_and(Guide::must_come);
        let mask = match &mut self.form.guide {
            Some(guide) => guide.mask(self.lengths.is_empty()).map_err(|error| error.to_string())?,
            None => None,
        };
        let mut forbidden: Vec<u32> = Vec::new();
        if is_short || waits {
            forbidden.extend(&self.rules.ends);
        }
        if is_short {
            forbidden.extend(&self.rules.stop_tokens);
            forbidden.extend(self.rules.stop_controls.iter().map(|(id, _)| id));
        }
        if forbidden.is_empty() {
            return Ok(mask);
        }
        let mut left = mask.clone().unwrap_or_else(|| TokenMask::all(vocabulary));
        forbidden.iter().for_each(|token| left.forbid(*token));
        // A grammar that allows the end alone comes before the least number of tokens.
        Ok(if mask.is_some() && left.is_empty() { mask } else { Some(left) })
    }

    /// Whether a grammar says which token may come next.
    pub fn is_guided(&self) -> bool {
        self.form.guide.as_ref().is_some_and(Guide::is_in_force)
    }

    /// Whether its grammar has taken the end. One that allows nothing else comes before the least number of tokens.
    fn grammar_ended(&self) -> bool {
        self.form.guide.as_ref().is_some_and(Guide::has_ended)
    }

    /// Judges what is proposed to come next: what must come is put in its place, of at most `most` tokens, and what cannot come is cut
    /// off. A proposal is verified in any case, so that none of this changes a word.
    pub fn judge(&mut self, proposed: &mut Vec<u32>, most: usize) {
        if !self.forced.is_empty() {
            *proposed = self.forced.iter().copied().take(most).collect();
        } else if let Some(guide) = &mut self.form.guide {
            guide.judge(proposed, most);
        }
    }

    /// What the token `id` stands for, of a control token its name.
    pub fn spelling(&self, id: u32) -> Vec<u8> {
        self.tokenizer.spelling(id)
    }

    /// Why it cannot go on, if it is so.
    pub fn stuck(&self) -> Option<&str> {
        self.stuck.as_deref()
    }

    /// How many of its tokens are thoughts.
    pub fn reasoning_tokens(&self) -> u32 {
        self.reasoning_tokens
    }

    /// Which of the turn's stop rules ended it.
    pub fn stop(&self) -> Option<StopRule> {
        self.ending.as_ref().and_then(|ending| ending.rule.clone())
    }

    /// The message that it is, as a reply of `turn`. A call that was cut off, so that its arguments are no object, is text in it:
    /// templates could not write it.
    pub fn message(&self, turn: &TurnId) -> Message {
        let mut message = Message::new(Role::Assistant, self.text());
        self.beside.iter().for_each(|(part, text)| message.add(*part, text, turn));
        let is_whole = |call: &ToolCall| {
            serde_json::from_str::<serde_json::Map<_, serde_json::Value>>(&call.arguments).is_ok()
        };
        if let Some(cut) = message.tool_calls.pop_if(|call| !is_whole(call)) {
            message.content += &cut.arguments;
        }
        message
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
        let cut = self.ending.as_ref().map_or(0, |ending| self.made() - ending.kept);
        &tokens[..tokens.len() - cut]
    }

    /// What was said so far, without thoughts and calls.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Why it ended, once it has.
    pub fn finish(&self) -> Option<FinishReason> {
        self.ending.as_ref().map(|ending| ending.reason)
    }

    fn is_stop(&self, token: u32) -> bool {
        self.rules.ends.contains(&token) || self.rule_of(token).is_some()
    }

    /// The turn's own rule that `token` meets.
    fn rule_of(&self, token: u32) -> Option<StopRule> {
        let control = self.rules.stop_controls.iter().find(|(id, _)| *id == token);
        let token = || self.rules.stop_tokens.contains(&token).then_some(StopRule::Token(token));
        control.map(|(_, text)| StopRule::Text(text.clone())).or_else(token)
    }

    /// The text that is safe to publish, and why the reply has ended, if it has.
    fn next(&mut self, token: u32, stopped: bool, may_stop: bool) -> (String, Option<FinishReason>) {
        if stopped {
            self.held.push_str(&self.detokenizer.finish());
        }
        if may_stop && let Some((start, stop)) = self.first_stop_string() {
            let before = self.decoded.saturating_sub(self.held.len() - start);
            self.held.truncate(start);
            let kept = self.lengths.iter().skip(1).filter(|length| **length <= before).count();
            return self.end(FinishReason::Stop, Some(StopRule::Text(stop)), kept);
        }
        let all = self.made();
        if stopped {
            // The model's own ending is part of the conversation, a stop token of the user's is not.
            let own = self.rules.ends.contains(&token);
            return self.end(FinishReason::Stop, self.rule_of(token), if own { all } else { all - 1 });
        }
        if all as u32 >= self.rules.max_tokens {
            let rest = self.detokenizer.finish();
            self.held.push_str(&rest);
            return self.end(FinishReason::Length, None, all);
        }
        let safe = self.held.len() - if self.rules.stop.is_empty() { 0 } else { self.possible_stop() };
        (self.held.drain(..safe).collect(), None)
    }

    fn end(
        &mut self,
        reason: FinishReason,
        rule: Option<StopRule>,
        kept: usize,
    ) -> (String, Option<FinishReason>) {
        self.ending = Some(Ending { reason, rule, kept });
        (std::mem::take(&mut self.held), Some(reason))
    }

    /// Where the first stop string begins, and which it is.
    fn first_stop_string(&self) -> Option<(usize, String)> {
        let found = self.rules.stop.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        found.min_by_key(|(start, _)| *start).map(|(start, stop)| (start, stop.clone()))
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
        Reply::new(tokenizer(), &sampling, max_tokens, Form::default())
    }

    /// Pushes bytes until the end; returns what was published token by token.
    fn run(reply: &mut Reply, tokens: &[u32]) -> Vec<String> {
        let mut published = Vec::new();
        for token in tokens {
            let added = reply.push(*token);
            published.push(added.pieces.into_iter().map(|(_, text)| text).collect());
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
        let may_end =
            |reply: &mut Reply| reply.mask().expect("it goes on").is_none_or(|mask| mask.allows(257));
        assert!(!may_end(&mut short));
        assert_eq!(run(&mut short, &bytes("abc")), ["a", "b", "c"]);
        assert!(may_end(&mut short), "the fourth token may end it");
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
