//! The prompt of a turn: its agent's exact history, then what is new.
//!
//! A chat template is a function of the whole conversation, and the tokens that a model made are not always those of the text that
//! the template writes for them: a tool call has the model's spelling, white space is trimmed, thoughts are dropped. So the new part
//! is a difference of two renders, of the conversation with and without it, and follows the exact tokens, whose blocks are then
//! found again. Only if a template rewrites old turns is the history tokenised again, from the newest turn on that it leaves as it
//! was.

use turnmill_schema::{History, Message, Role};

use super::dialogue::Dialogue;
use super::template::{Rendering, TemplateError};
use super::tokenizer::{TextError, Tokenizer};

/// A turn's prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// All of it, history first.
    pub tokens: Vec<u32>,
    /// How many tokens of the history it starts with.
    pub kept: usize,
    /// Some of the history had to be tokenised again.
    pub retokenised: bool,
    /// The text that the template wrote.
    pub rendered: String,
}

/// What a turn asks for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its new messages.
    pub messages: &'a [Message],
    /// What else the template is given.
    pub rendering: Rendering<'a>,
    /// What tells that from what it was given for other turns: [`turnmill_schema::Turn::rendering`].
    pub digest: Option<&'a str>,
    /// Keep the exact tokens of the history, though the template may drop thoughts of it.
    pub keep_thoughts: bool,
    /// Tokens that there is room for.
    pub room: usize,
}

impl<'a> Asked<'a> {
    /// Messages and nothing else, whatever room they need.
    pub fn plain(messages: &'a [Message]) -> Self {
        let rendering = Rendering::plain();
        Self { messages, rendering, digest: None, keep_thoughts: false, room: usize::MAX }
    }
}

/// Why no prompt can be made of a turn.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The template refused the conversation, or failed at it.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The text cannot be tokenised.
    #[error(transparent)]
    Text(#[from] TextError),
    /// So long a text has more tokens than there is room for, however it is cut into tokens.
    #[error(
        "the prompt is a text of {bytes} bytes, which no tokenisation fits into {room} tokens: shorten it, or start a new session"
    )]
    TooLong {
        /// Bytes of the text.
        bytes: usize,
        /// Tokens of context or pool.
        room: usize,
    },
}

impl PromptError {
    /// Whether another worker cannot make one either, so that the turn is to be rejected.
    pub fn is_turns_fault(&self) -> bool {
        match self {
            Self::Template(error) => error.is_turns_fault(),
            Self::Text(_) | Self::TooLong { .. } => true,
        }
    }
}

/// Makes the prompt for what is `asked` after `history`.
pub fn prompt(
    tokenizer: &Tokenizer,
    dialogue: &Dialogue,
    history: &History,
    asked: &Asked<'_>,
) -> Result<Prompt, PromptError> {
    let conversation = [&history.messages[..], asked.messages].concat();
    let fits = |bytes: usize| {
        if tokenizer.may_fit(bytes, asked.room) {
            return Ok(());
        }
        Err(PromptError::TooLong { bytes, room: asked.room })
    };
    // What is said is looked at before it is rendered, and the whole before it is tokenised: both take time, and cannot be cancelled.
    fits(asked.messages.iter().map(|message| message.content.len()).sum())?;
    let rendered = dialogue.render(&conversation, &asked.rendering)?;
    fits(rendered.len())?;
    let past = Past { tokenizer, dialogue, rendering: asked.rendering, rendered: &rendered };
    if let Some((kept, new)) = past.kept_and_new(history, asked)? {
        let mut tokens = history.tokens[..kept].to_vec();
        tokens.extend(new);
        return Ok(Prompt { tokens, kept, retokenised: kept < history.tokens.len(), rendered });
    }
    let tokens = tokenizer.encode(&rendered)?;
    let kept = tokens.iter().zip(&history.tokens).take_while(|(a, b)| a == b).count();
    Ok(Prompt { tokens, kept, retokenised: !history.tokens.is_empty(), rendered })
}

/// Makes the prompt of a text that no template changes.
pub fn raw_prompt(tokenizer: &Tokenizer, text: &str, room: usize) -> Result<Prompt, PromptError> {
    if !tokenizer.may_fit(text.len(), room) {
        return Err(PromptError::TooLong { bytes: text.len(), room });
    }
    let tokens = tokenizer.encode_document(text)?;
    Ok(Prompt { tokens, kept: 0, retokenised: false, rendered: text.to_owned() })
}

/// How a conversation goes on after what is past of it.
struct Past<'a> {
    tokenizer: &'a Tokenizer,
    dialogue: &'a Dialogue,
    rendering: Rendering<'a>,
    /// The whole conversation, up to where the reply starts.
    rendered: &'a str,
}

impl Past<'_> {
    /// How many tokens of the history stay, and those that follow them; none if the whole is to be tokenised.
    fn kept_and_new(
        &self,
        history: &History,
        asked: &Asked<'_>,
    ) -> Result<Option<(usize, Vec<u32>)>, PromptError> {
        let known = &history.tokens;
        if known.is_empty() {
            return Ok(None);
        }
        let after = |kept: usize, text: &str| {
            let new = self.tokenizer.encode_after(&known[..kept], text)?;
            Ok::<_, PromptError>(new.map(|new| (kept, new)))
        };
        let text = self.tokenizer.decode_with_controls(known);
        if let Some(new) = self.rendered.strip_prefix(text.as_str()) {
            return after(known.len(), new);
        }
        // Given other tools, the template writes the conversation's start differently.
        if history.rendering.as_deref() != asked.digest {
            return Ok(None);
        }
        if let Some(new) = self.after(&history.messages, known) {
            return after(known.len(), &new);
        }
        if asked.keep_thoughts
            && let Some(new) = self.after_its_last_closer(&history.messages, known)
        {
            return after(known.len(), &new);
        }
        // If the template leaves a turn as it was, it leaves all turns before it, too.
        let ends = &history.ends;
        let kept = ends.partition_point(|end| self.keeps(&history.messages[..end.messages]));
        let Some(end) = kept.checked_sub(1).and_then(|last| ends.get(last)) else { return Ok(None) };
        match self.after(&history.messages[..end.messages], &known[..end.tokens]) {
            Some(new) => after(end.tokens, &new),
            None => Ok(None),
        }
    }

    /// Whether the template still writes `messages` as it did.
    fn keeps(&self, messages: &[Message]) -> bool {
        self.render(messages).is_some_and(|past| self.rendered.starts_with(past.as_str()))
    }

    /// The text that follows `tokens`, which are those of `messages`; none if the template writes these differently now.
    fn after(&self, messages: &[Message], tokens: &[u32]) -> Option<String> {
        let past = self.render(messages)?;
        let new = self.rendered.strip_prefix(past.as_str())?;
        let has_ended = self.has_ended(tokens);
        let Some((at, closer)) = self.closer(messages, &past) else {
            // The template closes no reply. A model that ends it by starting what follows has written that already.
            let written = tokens.last().filter(|_| has_ended).and_then(|last| self.tokenizer.token(*last));
            let rest = written.and_then(|written| new.trim_start().strip_prefix(written.as_str()));
            return Some(rest.unwrap_or(new).to_owned());
        };
        let open = if has_ended { at + closer.len() } else { at };
        Some([&past[open..], new].concat())
    }

    /// The same if the template drops thoughts: what follows the closer that stands where the last one of `messages` stood.
    fn after_its_last_closer(&self, messages: &[Message], tokens: &[u32]) -> Option<String> {
        let past = self.render(messages)?;
        let (_, closer) = self.closer(messages, &past)?;
        let number = past.matches(closer.as_str()).count();
        let (at, _) = self.rendered.match_indices(closer.as_str()).nth(number.checked_sub(1)?)?;
        let open = if self.has_ended(tokens) { at + closer.len() } else { at };
        Some(self.rendered[open..].to_owned())
    }

    /// Whether the last token ended the reply, so that the template's closer is written.
    fn has_ended(&self, tokens: &[u32]) -> bool {
        tokens.last().is_some_and(|last| self.tokenizer.ends().contains(last))
    }

    /// Where `past` has the control token that closes the last of `messages`, a reply, and its text.
    fn closer(&self, messages: &[Message], past: &str) -> Option<(usize, String)> {
        let (_, before) = messages.split_last().filter(|(last, _)| last.role == Role::Assistant)?;
        // The reply starts where the text parts from the prompt that it answered.
        let asked = self.dialogue.render(before, &self.rendering).unwrap_or_default();
        let same = asked.bytes().zip(past.bytes()).take_while(|(a, b)| a == b).count();
        let start = (0..=same).rev().find(|at| past.is_char_boundary(*at)).unwrap_or(0);
        let texts = self.tokenizer.ends().iter().filter_map(|end| self.tokenizer.token(*end));
        let found = texts.filter_map(|text| Some((start + past[start..].rfind(text.as_str())?, text)));
        found.max_by_key(|(at, _)| *at)
    }

    fn render(&self, messages: &[Message]) -> Option<String> {
        let rendering = Rendering { generation_prompt: false, ..self.rendering };
        self.dialogue.render(messages, &rendering).ok()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use turnmill_schema::{Tool, ToolCall, TranscriptEntry, TurnId};

    use super::*;
    use crate::model::{ChatTemplate, FormatChoice};

    const START: &str = "<|im_start|>";
    const END: &str = "<|im_end|>";
    /// Writes calls as Hermes does, in its own spelling, and trims what was said.
    const TOOLS: &str = "{% if tools %}<|im_start|>system\n{{ tools|tojson }}<|im_end|>\n{% endif %}\
        {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content|trim }}\
        {% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function|tojson }}\n</tool_call>{% endfor %}\
        <|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    /// Drops the thoughts of all replies but those after the last question.
    const THINKING: &str = "{% set ns = namespace(last=0) %}\
        {% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}\
        {% for m in messages %}<|im_start|>{{ m.role }}\n\
        {% if m.role == 'assistant' and loop.index0 > ns.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}\
        {{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn dialogue(source: &str) -> Dialogue {
        let template = ChatTemplate::from_folder(|_| Ok(None), Some(source)).expect("a template");
        Dialogue::new(template, FormatChoice::Auto)
    }

    /// An agent's conversation with a model that says what it is told to.
    struct Agent {
        tokenizer: Tokenizer,
        dialogue: Dialogue,
        history: History,
        tools: Vec<Tool>,
        keep_thoughts: bool,
    }

    impl Agent {
        fn new(source: &str) -> Self {
            let tool = json!({"name": "add", "parameters": {"type": "object"}});
            Self {
                tokenizer: Tokenizer::of_text(&[START, END]),
                dialogue: dialogue(source),
                history: History::default(),
                tools: vec![serde_json::from_value(tool).expect("a tool")],
                keep_thoughts: false,
            }
        }

        /// The model's reply to `messages` has the text `written` and is the message `reply`. Returns the turn's prompt.
        fn turn(&mut self, messages: &[Message], written: &str, reply: Message) -> Prompt {
            let digest = (!self.tools.is_empty()).then_some("tools");
            let asked = Asked {
                rendering: Rendering { tools: &self.tools, ..Rendering::plain() },
                digest,
                keep_thoughts: self.keep_thoughts,
                ..Asked::plain(messages)
            };
            let prompt = prompt(&self.tokenizer, &self.dialogue, &self.history, &asked).expect("a prompt");
            let mut tokens = prompt.tokens[prompt.kept..].to_vec();
            tokens.extend(self.tokenizer.encode(written).expect("it tokenises"));
            let entry = TranscriptEntry {
                turn: TurnId::new(0),
                messages: messages.iter().cloned().chain([reply]).collect(),
                keep: prompt.kept as u32,
                tokens,
                rendering: digest.map(str::to_owned),
            };
            self.history.extend([entry]);
            prompt
        }

        fn text(&self, prompt: &Prompt) -> String {
            self.tokenizer.decode_with_controls(&prompt.tokens)
        }
    }

    fn said(text: &str) -> Message {
        Message::new(Role::Assistant, text)
    }

    fn asks(text: &str) -> Vec<Message> {
        vec![Message::new(Role::User, text)]
    }

    #[test]
    fn a_loop_of_calls_keeps_every_token_though_the_template_spells_calls_differently() {
        let mut agent = Agent::new(TOOLS);
        let written = "<tool_call>\n{\"name\":\"add\",  \"arguments\":{\"a\":1}}\n</tool_call>";
        let mut messages = asks("hi");
        for round in 0..10 {
            let id = format!("c{round}");
            let call = ToolCall { id: id.clone(), name: "add".into(), arguments: "{\"a\":1}".into() };
            let reply = Message { tool_calls: vec![call], ..said("") };
            let before = agent.history.tokens.len();
            let prompt = agent.turn(&messages, &format!("{written}{END}"), reply);
            assert_eq!((prompt.kept, prompt.retokenised), (before, false), "round {round}");
            messages = vec![Message::tool_result(&id, "2")];
        }
        let last = agent.turn(&messages, END, said(""));
        let turn = format!("{START}assistant\n{written}{END}\n{START}tool\n2{END}\n");
        assert!(agent.text(&last).ends_with(&format!("{}{START}assistant\n", turn.repeat(2))));
        // Other tools are another beginning.
        agent.tools.clear();
        let without = agent.turn(&asks("and?"), END, said(""));
        assert!(without.retokenised && without.kept < 30, "{}", without.kept);
    }

    #[test]
    fn what_closes_a_reply_is_written_once_whether_or_not_the_model_wrote_it() {
        for (source, written) in [(TOOLS, "yes"), (TOOLS, " yes \n"), (TOOLS, "yes<|im_start|>")] {
            for end in ["", END] {
                let mut agent = Agent::new(source);
                agent.tools.clear();
                agent.turn(&asks("hi"), &format!("{written}{end}"), said(&written.replace(START, "")));
                let next = agent.turn(&asks("more"), END, said(""));
                let expected = format!(
                    "{START}user\nhi{END}\n{START}assistant\n{written}{END}\n{START}user\nmore{END}\n{START}assistant\n"
                );
                assert_eq!(agent.text(&next), expected, "{written:?} {end:?}");
                assert!(!next.retokenised);
            }
        }
    }

    #[test]
    fn dropped_thoughts_cost_the_turns_from_there_on_unless_they_are_kept() {
        let thought = |text: &str| Message { reasoning: Some("hm".into()), ..said(text) };
        let written = |text: &str| format!("<think>\nhm\n</think>\n\n{text}{END}");
        let mut agent = Agent::new(THINKING);
        agent.tools.clear();
        agent.turn(&asks("a"), &written("1"), thought("1"));
        let first = agent.history.tokens.len();
        let second = agent.turn(&asks("b"), &written("2"), thought("2"));
        assert!(second.retokenised && second.kept < first, "the first turn's thoughts are dropped");
        assert!(agent.text(&second).contains(&format!("assistant\n1{END}")));
        let kept_first = agent.history.ends.first().expect("a turn's end").tokens;
        let third = agent.turn(&asks("c"), &written("3"), thought("3"));
        assert!(third.retokenised && third.kept < kept_first);
        let mut keeping = Agent::new(THINKING);
        keeping.tools.clear();
        keeping.keep_thoughts = true;
        for (number, text) in ["1", "2", "3"].into_iter().enumerate() {
            let before = keeping.history.tokens.len();
            let prompt = keeping.turn(&asks("a"), &written(text), thought(text));
            assert_eq!((prompt.kept, prompt.retokenised), (before, false), "turn {number}");
        }
        let text = keeping.tokenizer.decode_with_controls(&keeping.history.tokens);
        assert_eq!(text.matches("<think>\nhm\n</think>").count(), 3);
        assert_eq!(text.matches(END).count(), 6);
    }

    #[test]
    fn a_text_that_can_never_fit_is_refused_before_it_is_tokenised() {
        let agent = Agent::new(TOOLS);
        let messages = asks(&"x".repeat(10_000));
        // The longest token has 12 bytes.
        for (room, fits) in [(800, false), (100_000, true)] {
            let asked = Asked { room, ..Asked::plain(&messages) };
            let made = prompt(&agent.tokenizer, &agent.dialogue, &agent.history, &asked);
            assert_eq!(made.is_ok(), fits);
            assert_eq!(raw_prompt(&agent.tokenizer, &messages[0].content, room).is_ok(), fits);
        }
    }
}
