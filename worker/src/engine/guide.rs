//! What a reply must be, from where on: a grammar's state, and whether it is in force yet.
//!
//! Invariant: the state is a function of the reply's tokens, so that a resumed turn replays to it. Only tokens that were sampled are
//! taken; nothing is rolled back.

use crate::model::{GrammarError, Matcher, TokenMask};
use crate::tools::Parser;

/// How a model thinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thinking {
    /// Tokens after which its thoughts are ended.
    pub budget: Option<u32>,
    /// The tokens that end them.
    pub end: Vec<u32>,
}

/// From where on a grammar is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// The first token.
    Start,
    /// The first token, unless that is this one, which begins thoughts; then their end.
    StartOrThoughts(u32),
    /// The end of the thoughts that the reply begins in.
    Thoughts,
    /// The start of a tool call, if there is one.
    Call,
}

/// A grammar that a reply follows from some place on.
pub struct Guide {
    matcher: Matcher,
    from: Begin,
    in_force: bool,
}

impl Guide {
    /// In force from `from` on.
    pub fn new(matcher: Matcher, from: Begin) -> Self {
        Self { matcher, from, in_force: from == Begin::Start }
    }

    /// Takes the next token.
    pub fn take(&mut self, token: u32) -> Result<(), GrammarError> {
        if let Begin::StartOrThoughts(thoughts) = self.from {
            self.in_force = token != thoughts;
            self.from = if self.in_force { Begin::Start } else { Begin::Thoughts };
        }
        if self.in_force { self.matcher.consume(token) } else { Ok(()) }
    }

    /// Sees whether it is in force after what the `parser` was given last.
    pub fn look(&mut self, parser: &Parser) -> Result<(), GrammarError> {
        if self.in_force {
            return Ok(());
        }
        match self.from {
            Begin::Start | Begin::StartOrThoughts(_) => {}
            Begin::Thoughts => {
                if let Some(said) = parser.after_thinking() {
                    self.matcher.consume_bytes(said.as_bytes())?;
                    self.in_force = true;
                }
            }
            // If the grammar has no such call, it is none, and the reply goes on without.
            Begin::Call => {
                if let Some(text) = parser.trigger() {
                    self.in_force = self.matcher.consume_bytes(text.as_bytes()).is_ok();
                    // It has taken a part of the text, so that it cannot begin again.
                    self.from = Begin::Start;
                }
            }
        }
        Ok(())
    }

    /// Which tokens may come next; none: any. `is_first`: no token is there yet.
    pub fn mask(&mut self, is_first: bool) -> Result<Option<TokenMask>, GrammarError> {
        let thoughts = match self.from {
            Begin::StartOrThoughts(thoughts) if is_first => Some(thoughts),
            _ if !self.in_force => return Ok(None),
            _ => None,
        };
        let mut mask = self.matcher.mask()?.clone();
        thoughts.into_iter().for_each(|thoughts| mask.allow(thoughts));
        Ok(Some(mask))
    }

    /// Whether it is in force.
    pub fn is_in_force(&self) -> bool {
        self.in_force
    }

    /// Whether the reply cannot end before it is in force.
    pub fn must_come(&self) -> bool {
        !self.in_force && self.from == Begin::Thoughts
    }

    /// Whether it has taken the reply's end.
    pub fn has_ended(&self) -> bool {
        self.in_force && self.matcher.has_ended()
    }

    /// Judges what is proposed to come next, of which there may be `most` tokens. An error of the grammar shows when the next token
    /// is masked.
    pub fn judge(&mut self, proposed: &mut Vec<u32>, most: usize) {
        if !self.in_force {
            return;
        }
        let forced = self.matcher.forced().unwrap_or_default();
        if !forced.is_empty() {
            *proposed = forced.into_iter().take(most).collect();
        } else if !proposed.is_empty() {
            proposed.truncate(self.matcher.valid_prefix(proposed).unwrap_or(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use serde_json::json;
    use turnmill_schema::{FinishReason, Message, Part, Sampling, Tool, ToolChoice, Turn, TurnId};

    use super::super::Reply;
    use crate::model::{ChatTemplate, Dialogue, FormatChoice, Tokenizer};
    use crate::runner::Forms;

    const THINKS: &str = "{% for m in messages %}{{ m.content }}{% endfor %}{# </think> #}";

    fn turn() -> Turn {
        let tenant = "t".parse().expect("a name");
        Turn::new(TurnId::new(0), tenant, vec![Message::new(turnmill_schema::Role::User, "hi")])
    }

    fn tools() -> Vec<Tool> {
        let tool = json!({"name": "add", "parameters": {
            "type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["a"]
        }});
        vec![serde_json::from_value(tool).expect("a tool")]
    }

    struct Model {
        tokenizer: Arc<Tokenizer>,
        forms: Forms,
    }

    impl Model {
        fn new(template: &str) -> Self {
            let tokenizer = Arc::new(Tokenizer::of_text(&["<s>", "<e>"]));
            let template = ChatTemplate::from_folder(|_| Ok(None), Some(template)).expect("a template");
            let forms = Forms::new(tokenizer.clone(), &Dialogue::new(template, FormatChoice::Auto));
            Self { tokenizer, forms }
        }

        fn reply(&self, turn: &Turn, rendered: &str) -> Reply {
            let form = self.forms.of(turn, rendered).expect("it compiles");
            Reply::new(self.tokenizer.clone(), &turn.sampling, 400, form)
        }

        /// Says `text` as far as the reply allows; the rest is what it must say. Returns all tokens.
        fn says(&self, reply: &mut Reply, text: &str) -> Vec<u32> {
            let mut tokens = Vec::new();
            let mut wanted = self.tokenizer.encode(text).expect("it tokenises").into_iter();
            while reply.finish().is_none() {
                let mask = reply.mask().expect("it goes on");
                let Some(mask) = mask else {
                    let token = wanted.next().unwrap_or(257);
                    tokens.push(token);
                    reply.push(token);
                    continue;
                };
                let likes = wanted.clone().next().filter(|token| mask.allows(*token));
                if likes.is_some() {
                    wanted.next();
                }
                let token = likes.or_else(|| mask.iter().last()).expect("a token is allowed");
                tokens.push(token);
                reply.push(token);
            }
            tokens
        }
    }

    #[test]
    fn a_call_in_prose_is_free_until_it_begins_and_then_has_its_form() {
        let model = Model::new("{% for m in messages %}{{ m.content }}{% endfor %}");
        let mut turn = turn();
        turn.tools = tools();
        let mut reply = model.reply(&turn, "hi");
        let said = "I add.<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 7}}\n</tool_call><e>";
        model.says(&mut reply, said);
        let message = reply.message(&turn.id);
        assert_eq!((reply.finish(), message.content.as_str()), (Some(FinishReason::ToolCalls), "I add."));
        assert_eq!(
            (message.tool_calls[0].name.as_str(), message.tool_calls[0].arguments.as_str()),
            ("add", "{\"a\": 7}")
        );
        // What cannot be a call's arguments is not written.
        let mut bent = model.reply(&turn, "hi");
        model.says(
            &mut bent,
            "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"b\": 700}}\n</tool_call><e>",
        );
        let arguments = &bent.message(&turn.id).tool_calls[0].arguments;
        let value: serde_json::Value = serde_json::from_str(arguments).expect("JSON");
        assert!(value["a"].as_u64().is_some_and(|a| a < 100), "{arguments}");
        // Prose alone may end.
        let mut prose = model.reply(&turn, "hi");
        model.says(&mut prose, "No.<e>");
        assert_eq!((prose.finish(), prose.text()), (Some(FinishReason::Stop), "No."));
    }

    #[test]
    fn a_call_that_a_limit_cuts_is_no_content() {
        let model = Model::new("{% for m in messages %}{{ m.content }}{% endfor %}");
        let mut turn = turn();
        turn.tools = tools();
        let said = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 7}}\n</tool_call>";
        for (choice, first) in [(ToolChoice::Required, 1), (ToolChoice::Auto, "<tool_call>".len())] {
            turn.tool_choice = choice;
            for limit in first..said.len() {
                let form = model.forms.of(&turn, "hi").expect("it compiles");
                let mut reply = Reply::new(model.tokenizer.clone(), &turn.sampling, limit as u32, form);
                model.says(&mut reply, said);
                let outcome = (reply.finish(), reply.text());
                assert_eq!(outcome, (Some(FinishReason::Length), ""), "{limit}");
            }
        }
    }

    #[test]
    fn a_grammar_waits_for_the_end_of_thoughts_and_thoughts_have_a_budget() {
        let model = Model::new(THINKS);
        let mut turn = turn();
        turn.response_format = turnmill_schema::ResponseFormat::Regex { regex: "yes|no".into() };
        turn.reasoning.budget = Some(20);
        for (rendered, said) in [("hi<think>\n", "hm\n</think>\n\nno<e>"), ("hi", "yes<e>")] {
            let mut reply = model.reply(&turn, rendered);
            model.says(&mut reply, said);
            let message = reply.message(&turn.id);
            assert_eq!(message.content, said.trim_end_matches("<e>").rsplit('\n').next().expect("a line"));
            assert_eq!(message.reasoning.is_some(), rendered.contains("<think>"));
        }
        let mut endless = model.reply(&turn, "hi<think>\n");
        let tokens = model.says(&mut endless, &"hm é".repeat(50));
        let message = endless.message(&turn.id);
        let thought = message.reasoning.expect("it thought");
        assert!(thought.len() <= 22 && "hm é".repeat(50).starts_with(thought.trim_end()), "{thought:?}");
        assert!(["yes", "no"].contains(&message.content.as_str()));
        // The budget, and the tokens of the marker that was forced.
        assert!((20..=20 + 1 + 12).contains(&endless.reasoning_tokens()), "{}", endless.reasoning_tokens());
        assert!(tokens.len() as u32 > endless.reasoning_tokens());
    }

    #[test]
    fn a_grammar_comes_before_the_least_number_of_tokens() {
        let model = Model::new("{% for m in messages %}{{ m.content }}{% endfor %}");
        let mut turn = turn();
        turn.response_format = turnmill_schema::ResponseFormat::Regex { regex: "ab".into() };
        turn.sampling = Sampling { min_tokens: 9, ..Sampling::default() };
        let mut reply = model.reply(&turn, "hi");
        let tokens = model.says(&mut reply, "ab<e>");
        assert_eq!((tokens.len(), reply.finish()), (3, Some(FinishReason::Stop)));
    }

    proptest! {
        /// At any token another worker may go on: what it allows next, and what it has published, is the same.
        #[test]
        fn a_replayed_reply_allows_what_the_first_did(choices in prop::collection::vec(any::<u16>(), 1..120), choice in 0usize..4) {
            let model = Model::new(THINKS);
            let mut turn = turn();
            turn.tools = tools();
            turn.tool_choice = [ToolChoice::Auto, ToolChoice::Required, ToolChoice::Named("add".into()), ToolChoice::None][choice].clone();
            if choice == 3 {
                turn.response_format = turnmill_schema::ResponseFormat::JsonSchema { schema: json!({
                    "type": "array", "items": {"enum": ["a", 1, null]}, "maxItems": 4
                }) };
            }
            let mut whole = model.reply(&turn, "hi");
            let mut tokens: Vec<u32> = Vec::new();
            let mut pieces: Vec<(Part, String)> = Vec::new();
            // Prose that may begin a call.
            let mut prose = "x<tool_call>\n{".bytes().map(u32::from);
            for choice in choices {
                if whole.finish().is_some() {
                    break;
                }
                let mask = whole.mask().expect("it goes on");
                let mut resumed = model.reply(&turn, "hi");
                let mut again: Vec<(Part, String)> = Vec::new();
                tokens.iter().for_each(|token| again.extend(resumed.push(*token).pieces));
                prop_assert_eq!(&again, &pieces);
                prop_assert_eq!(&resumed.mask().expect("it goes on"), &mask);
                let token = match &mask {
                    Some(mask) => mask.iter().nth(choice as usize % mask.count().max(1)).expect("some token"),
                    None => prose.next().unwrap_or(u32::from(choice % 90 + 32)),
                };
                tokens.push(token);
                pieces.extend(whole.push(token).pieces);
            }
        }
    }
}
