//! A reply's text, divided into content, thoughts and calls as it arrives.

use turnmill_schema::Part;

use super::call::{Call, Fed, Found, is_space};
use super::format::{Description, ToolFormat};
use super::think::ThinkMarkers;

/// Divides the text of one reply.
///
/// Invariants: however the text is cut, the parts are the same; a text in which no marker is met comes out as it is; what starts
/// like a call and is none comes out as content. Text that may be the start of a marker or of a call is held back until that is
/// decided, and so is white space, which is no content if it stands before or after a call or ends the thoughts.
#[derive(Debug)]
pub struct Parser {
    format: Option<&'static Description>,
    thinking: Option<ThinkMarkers>,
    tools: Vec<String>,
    mode: Mode,
    /// Where in the reply the text at hand is.
    place: Place,
    /// What may be the start of a marker.
    candidate: String,
    /// White space whose meaning is not known yet.
    spaces: String,
    calls: u32,
    trigger: Option<String>,
    after_thinking: Option<String>,
    calls_only: bool,
}

#[derive(Debug)]
enum Mode {
    Text,
    Thinking {
        /// Only line breaks have come since the marker.
        fresh: bool,
    },
    Call(Box<Call>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing but white space has come.
    Start,
    /// Nothing but white space has come since the thoughts.
    AfterThinking,
    /// Nothing but white space has come since a call.
    AfterCall,
    /// After content.
    Content,
}

impl Default for Parser {
    /// A parser of replies that are content and nothing else.
    fn default() -> Self {
        Self::new(None, None, false, [""; 0])
    }
}

impl Parser {
    /// A parser of a reply in which `tools` can be called as `format` has it, and which may think. `starts_inside` says that the
    /// prompt ended with the marker before thoughts.
    pub fn new(
        format: Option<ToolFormat>,
        thinking: Option<ThinkMarkers>,
        starts_inside: bool,
        tools: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let mode =
            if starts_inside && thinking.is_some() { Mode::Thinking { fresh: false } } else { Mode::Text };
        Self {
            format: format.map(ToolFormat::description),
            thinking,
            tools: tools.into_iter().map(Into::into).collect(),
            mode,
            place: Place::Start,
            candidate: String::new(),
            spaces: String::new(),
            calls: 0,
            trigger: None,
            after_thinking: None,
            calls_only: false,
        }
    }

    /// A parser of a reply whose grammar allows calls alone, after thoughts.
    pub fn calls_only(self) -> Self {
        Self { calls_only: true, ..self }
    }

    /// Takes the next text of the reply, and adds to `parts` what it made certain. Control tokens that are markers arrive as their
    /// text.
    pub fn push(&mut self, text: &str, parts: &mut Vec<(Part, String)>) {
        (self.trigger, self.after_thinking) = (None, None);
        for c in text.chars() {
            for since in [&mut self.trigger, &mut self.after_thinking].into_iter().flatten() {
                since.push(c);
            }
            self.step(c, parts);
        }
    }

    /// The reply was cut by a limit or a stop string. A call whose name is not known yet comes out as nothing, because users do not
    /// expect its marker in content: its marker has been met, or the reply is calls only. Else what was held back is content, as in
    /// [`Parser::finish`]: prose may end in `<`, and then belongs to the text.
    pub fn cut(&mut self, parts: &mut Vec<(Part, String)>) {
        let is_call = match &self.mode {
            Mode::Text => self.calls_only,
            Mode::Thinking { .. } => false,
            Mode::Call(call) => self.calls_only || call.has_marker(),
        };
        if is_call {
            self.mode = Mode::Text;
            self.candidate.clear();
            self.spaces.clear();
        }
        self.finish(parts);
    }

    /// The model has ended the reply: what was held back is content, unless it is part of a call.
    pub fn finish(&mut self, parts: &mut Vec<(Part, String)>) {
        (self.trigger, self.after_thinking) = (None, None);
        match std::mem::replace(&mut self.mode, Mode::Text) {
            Mode::Text => {
                for c in std::mem::take(&mut self.candidate).chars() {
                    self.text(c, parts);
                }
            }
            mode @ Mode::Thinking { .. } => {
                self.mode = mode;
                let held = std::mem::take(&mut self.spaces) + &std::mem::take(&mut self.candidate);
                self.push_part(Part::Reasoning, &held, parts);
            }
            Mode::Call(call) if call.is_whole() || call.is_written() => {}
            Mode::Call(call) => self.no_call(*call, parts),
        }
        if self.place != Place::AfterCall {
            self.flush_spaces(parts);
        }
        self.spaces.clear();
    }

    /// Whether the text at hand is thought.
    pub fn in_reasoning(&self) -> bool {
        matches!(self.mode, Mode::Thinking { .. })
    }

    /// How many calls have begun: whose names have come out.
    pub fn calls(&self) -> u32 {
        self.calls
    }

    /// If a call began in the text pushed last: the text since its trigger. The trigger is the format's first marker, and the text
    /// what follows it; for a format without one it is a known tool's name, and the text is the call so far. With that text starts
    /// [`ToolFormat::grammar`] of a reply that may call tools but need not; if the grammar refuses it, the reply goes on without.
    pub fn trigger(&self) -> Option<&str> {
        self.trigger.as_deref()
    }

    /// If the thoughts ended in the text pushed last: the text since.
    pub fn after_thinking(&self) -> Option<&str> {
        self.after_thinking.as_deref()
    }

    fn step(&mut self, c: char, parts: &mut Vec<(Part, String)>) {
        match self.mode {
            Mode::Text => {
                self.candidate.push(c);
                self.match_text(parts);
            }
            Mode::Thinking { .. } => {
                self.candidate.push(c);
                self.match_thinking(parts);
            }
            Mode::Call(_) => self.call(c, parts),
        }
    }

    /// Looks for a marker at the start of the candidate; what cannot be one is text.
    fn match_text(&mut self, parts: &mut Vec<(Part, String)>) {
        while !self.candidate.is_empty() {
            let begin = self.format.map(|format| format.begin);
            let think = self.thinking.map(|thinking| thinking.open).filter(|_| self.place == Place::Start);
            if think == Some(self.candidate.as_str()) {
                self.candidate.clear();
                self.spaces.clear();
                self.mode = Mode::Thinking { fresh: true };
                return;
            }
            if let Some(format) = self.format.filter(|_| begin == Some(self.candidate.as_str())) {
                if format.begin_required && self.trigger.is_none() {
                    self.trigger = Some(String::new());
                }
                let marker = std::mem::take(&mut self.candidate);
                self.mode = Mode::Call(Box::new(Call::new(format, marker)));
                return;
            }
            if begin.into_iter().chain(think).any(|marker| marker.starts_with(&self.candidate)) {
                return;
            }
            let first = self.candidate.remove(0);
            self.text(first, parts);
            if !matches!(self.mode, Mode::Text) {
                return self.again(parts);
            }
        }
    }

    /// Takes the candidate's text once more, in the mode at hand.
    fn again(&mut self, parts: &mut Vec<(Part, String)>) {
        for c in std::mem::take(&mut self.candidate).chars() {
            self.step(c, parts);
        }
    }

    fn match_thinking(&mut self, parts: &mut Vec<(Part, String)>) {
        let close = self.thinking.map_or("", |thinking| thinking.close);
        while !close.starts_with(&self.candidate) {
            let c = self.candidate.remove(0);
            match &mut self.mode {
                Mode::Thinking { fresh: true } if is_line_break(c) => continue,
                Mode::Thinking { fresh } => *fresh = false,
                Mode::Text | Mode::Call(_) => {}
            }
            if is_line_break(c) {
                self.spaces.push(c);
            } else {
                let mut text = std::mem::take(&mut self.spaces);
                text.push(c);
                self.push_part(Part::Reasoning, &text, parts);
            }
        }
        if self.candidate == close {
            self.candidate.clear();
            self.spaces.clear();
            self.mode = Mode::Text;
            self.place = Place::AfterThinking;
            self.after_thinking = Some(String::new());
        }
    }

    /// A character that begins no marker.
    fn text(&mut self, c: char, parts: &mut Vec<(Part, String)>) {
        if let Some(format) = self.format {
            let held = is_space(c) || (self.place == Place::AfterCall && format.between.contains(c));
            if held {
                return self.spaces.push(c);
            }
            if c == '{' && !format.begin_required && self.place != Place::Content {
                self.mode = Mode::Call(Box::new(Call::new(format, String::new())));
                return self.call(c, parts);
            }
        } else if is_space(c) && self.thinking.is_some() && self.place != Place::Content {
            return self.spaces.push(c);
        }
        self.flush_spaces(parts);
        self.place = Place::Content;
        self.push_part(Part::Content, c.encode_utf8(&mut [0; 4]), parts);
    }

    fn call(&mut self, c: char, parts: &mut Vec<(Part, String)>) {
        let Mode::Call(mut call) = std::mem::replace(&mut self.mode, Mode::Text) else { return };
        let mut found =
            Found { parts, calls: &mut self.calls, trigger: &mut self.trigger, tools: &self.tools };
        let begun = *found.calls;
        let fed = call.feed(c, &mut found);
        if self.calls > begun {
            self.spaces.clear();
        }
        match fed {
            Fed::Inside => self.mode = Mode::Call(call),
            Fed::Done => self.place = Place::AfterCall,
            Fed::Ended => {
                self.place = Place::AfterCall;
                self.candidate = call.rest();
                self.again(parts);
            }
            Fed::NoCall => {
                self.no_call(*call, parts);
                self.step(c, parts);
            }
            Fed::Broken => {
                self.place = Place::AfterCall;
                self.step(c, parts);
            }
        }
    }

    fn no_call(&mut self, mut call: Call, parts: &mut Vec<(Part, String)>) {
        self.flush_spaces(parts);
        self.place = Place::Content;
        let taken = call.taken();
        self.push_part(Part::Content, &taken, parts);
    }

    /// White space turns out to be before content.
    fn flush_spaces(&mut self, parts: &mut Vec<(Part, String)>) {
        let spaces = std::mem::take(&mut self.spaces);
        let content = match self.place {
            Place::Start | Place::Content => spaces.as_str(),
            Place::AfterThinking => spaces.trim_start_matches(is_line_break),
            Place::AfterCall => spaces.trim_start_matches(is_space),
        };
        self.push_part(Part::Content, content, parts);
    }

    fn push_part(&mut self, part: Part, text: &str, parts: &mut Vec<(Part, String)>) {
        Found { parts, calls: &mut self.calls, trigger: &mut self.trigger, tools: &self.tools }
            .push(part, text);
    }
}

fn is_line_break(c: char) -> bool {
    matches!(c, '\n' | '\r')
}
