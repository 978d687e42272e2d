//! One call, or one list of calls, character by character.

use turnmill_schema::Part;

use super::bare::{Translated, Translator};
use super::format::{Arguments, Description};
use super::nesting::{Nested, Nesting};

/// What is known of a reply after a character.
#[derive(Debug)]
pub(super) struct Found<'a> {
    pub(super) parts: &'a mut Vec<(Part, String)>,
    /// Calls begun in the reply.
    pub(super) calls: &'a mut u32,
    /// The text since a call's trigger, if one has been met.
    pub(super) trigger: &'a mut Option<String>,
    /// The tools that can be called.
    pub(super) tools: &'a [String],
}

impl Found<'_> {
    /// Adds a piece of a part.
    pub(super) fn push(&mut self, part: Part, text: &str) {
        match self.parts.last_mut() {
            Some((last, so_far)) if *last == part => so_far.push_str(text),
            _ if text.is_empty() => {}
            _ => self.parts.push((part, text.to_owned())),
        }
    }

    fn name(&mut self, name: &str) {
        *self.calls += 1;
        self.push(Part::ToolName(*self.calls - 1), name);
    }

    fn arguments(&mut self, json: &str) {
        self.push(Part::ToolArguments(*self.calls - 1), json);
    }

    fn is_tool(&self, name: &str) -> bool {
        self.tools.iter().any(|tool| tool == name)
    }

    /// Whether a tool's name starts like this.
    fn may_be_tool(&self, start: &str) -> bool {
        self.tools.iter().any(|tool| tool.starts_with(start))
    }
}

/// What a character did to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fed {
    /// It belongs to the call, which goes on.
    Inside,
    /// It belongs to the call and ends it.
    Done,
    /// The call ended before the text in [`Call::rest`].
    Ended,
    /// This is no call: the text in [`Call::taken`], and then this character, is content.
    NoCall,
    /// The call has been written, and breaks off before this character.
    Broken,
}

/// Reads a call.
#[derive(Debug)]
pub(super) struct Call {
    description: &'static Description,
    state: State,
    /// Within a list of calls.
    list: bool,
    /// A name, a key or a marker, as far as it has been read.
    word: String,
    escaped: bool,
    key: Key,
    name: Option<String>,
    /// Arguments that came before the name.
    arguments: Option<String>,
    /// It began with a marker.
    marked: bool,
    /// The name has been written, and cannot be taken back.
    written: bool,
    /// Text that is content if this is no call.
    taken: String,
    nesting: Nesting,
    translator: Option<Translator>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// After the first marker.
    Start,
    /// After a comma between calls of a list.
    Item,
    /// Before a key of the call's object.
    Key,
    InKey,
    Colon,
    /// Before a key's value.
    Value,
    InName,
    InArguments,
    /// In a value that is not needed.
    InOther,
    /// In a number or a word that is not needed.
    InScalar,
    /// After a key's value.
    AfterValue,
    /// After a call of a list.
    AfterItem,
    /// In what stands before a name.
    BeforeName,
    /// In a name without quotation marks.
    BareName,
    /// In a marker between name and arguments.
    Marker,
    /// In the id that may be between name and arguments.
    Id,
    BeforeArguments,
    InBare,
    /// Before the last marker.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Name,
    Arguments,
    Other,
}

/// White space, as JSON has it.
pub(super) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

impl Call {
    /// A call that begins after `taken`: a marker, or nothing.
    pub(super) fn new(description: &'static Description, taken: String) -> Self {
        Self {
            description,
            state: State::Start,
            list: false,
            word: String::new(),
            escaped: false,
            key: Key::Other,
            name: None,
            arguments: None,
            marked: !taken.is_empty(),
            written: false,
            taken,
            nesting: Nesting::default(),
            translator: None,
        }
    }

    /// Text that the call has taken and that is content if this is no call.
    pub(super) fn taken(&mut self) -> String {
        std::mem::take(&mut self.taken)
    }

    /// Text after a call that ended.
    pub(super) fn rest(&mut self) -> String {
        std::mem::take(&mut self.word)
    }

    /// Whether the text may end here: no call would be cut off.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.state, State::End | State::AfterItem | State::Item)
    }

    /// Whether a marker says that this is a call.
    pub(super) fn has_marker(&self) -> bool {
        self.marked
    }

    /// Whether the name of the call at hand has been written.
    pub(super) fn is_written(&self) -> bool {
        self.written
    }

    /// Takes the next character.
    pub(super) fn feed(&mut self, c: char, found: &mut Found<'_>) -> Fed {
        let fed = self.step(c, found);
        if fed == Fed::Inside && !self.written && self.state != State::AfterItem {
            self.taken.push(c);
        }
        fed
    }

    fn step(&mut self, c: char, found: &mut Found<'_>) -> Fed {
        match self.state {
            State::Start | State::Item | State::Key | State::Value | State::BeforeArguments
                if is_space(c) =>
            {
                Fed::Inside
            }
            State::AfterValue | State::AfterItem | State::Colon if is_space(c) => Fed::Inside,
            State::End if self.word.is_empty() && is_space(c) => Fed::Inside,
            State::Start => self.start(c, found),
            State::Item => self.go(c == '{', State::Key),
            State::Key => match c {
                '"' => {
                    self.word.clear();
                    self.go(true, State::InKey)
                }
                '}' => self.end_object(found),
                _ => self.wrong(),
            },
            State::InKey => match self.read_string(c) {
                None => Fed::Inside,
                Some(key) => {
                    let key = match key.as_deref() {
                        Some("name") if self.name.is_none() => Key::Name,
                        Some("arguments" | "parameters") if !self.written && self.arguments.is_none() => {
                            Key::Arguments
                        }
                        // With another key this is some other object.
                        Some("id" | "type") => Key::Other,
                        _ if self.written => Key::Other,
                        _ => return self.wrong(),
                    };
                    self.key = key;
                    self.go(true, State::Colon)
                }
            },
            State::Colon => self.go(c == ':', State::Value),
            State::Value => self.value(c, found),
            State::InName => match self.read_string(c) {
                None if self.word.contains('\\') || found.may_be_tool(&self.word) => Fed::Inside,
                Some(Some(name)) if found.is_tool(&name) => {
                    if !self.description.begin_required && found.trigger.is_none() {
                        let object = self.taken.find('{').unwrap_or_default();
                        *found.trigger = Some(format!("{}{c}", &self.taken[object..]));
                    }
                    if let Some(arguments) = self.arguments.take() {
                        self.write_name(&name, found);
                        found.arguments(&arguments);
                    }
                    self.name = Some(name);
                    self.go(true, State::AfterValue)
                }
                None | Some(_) => self.wrong(),
            },
            State::InArguments => {
                let nested = self.nesting.feed(c);
                if nested == Nested::Wrong {
                    return self.wrong();
                }
                self.argument(c, found);
                match (nested, &self.description.arguments) {
                    (Nested::Closed, Arguments::Json { .. }) => self.go(true, State::AfterValue),
                    (Nested::Closed, Arguments::AfterName { .. } | Arguments::Bare { .. }) => self.end_item(),
                    _ => Fed::Inside,
                }
            }
            State::InOther => match self.nesting.feed(c) {
                Nested::Inside => Fed::Inside,
                Nested::Closed => self.go(true, State::AfterValue),
                Nested::Wrong => self.wrong(),
            },
            State::InScalar if c.is_ascii_alphanumeric() || "+-.".contains(c) => Fed::Inside,
            State::InScalar if is_space(c) => self.go(true, State::AfterValue),
            State::InScalar | State::AfterValue => match c {
                ',' => self.go(true, State::Key),
                '}' => self.end_object(found),
                _ => self.wrong(),
            },
            State::AfterItem => match c {
                ',' => self.go(true, State::Item),
                ']' => Fed::Done,
                _ => {
                    self.word = c.to_string();
                    Fed::Ended
                }
            },
            State::BeforeName => {
                let Arguments::Bare { before_name, .. } = self.description.arguments else {
                    return self.wrong();
                };
                self.word.push(c);
                if self.word == before_name {
                    self.word.clear();
                    return self.go(true, State::BareName);
                }
                self.go(before_name.starts_with(&self.word), State::BeforeName)
            }
            State::BareName => self.bare_name(c, found),
            State::Marker => {
                let Arguments::AfterName { marker, id } = self.description.arguments else {
                    return self.wrong();
                };
                self.word.push(c);
                match self.word.as_str() {
                    word if word == marker => self.go(true, State::BeforeArguments),
                    word if word == id => self.go(true, State::Id),
                    word => self.go([marker, id].iter().any(|known| known.starts_with(word)), State::Marker),
                }
            }
            State::Id if c == '[' => {
                self.word = c.to_string();
                self.go(true, State::Marker)
            }
            State::Id => self.go(c.is_ascii_alphanumeric(), State::Id),
            State::BeforeArguments => self.begin_arguments(c, found),
            State::InBare => {
                let Some(translator) = &mut self.translator else { return self.wrong() };
                let mut json = String::new();
                let translated = translator.feed(c, &mut json);
                found.arguments(&json);
                match translated {
                    Translated::Inside => Fed::Inside,
                    Translated::Closed => self.end_item(),
                    Translated::Wrong => Fed::Broken,
                }
            }
            State::End => {
                self.word.push(c);
                match self.description.end {
                    end if end == self.word => Fed::Done,
                    end if end.starts_with(&self.word) => Fed::Inside,
                    _ => Fed::Ended,
                }
            }
        }
    }

    fn start(&mut self, c: char, found: &mut Found<'_>) -> Fed {
        match self.description.arguments {
            Arguments::Json { .. } => match c {
                '[' if self.description.list && !self.list => {
                    self.list = true;
                    Fed::Inside
                }
                _ => self.go(c == '{', State::Key),
            },
            Arguments::AfterName { .. } => {
                self.state = State::BareName;
                self.step(c, found)
            }
            Arguments::Bare { .. } => {
                self.state = State::BeforeName;
                self.step(c, found)
            }
        }
    }

    fn bare_name(&mut self, c: char, found: &mut Found<'_>) -> Fed {
        let after_name = matches!(self.description.arguments, Arguments::AfterName { .. });
        if c == '{' || (c == '[' && after_name) {
            let name = std::mem::take(&mut self.word);
            if !found.is_tool(&name) {
                return self.wrong();
            }
            self.name = Some(name);
        }
        match (&self.description.arguments, c) {
            (Arguments::Bare { quote, .. }, '{') => {
                let name = self.name.take().unwrap_or_default();
                self.write_name(&name, found);
                found.arguments("{");
                self.translator = Some(Translator::new(quote));
                self.go(true, State::InBare)
            }
            (_, '{') => self.begin_arguments(c, found),
            (_, '[') if after_name => {
                self.word = c.to_string();
                self.go(true, State::Marker)
            }
            _ => {
                self.word.push(c);
                self.go(found.may_be_tool(&self.word), State::BareName)
            }
        }
    }

    /// The first character of a key's value.
    fn value(&mut self, c: char, found: &mut Found<'_>) -> Fed {
        match (self.key, c) {
            (Key::Name, '"') => {
                self.word.clear();
                self.go(true, State::InName)
            }
            (Key::Arguments, _) => self.begin_arguments(c, found),
            (Key::Other, '{' | '[' | '"') => {
                self.nesting = Nesting::default();
                self.nesting.feed(c);
                self.go(true, State::InOther)
            }
            (Key::Other, _) => self.go(c.is_ascii_alphanumeric() || c == '-', State::InScalar),
            (Key::Name, _) => self.wrong(),
        }
    }

    fn begin_arguments(&mut self, c: char, found: &mut Found<'_>) -> Fed {
        if c != '{' {
            return self.wrong();
        }
        match self.name.clone() {
            Some(name) => self.write_name(&name, found),
            None => self.arguments = Some(String::new()),
        }
        self.nesting = Nesting::default();
        self.nesting.feed(c);
        self.argument(c, found);
        self.go(true, State::InArguments)
    }

    fn argument(&mut self, c: char, found: &mut Found<'_>) {
        match &mut self.arguments {
            Some(arguments) => arguments.push(c),
            None => found.arguments(c.encode_utf8(&mut [0; 4])),
        }
    }

    fn write_name(&mut self, name: &str, found: &mut Found<'_>) {
        found.name(name);
        self.written = true;
        self.taken.clear();
    }

    fn end_object(&mut self, found: &mut Found<'_>) -> Fed {
        if !self.written {
            // A call without arguments; models leave them out if a tool has none.
            let Some(name) = self.name.clone() else { return self.wrong() };
            self.write_name(&name, found);
            found.arguments("{}");
        }
        self.end_item()
    }

    fn end_item(&mut self) -> Fed {
        self.name = None;
        self.arguments = None;
        self.word.clear();
        if self.list {
            self.written = false;
            self.go(true, State::AfterItem)
        } else if self.description.end.is_empty() {
            Fed::Done
        } else {
            self.go(true, State::End)
        }
    }

    /// Reads a JSON string, whose first quotation mark has been read, into `word`; at its end, the string it stands for, if it is
    /// one.
    fn read_string(&mut self, c: char) -> Option<Option<String>> {
        if c == '"' && !self.escaped {
            let text = format!("\"{}\"", std::mem::take(&mut self.word));
            return Some(serde_json::from_str(&text).ok());
        }
        self.escaped = c == '\\' && !self.escaped;
        self.word.push(c);
        None
    }

    fn go(&mut self, right: bool, next: State) -> Fed {
        if !right {
            return self.wrong();
        }
        self.state = next;
        Fed::Inside
    }

    fn wrong(&self) -> Fed {
        if self.written { Fed::Broken } else { Fed::NoCall }
    }
}
