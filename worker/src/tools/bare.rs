//! Objects with bare keys and with texts between markers, as Gemma writes them: `{city:<escape>Paris<escape>,days:2}`.

use serde_json::Value;

use super::call::is_space;

/// What a value looks like. Objects keep the order of their keys.
pub(super) fn render(value: &Value, quote: &str) -> String {
    let list = |items: Vec<String>| items.join(",");
    match value {
        // A text cannot hold the marker that ends it. JSON's spelling can, and is read as well.
        Value::String(text) if text.contains(quote) => {
            value.to_string().replace('<', "\\u003c").replace('>', "\\u003e")
        }
        Value::String(text) => format!("{quote}{text}{quote}"),
        Value::Array(items) => {
            format!("[{}]", list(items.iter().map(|item| render(item, quote)).collect()))
        }
        Value::Object(map) => {
            let pair = |(key, value): (&String, &Value)| {
                format!("{}:{}", render_key(key, quote), render(value, quote))
            };
            format!("{{{}}}", list(map.iter().map(pair).collect()))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// A key: bare, or as a text if it could be mistaken for something else.
pub(super) fn render_key(key: &str, quote: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.$".contains(c);
    if !key.is_empty() && key.chars().all(plain) { key.to_owned() } else { render(&Value::from(key), quote) }
}

/// Turns such an object into JSON text as it arrives.
#[derive(Debug)]
pub(super) struct Translator {
    quote: &'static str,
    /// The brackets that close what is open, innermost last.
    closing: Vec<char>,
    state: State,
    /// A key, a bare value, or what may be the start of a marker.
    word: String,
    /// Whether a comma comes before the next item. Models end lists with commas, which JSON does not allow.
    comma: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a key or the end of the object.
    Key,
    /// Between markers, or between quotation marks, in a key or a value.
    Text { key: bool, closed_by: Closing },
    /// After a text that is a key.
    Colon,
    /// Before a value or the end of a list.
    Value,
    /// In a value that is no text.
    Word,
    /// After a value.
    After,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    Marker,
    /// A quotation mark, and the last character was a backslash.
    Mark {
        escaped: bool,
    },
}

/// What a character did to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Translated {
    /// It goes on.
    Inside,
    /// It ended.
    Closed,
    /// It is none.
    Wrong,
}

impl Translator {
    /// For an object whose `{` has been read.
    pub(super) fn new(quote: &'static str) -> Self {
        Self { quote, closing: vec!['}'], state: State::Key, word: String::new(), comma: false }
    }

    /// Takes the next character, and writes what is known of the JSON text.
    pub(super) fn feed(&mut self, c: char, json: &mut String) -> Translated {
        match self.state {
            State::Key => self.key(c, json),
            State::Text { key, closed_by: Closing::Marker } => {
                self.word.push(c);
                // What cannot be the marker's start is text.
                while !self.quote.starts_with(self.word.as_str()) {
                    push_escaped(self.word.remove(0), json);
                }
                if self.word == self.quote {
                    self.end_text(key, json);
                }
                Translated::Inside
            }
            State::Text { key, closed_by: Closing::Mark { escaped } } => {
                match c {
                    '"' if !escaped => self.end_text(key, json),
                    _ => {
                        let escaped = c == '\\' && !escaped;
                        self.state = State::Text { key, closed_by: Closing::Mark { escaped } };
                        if c < ' ' { push_escaped(c, json) } else { json.push(c) }
                    }
                }
                Translated::Inside
            }
            State::Colon => match c {
                ':' => {
                    json.push(':');
                    self.state = State::Value;
                    Translated::Inside
                }
                _ if is_space(c) => Translated::Inside,
                _ => Translated::Wrong,
            },
            State::Value => self.value(c, json),
            State::Word => {
                if matches!(c, ',' | '}' | ']') {
                    json.push_str(&scalar(self.word.trim_ascii_end()));
                    self.word.clear();
                    self.after(c, json)
                } else {
                    self.word.push(c);
                    Translated::Inside
                }
            }
            State::After => self.after(c, json),
        }
    }

    fn key(&mut self, c: char, json: &mut String) -> Translated {
        if self.word.is_empty() {
            match c {
                _ if is_space(c) => return Translated::Inside,
                '}' => return self.close(c, json),
                '"' => {
                    self.begin_text(true, Closing::Mark { escaped: false }, json);
                    return Translated::Inside;
                }
                _ => {}
            }
        }
        if c == ':' {
            let key = std::mem::take(&mut self.word);
            self.begin_item(json);
            json.push_str(&Value::from(key.trim_ascii_end()).to_string());
            json.push(':');
            self.state = State::Value;
        } else {
            self.word.push(c);
            if self.word == self.quote {
                self.begin_text(true, Closing::Marker, json);
            }
        }
        Translated::Inside
    }

    fn value(&mut self, c: char, json: &mut String) -> Translated {
        if self.word.is_empty() {
            match c {
                _ if is_space(c) => return Translated::Inside,
                '{' | '[' => {
                    self.begin_value(json);
                    json.push(c);
                    self.closing.push(if c == '{' { '}' } else { ']' });
                    self.state = if c == '{' { State::Key } else { State::Value };
                    return Translated::Inside;
                }
                ']' if self.in_list() => return self.close(c, json),
                '"' => {
                    self.begin_text(false, Closing::Mark { escaped: false }, json);
                    return Translated::Inside;
                }
                _ => {}
            }
        }
        if self.quote.starts_with(&format!("{}{c}", self.word)) {
            self.word.push(c);
            if self.word == self.quote {
                self.begin_text(false, Closing::Marker, json);
            }
            return Translated::Inside;
        }
        self.begin_value(json);
        self.state = State::Word;
        self.feed(c, json)
    }

    fn after(&mut self, c: char, json: &mut String) -> Translated {
        match c {
            ',' => {
                self.comma = true;
                self.state = if self.in_list() { State::Value } else { State::Key };
                Translated::Inside
            }
            '}' | ']' => self.close(c, json),
            _ if is_space(c) => Translated::Inside,
            _ => Translated::Wrong,
        }
    }

    fn in_list(&self) -> bool {
        self.closing.last() == Some(&']')
    }

    fn close(&mut self, c: char, json: &mut String) -> Translated {
        if self.closing.pop() != Some(c) {
            return Translated::Wrong;
        }
        json.push(c);
        self.comma = false;
        self.state = State::After;
        if self.closing.is_empty() { Translated::Closed } else { Translated::Inside }
    }

    fn begin_item(&mut self, json: &mut String) {
        if std::mem::take(&mut self.comma) {
            json.push(',');
        }
    }

    /// The comma before a member of an object is before its key.
    fn begin_value(&mut self, json: &mut String) {
        if self.in_list() {
            self.begin_item(json);
        }
    }

    fn begin_text(&mut self, key: bool, closed_by: Closing, json: &mut String) {
        if key {
            self.begin_item(json);
        } else {
            self.begin_value(json);
        }
        self.word.clear();
        json.push('"');
        self.state = State::Text { key, closed_by };
    }

    fn end_text(&mut self, key: bool, json: &mut String) {
        self.word.clear();
        json.push('"');
        self.state = if key { State::Colon } else { State::After };
    }
}

/// JSON text of a value that is no text. Templates render JSON's null as Python's None, and models leave the markers of texts out.
fn scalar(word: &str) -> String {
    match word {
        "None" | "null" => "null".to_owned(),
        "True" | "true" => "true".to_owned(),
        "False" | "false" => "false".to_owned(),
        _ if serde_json::from_str::<serde_json::Number>(word).is_ok() => word.to_owned(),
        _ => Value::from(word).to_string(),
    }
}

fn push_escaped(c: char, json: &mut String) {
    let text = Value::from(c.to_string()).to_string();
    json.push_str(&text[1..text.len() - 1]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::tools::tests::any_object;

    const QUOTE: &str = "<escape>";

    fn translate(text: &str) -> (String, Translated) {
        let mut translator = Translator::new(QUOTE);
        let mut json = "{".to_owned();
        let mut last = Translated::Inside;
        for c in text.chars().skip(1) {
            assert_eq!(last, Translated::Inside, "{text} after {json}");
            last = translator.feed(c, &mut json);
        }
        (json, last)
    }

    proptest! {
        #[test]
        fn what_is_rendered_translates_back(object in any_object()) {
            let (json, last) = translate(&render(&object, QUOTE));
            prop_assert_eq!(last, Translated::Closed);
            prop_assert_eq!(serde_json::from_str::<Value>(&json).expect("JSON"), object);
        }
    }

    #[test]
    fn what_models_write_besides_is_understood() {
        for (text, expected) in [
            ("{a:1,}", json!({"a": 1})),
            ("{ a: 1 , b : [ 1, 2, ] }", json!({"a": 1, "b": [1, 2]})),
            ("{a:None,b:True,c:False}", json!({"a": null, "b": true, "c": false})),
            ("{a:Paris,b:New York}", json!({"a": "Paris", "b": "New York"})),
            ("{\"a\":\"x\\\"\\n\"}", json!({"a": "x\"\n"})),
            ("{a:,b:<esc}", json!({"a": "", "b": "<esc"})),
            ("{a:<escape><esc<escape>}", json!({"a": "<esc"})),
        ] {
            let (json, last) = translate(text);
            assert_eq!(last, Translated::Closed, "{text} is {json}");
            assert_eq!(serde_json::from_str::<Value>(&json).expect(&json), expected, "{text}");
        }
        assert_eq!(translate("{a:[1}").1, Translated::Wrong);
        assert_eq!(translate("{a:<escape>b<escape>c").1, Translated::Wrong);
    }
}
