//! Some tokens of a reply, and where they can be cut.
//!
//! Invariant: however the tokens of a reply were divided into deltas, cutting and joining them gives the same reply: the same
//! tokens, text, lengths, parts and log-probabilities. Writers that record no lengths, or wrong ones, cost the lengths alone.
//!
//! A reply is content, reasoning and tool calls, in the order in which the model writes them. All of it is one text, and spans say
//! which bytes are what (ADR 0024), so that what holds for cutting text holds for all parts alike.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::TurnId;
use crate::message::{Message, Role};

/// Some tokens of a reply, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// Index in the reply of the first token here, from 0.
    pub index: u32,
    /// Token ids, exactly as sampled.
    pub tokens: Vec<u32>,
    /// The text these tokens made visible, of all parts. Never half a character; text that may turn out to be a stop string
    /// or the start of another part is held back until it is not.
    pub text: String,
    /// For each token, how many bytes of `text` it made visible: 0 if its text is held back, and then a later token has the
    /// bytes of several. Each ends with a character. Lengths stay small where positions would grow, and joining deltas
    /// joins them as they are.
    ///
    /// Empty if the writer recorded none. Such a delta can only be cut at its ends, unless it has no text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lengths: Vec<u32>,
    /// Which bytes of `text` are what, in order; empty: all of it is content.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spans: Vec<Span>,
    /// One entry a token, when asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprobs>,
}

/// What some text of a reply is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The answer.
    #[default]
    Content,
    /// Thought.
    Reasoning,
    /// The name of the tool of a call; whole, and before its arguments. The call's place among the reply's calls, from 0.
    ToolName(u32),
    /// A piece of the JSON text of a call's arguments.
    ToolArguments(u32),
}

/// Some bytes of a delta's text, of one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// What they are.
    pub part: Part,
    /// How many; above 0.
    pub bytes: u32,
}

/// Log-probabilities at one position, natural logarithm, before temperature and penalties.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// Of the token that was sampled.
    pub logprob: f32,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<(u32, f32)>,
    /// What the token that was sampled stands for, and then each of the likeliest; a control token stands for its name. Empty if
    /// the writer recorded none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bytes: Vec<TokenBytes>,
}

/// The bytes that a token stands for; they need not be whole characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenBytes(pub Vec<u8>);

impl Serialize for TokenBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for TokenBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = TokenBytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the bytes of a token")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<TokenBytes, E> {
                Ok(TokenBytes(bytes.to_vec()))
            }
            /// As JSON has them.
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<TokenBytes, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = list.next_element()? {
                    bytes.push(byte);
                }
                Ok(TokenBytes(bytes))
            }
        }
        deserializer.deserialize_bytes(Read)
    }
}

/// Why a delta cannot be cut between its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CutError {
    /// An older writer.
    #[error("a delta does not say how many bytes of its text belong to each token; upgrade its writer")]
    NoLengths,
    /// Not one length a token.
    #[error("a delta has {lengths} lengths for {tokens} tokens; repair its writer")]
    Count {
        /// How many lengths there are.
        lengths: usize,
        /// How many tokens.
        tokens: usize,
    },
    /// The spans are not those of the text.
    #[error("the parts of a delta add up to {sum} bytes, and its text has {bytes}; repair its writer")]
    Spans {
        /// What they add up to.
        sum: u64,
        /// Size of the text.
        bytes: usize,
    },
    /// The lengths are not those of the text.
    #[error("the lengths of a delta add up to {sum} bytes, and its text has {bytes}; repair its writer")]
    Sum {
        /// What they add up to.
        sum: u64,
        /// Size of the text.
        bytes: usize,
    },
    /// A length ends in the middle of a character.
    #[error("a length of a delta ends within a character, after {at} bytes of its text; repair its writer")]
    Character {
        /// Where in the text.
        at: usize,
    },
}

impl Delta {
    /// How many tokens of the reply are published once this delta is.
    pub fn published(&self) -> u32 {
        self.index.saturating_add(self.tokens.len() as u32)
    }

    /// Adds a token and the content it made visible.
    pub fn push(&mut self, token: u32, content: &str, logprobs: Option<TokenLogprobs>) {
        self.push_parts(token, &[(Part::Content, content)], logprobs);
    }

    /// Adds a token and the text it made visible, in pieces of one part each.
    pub fn push_parts<T: AsRef<str>>(
        &mut self,
        token: u32,
        pieces: &[(Part, T)],
        logprobs: Option<TokenLogprobs>,
    ) {
        if self.spell_out_lengths() {
            let bytes: usize = pieces.iter().map(|(_, text)| text.as_ref().len()).sum();
            self.lengths.push(bytes as u32);
        }
        self.tokens.push(token);
        let mut next = Vec::new();
        for (part, text) in pieces {
            add_span(&mut next, Span { part: *part, bytes: text.as_ref().len() as u32 });
        }
        self.extend_spans(next);
        pieces.iter().for_each(|(_, text)| self.text.push_str(text.as_ref()));
        self.logprobs.extend(logprobs);
    }

    /// The text, in pieces of one part each. What lies beyond spans that are too short is content.
    pub fn parts(&self) -> impl Iterator<Item = (Part, &str)> {
        let mut rest = self.text.as_str();
        let rest_is_content = [Span { part: Part::Content, bytes: u32::MAX }];
        let spans = self.spans.clone().into_iter().chain(rest_is_content);
        spans.filter_map(move |span| {
            let mut end = rest.len().min(span.bytes as usize);
            while !rest.is_char_boundary(end) {
                end += 1;
            }
            let (text, after) = rest.split_at(end);
            rest = after;
            (!text.is_empty()).then_some((span.part, text))
        })
    }

    /// What was said, without thoughts and calls.
    pub fn content(&self) -> String {
        self.parts().filter(|(part, _)| *part == Part::Content).map(|(_, text)| text).collect()
    }

    /// The message that a whole reply is: that of `turn`.
    pub fn message(&self, turn: &TurnId) -> Message {
        let mut message = Message::new(Role::Assistant, "");
        self.parts().for_each(|(part, text)| message.add(part, text, turn));
        message
    }

    /// Adds the spans of text that is about to follow.
    fn extend_spans(&mut self, next: Vec<Span>) {
        if self.spans.is_empty() && next.iter().all(|span| span.part == Part::Content) {
            return;
        }
        if self.spans.is_empty() {
            add_span(&mut self.spans, content(&self.text));
        }
        next.into_iter().for_each(|span| add_span(&mut self.spans, span));
    }

    /// Cuts the spans after `bytes` bytes of the text; returns those of the rest.
    fn split_spans(&mut self, bytes: usize) -> Vec<Span> {
        let mut left = u32::try_from(bytes).unwrap_or(u32::MAX);
        let (mut kept, mut rest) = (Vec::new(), Vec::new());
        for Span { part, bytes } in std::mem::take(&mut self.spans) {
            let here = left.min(bytes);
            left -= here;
            add_span(&mut kept, Span { part, bytes: here });
            add_span(&mut rest, Span { part, bytes: bytes - here });
        }
        for spans in [&mut kept, &mut rest] {
            // Content alone needs none.
            if spans.iter().all(|span| span.part == Part::Content) {
                spans.clear();
            }
        }
        self.spans = kept;
        rest
    }

    /// Appends the delta that starts where this one ends; an empty one becomes it. If either does not say how long the text of
    /// its tokens is, the whole does not, either.
    pub fn extend(&mut self, mut next: Self) {
        if next.check_lengths().is_err() {
            next.lengths.clear();
        }
        if self.tokens.is_empty() && self.text.is_empty() {
            *self = next;
            return;
        }
        let spans = std::mem::take(&mut next.spans);
        self.extend_spans(if spans.is_empty() { vec![content(&next.text)] } else { spans });
        // Checked as they came, so that a long reply is not checked again with each delta.
        if self.spell_out_lengths() && next.spell_out_lengths() {
            self.lengths.append(&mut next.lengths);
        } else {
            self.lengths.clear();
        }
        self.tokens.append(&mut next.tokens);
        self.text.push_str(&next.text);
        self.logprobs.append(&mut next.logprobs);
    }

    /// Keeps the first `at` tokens with their text, and returns the rest. An error changes nothing.
    pub fn split_off(&mut self, at: usize) -> Result<Self, CutError> {
        if at >= self.tokens.len() {
            return Ok(Self { index: self.published(), ..Self::default() });
        }
        if at == 0 {
            let nothing = Self { index: self.index, ..Self::default() };
            return Ok(std::mem::replace(self, nothing));
        }
        self.check_lengths()?;
        let bytes: usize = self.lengths.iter().take(at).map(|length| *length as usize).sum();
        Ok(Self {
            index: self.index.saturating_add(at as u32),
            spans: self.split_spans(bytes),
            tokens: self.tokens.split_off(at),
            text: self.text.split_off(bytes),
            lengths: self.lengths.split_off(at.min(self.lengths.len())),
            logprobs: self.logprobs.split_off(at.min(self.logprobs.len())),
        })
    }

    /// What it adds for a reader that has the reply's first `tokens` tokens; none if nothing. A delta that starts later comes
    /// back whole: its `index` shows the gap.
    pub fn beyond(mut self, tokens: u32) -> Result<Option<Self>, CutError> {
        if self.published() <= tokens {
            return Ok(None);
        }
        self.split_off(tokens.saturating_sub(self.index) as usize).map(Some)
    }

    /// Checks that the delta can be cut between any two of its tokens.
    pub fn check_lengths(&self) -> Result<(), CutError> {
        let (lengths, tokens, bytes) = (self.lengths.len(), self.tokens.len(), self.text.len());
        let sum = self.spans.iter().map(|span| u64::from(span.bytes)).sum();
        if !self.spans.is_empty() && sum != bytes as u64 {
            return Err(CutError::Spans { sum, bytes });
        }
        if lengths == 0 && bytes == 0 {
            return Ok(());
        }
        if lengths == 0 {
            return Err(CutError::NoLengths);
        }
        if lengths != tokens {
            return Err(CutError::Count { lengths, tokens });
        }
        let sum = self.lengths.iter().map(|length| u64::from(*length)).sum();
        if sum != bytes as u64 {
            return Err(CutError::Sum { sum, bytes });
        }
        let mut at = 0;
        for length in &self.lengths {
            at += *length as usize;
            if !self.text.is_char_boundary(at) {
                return Err(CutError::Character { at });
            }
        }
        Ok(())
    }

    /// Tokens without text and lengths have the length 0. False: the lengths are not known.
    fn spell_out_lengths(&mut self) -> bool {
        if self.text.is_empty() && self.lengths.is_empty() {
            self.lengths.resize(self.tokens.len(), 0);
        }
        self.lengths.len() == self.tokens.len()
    }
}

/// Adds `span` at the end; neighbours of one part are one span.
fn add_span(spans: &mut Vec<Span>, span: Span) {
    match spans.last_mut() {
        _ if span.bytes == 0 => {}
        Some(last) if last.part == span.part => last.bytes = last.bytes.saturating_add(span.bytes),
        _ => spans.push(span),
    }
}

/// The span of a text that is content.
fn content(text: &str) -> Span {
    Span { part: Part::Content, bytes: u32::try_from(text.len()).unwrap_or(u32::MAX) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Event;
    use crate::envelope::{decode, encode};
    use crate::message::ToolCall;

    /// Token by token: its id, the text it made visible, its log-probabilities.
    type Made = (u32, Vec<(Part, String)>, Option<TokenLogprobs>);

    /// Texts of tokens: held back, several at once, of one to four bytes a character.
    fn made() -> impl Strategy<Value = Vec<Made>> {
        let text =
            prop_oneof![Just(""), Just("a"), Just(" naïve"), Just("⅔"), Just("🦀 ⅔ é\n"), Just("\u{0}")];
        let part = prop_oneof![
            4 => Just(Part::Content),
            1 => Just(Part::Reasoning),
            1 => Just(Part::ToolName(0)),
            1 => (0u32..2).prop_map(Part::ToolArguments)
        ];
        let pieces = prop::collection::vec((part, text.prop_map(str::to_owned)), 0..3);
        let token = (any::<u32>(), pieces, -9f32..0.0, 0u32..3);
        let tokens = prop::collection::vec(token, 0..24);
        (tokens, any::<bool>()).prop_map(|(tokens, asked)| {
            let token = |(id, pieces, logprob, top): (u32, Vec<(Part, String)>, f32, u32)| {
                let bytes = (0..=top).map(|token| TokenBytes(vec![0xff, token as u8])).collect();
                let top = (0..top).map(|token| (token, logprob)).collect();
                (id, pieces, asked.then_some(TokenLogprobs { logprob, top, bytes }))
            };
            tokens.into_iter().map(token).collect()
        })
    }

    fn delta(index: usize, made: &[Made]) -> Delta {
        let mut delta = Delta { index: index as u32, ..Delta::default() };
        made.iter().for_each(|(id, pieces, logprobs)| delta.push_parts(*id, pieces, logprobs.clone()));
        delta
    }

    /// A token that made some content visible.
    fn said(id: u32, text: &str) -> Made {
        (id, vec![(Part::Content, text.to_owned())], None)
    }

    fn joined(deltas: impl IntoIterator<Item = Delta>) -> Delta {
        let mut whole = Delta::default();
        deltas.into_iter().for_each(|delta| whole.extend(delta));
        whole
    }

    /// The reply in frames that end at `ends`.
    fn framed(made: &[Made], mut ends: Vec<usize>) -> Vec<Delta> {
        ends.push(made.len());
        ends.iter_mut().for_each(|end| *end = (*end).min(made.len()));
        ends.sort_unstable();
        let mut from = 0;
        let frame = |end| {
            let start = std::mem::replace(&mut from, end);
            delta(start, &made[start..end])
        };
        ends.into_iter().map(frame).collect()
    }

    fn cuts() -> impl Strategy<Value = Vec<usize>> {
        prop::collection::vec(0usize..24, 0..8)
    }

    proptest! {
        #[test]
        fn any_frames_and_any_cuts_give_the_same_reply(made in made(), ends in cuts(), cuts in cuts()) {
            let whole = delta(0, &made);
            let mut pieces = framed(&made, ends);
            prop_assert_eq!(&joined(pieces.clone()), &whole);
            for cut in cuts {
                let at = pieces.iter().position(|piece| (cut as u32) < piece.published());
                let Some(at) = at else { continue };
                let within = (cut as u32).saturating_sub(pieces[at].index) as usize;
                let rest = pieces[at].split_off(within).expect("it has lengths");
                pieces.insert(at + 1, rest);
            }
            for piece in &pieces {
                let (from, to) = (piece.index as usize, piece.published() as usize);
                prop_assert_eq!(piece, &delta(from, &made[from..to]));
            }
            prop_assert_eq!(joined(pieces), whole);
        }

        #[test]
        fn overlapping_frames_are_cut_where_the_reader_is(made in made(), froms in cuts(), ends in cuts()) {
            // Each frame starts at or before what was read: tokens come again, as after a Redis that lost its last second.
            let mut read = Delta::default();
            let frames = froms.into_iter().zip(ends).chain([(0, made.len())]);
            for (from, end) in frames {
                let end = end.min(made.len());
                let from = from.min(read.tokens.len()).min(end);
                let new = delta(from, &made[from..end]).beyond(read.published());
                if let Some(new) = new.expect("it has lengths") {
                    prop_assert_eq!(new.index, read.published());
                    read.extend(new);
                }
            }
            prop_assert_eq!(read, delta(0, &made));
        }

        #[test]
        fn foreign_deltas_never_panic_and_lose_nothing(
            index: u32,
            tokens: Vec<u32>,
            text: String,
            lengths in prop::collection::vec(prop_oneof![0u32..9, any::<u32>()], 0..5),
            spans in prop::collection::vec((0u32..3, prop_oneof![0u32..9, any::<u32>()]), 0..3),
            at in 0usize..9,
        ) {
            let spans = spans.into_iter().map(|(call, bytes)| Span { part: Part::ToolArguments(call), bytes });
            let spans: Vec<Span> = spans.collect();
            let foreign = Delta { index, tokens, text, lengths, spans, logprobs: Vec::new() };
            let _ = foreign.clone().beyond(at as u32);
            let told: String = foreign.parts().map(|(_, text)| text).collect();
            prop_assert_eq!(&told, &foreign.text);
            let mut first = foreign.clone();
            let cut = first.split_off(at);
            prop_assert!(cut.is_ok() || first == foreign, "an error changes nothing");
            if let Ok(rest) = cut {
                first.extend(rest);
            }
            let mut again = foreign.clone();
            again.extend(delta(0, &[said(1, "é")]));
            prop_assert_eq!((&first.tokens, &first.text), (&foreign.tokens, &foreign.text));
            prop_assert_eq!(&again.text, &format!("{}é", foreign.text));
            let is_empty = foreign.tokens.is_empty() && foreign.text.is_empty();
            prop_assert_eq!(again.check_lengths().is_ok(), is_empty || foreign.check_lengths().is_ok());
        }
    }

    #[test]
    fn a_character_of_two_tokens_belongs_to_the_one_that_completes_it() {
        let mut reply = delta(3, &[said(7, "a"), said(8, ""), said(9, "é!")]);
        let rest = reply.split_off(2).expect("it has lengths");
        assert_eq!((reply.text.as_str(), &reply.lengths[..]), ("a", &[1, 0][..]));
        assert_eq!((rest.index, rest.text.as_str(), &rest.lengths[..]), (5, "é!", &[3][..]));
    }

    #[test]
    fn wrong_lengths_are_told_and_cut_nothing() {
        let with = |lengths: &[u32]| Delta {
            index: 0,
            tokens: vec![1, 2],
            text: "é!".into(),
            lengths: lengths.to_vec(),
            ..Delta::default()
        };
        let refused = |lengths| with(lengths).split_off(1).expect_err("must be refused");
        assert_eq!(refused(&[]), CutError::NoLengths);
        assert_eq!(refused(&[3]), CutError::Count { lengths: 1, tokens: 2 });
        assert_eq!(refused(&[2, 2]), CutError::Sum { sum: 4, bytes: 3 });
        assert_eq!(refused(&[u32::MAX, u32::MAX]), CutError::Sum { sum: 2 * u64::from(u32::MAX), bytes: 3 });
        assert_eq!(refused(&[1, 2]), CutError::Character { at: 1 });
        for lengths in [&[][..], &[3], &[1, 2], &[2, 2]] {
            let mut frame = with(lengths);
            assert_eq!(frame.split_off(2).map(|rest| rest.index), Ok(2), "its end needs no lengths");
            assert_eq!((frame.split_off(0), frame.tokens.len()), (Ok(with(lengths)), 0));
        }
    }

    #[test]
    fn lengths_that_are_not_known_are_not_made_up() {
        let known = || delta(0, &[said(1, "a")]);
        let unknown = || Delta { lengths: vec![], ..delta(1, &[said(2, "b")]) };
        let both = joined([known(), unknown()]);
        assert_eq!((both.text.as_str(), both.lengths.len()), ("ab", 0));
        let mut other = joined([unknown(), known()]);
        other.push(3, "c", None);
        assert_eq!((other.text.as_str(), other.lengths.len()), ("bac", 0));
        // Two wrong ones would add up to the right sum.
        let wrong = |length| Delta { lengths: vec![length], ..known() };
        assert!(joined([wrong(2), wrong(0)]).lengths.is_empty());
        // What has no text needs no lengths.
        let silent = Delta { tokens: vec![4, 5], ..Delta::default() };
        assert_eq!(joined([silent, known()]).lengths, [0, 0, 1]);
    }

    #[test]
    fn a_reply_is_the_message_that_its_parts_make() {
        let turn = TurnId::new(0);
        let pieces = [
            (Part::Reasoning, "Two to add."),
            (Part::Content, "I add."),
            (Part::ToolName(0), "add"),
            (Part::ToolArguments(0), "{\"a\":"),
            (Part::ToolArguments(0), " 1}"),
            (Part::ToolName(1), "add"),
            (Part::ToolArguments(1), "{}"),
        ];
        let mut reply = Delta::default();
        pieces.iter().for_each(|piece| reply.push_parts(7, &[*piece], None));
        let call = |index, arguments: &str| ToolCall {
            id: ToolCall::id_of(&turn, index),
            name: "add".into(),
            arguments: arguments.into(),
        };
        let expected = Message {
            reasoning: Some("Two to add.".into()),
            tool_calls: vec![call(0, "{\"a\": 1}"), call(1, "{}")],
            ..Message::new(Role::Assistant, "I add.")
        };
        assert_eq!(reply.message(&turn), expected);
        assert_eq!((reply.content().as_str(), reply.spans.len()), ("I add.", 6));
        let rest = reply.split_off(4).expect("it has lengths");
        assert_eq!(rest.parts().next(), Some((Part::ToolArguments(0), " 1}")));
        assert_eq!(decode(&encode(&rest).expect("encodes")), Ok(rest));
    }

    #[test]
    fn golden_bytes() {
        let told = Event::Delta(delta(2, &[said(7, ""), said(300, "é")]));
        let mut old =
            b"\x01\x84\xa4kind\xa5delta\xa5index\x02\xa6tokens\x92\x07\xcd\x01\x2c\xa4text\xa2".to_vec();
        old.extend("é".as_bytes());
        let mut golden = old.clone();
        golden[1] += 1;
        golden.extend(b"\xa7lengths\x92\x00\x02");
        assert_eq!(encode(&told).expect("encodes"), golden);
        assert_eq!(decode(&golden), Ok(told));
        let Ok(Event::Delta(old)) = decode(&old) else { panic!("older writers' deltas are read") };
        assert_eq!((old.text.as_str(), old.check_lengths()), ("é", Err(CutError::NoLengths)));
    }
}
