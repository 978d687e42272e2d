//! Reads a lark grammar before llguidance does: gives the schemas in it our options and checks, and refuses nesting that is too deep.

use serde_json::Value;

use super::error::rejected;
use super::source::check_depth;
use super::{GrammarError, limits, schema};

/// The grammar with each `%json` checked and with fixed white space. Places in it stay on their lines.
pub fn guided(source: &str) -> Result<String, GrammarError> {
    let mut reader =
        Reader { rest: source, written: String::with_capacity(source.len() + 256), ..Reader::default() };
    while !reader.rest.is_empty() {
        reader.token()?;
    }
    reader.end_definition();
    if reader.definitions > limits::DEFINITIONS {
        return rejected(format!(
            "the lark grammar has more than {} definitions; make it smaller",
            limits::DEFINITIONS
        ));
    }
    if reader.nesting > limits::TERMINAL_NESTING {
        return rejected(format!(
            "the terminals of the lark grammar have more than {} levels of definitions and parentheses in all; use rules (lower-case \
             names) instead",
            limits::TERMINAL_NESTING
        ));
    }
    Ok(reader.written)
}

#[derive(Default)]
struct Reader<'a> {
    rest: &'a str,
    written: String,
    /// The last name before what is read, which a colon makes the name of a definition.
    name: &'a str,
    /// Whether the definition that is read is of a terminal.
    terminal: bool,
    /// Parentheses open, and the most that were open in this definition.
    depth: usize,
    deepest: usize,
    definitions: usize,
    /// Levels of all terminals so far.
    nesting: usize,
}

impl<'a> Reader<'a> {
    /// Copies the next token.
    fn token(&mut self) -> Result<(), GrammarError> {
        let rest = self.rest;
        let first = rest.chars().next().unwrap_or_default();
        if rest.starts_with("%json") {
            return self.schema();
        }
        let length = match first {
            '#' => line(rest),
            '/' if rest.starts_with("//") => line(rest),
            '/' => quoted(rest, '/'),
            '"' => quoted(rest, '"'),
            '<' => rest.find('>').map_or(1, |end| end + 1),
            _ if rest.starts_with("%regex") => 6 + json(&rest[6..])?.1,
            _ if rest.starts_with("%llguidance") => 11 + json(&rest[11..])?.1,
            c if is_name(c) => rest.find(|c| !is_name(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let token = &rest[..length];
        match first {
            '(' | '[' => {
                self.depth += 1;
                self.deepest = self.deepest.max(self.depth);
            }
            ')' | ']' => self.depth = self.depth.saturating_sub(1),
            ':' if self.depth == 0 => {
                self.end_definition();
                self.terminal =
                    self.name.trim_start_matches('_').starts_with(|c: char| c.is_ascii_uppercase());
            }
            '/' if !token.starts_with("//") => {
                self.deepest = self.deepest.max(self.depth + parentheses(token));
            }
            c if is_name(c) => self.name = token,
            _ => {}
        }
        self.copy(length);
        Ok(())
    }

    fn copy(&mut self, length: usize) {
        let (token, rest) = self.rest.split_at(length);
        self.written.push_str(token);
        self.rest = rest;
    }

    fn schema(&mut self) -> Result<(), GrammarError> {
        let (value, length) = json(&self.rest[5..])?;
        check_depth(&value)?;
        schema::check(&value)?;
        let lines = self.rest[..5 + length].matches('\n').count();
        let written = schema::guided(value).to_string();
        self.written.push_str("%json ");
        self.written.push_str(written.strip_suffix('}').unwrap_or(&written));
        self.written.push_str(&"\n".repeat(lines));
        self.written.push('}');
        self.rest = &self.rest[5 + length..];
        Ok(())
    }

    fn end_definition(&mut self) {
        self.definitions += 1;
        if self.terminal {
            self.nesting += 1 + self.deepest;
        }
        (self.terminal, self.deepest) = (false, 0);
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

/// Length up to the end of the line.
fn line(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}

/// Length of a string or regular expression with its quotes. One that does not end is left to llguidance to refuse.
fn quoted(text: &str, quote: char) -> usize {
    let mut characters = text.char_indices().skip(1);
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => drop(characters.next()),
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Most parentheses open at once in a regular expression; those in classes count too.
fn parentheses(expression: &str) -> usize {
    let (mut open, mut most) = (0usize, 0);
    let mut characters = expression.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => drop(characters.next()),
            '(' => open += 1,
            ')' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// The JSON that `text` begins with, and its length.
fn json(text: &str) -> Result<(Value, usize), GrammarError> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    match values.next() {
        Some(Ok(value)) => Ok((value, values.byte_offset())),
        _ => rejected("the lark grammar has a % directive that JSON does not follow; write %json {...}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_get_fixed_white_space_and_the_rest_stays() {
        let source = "// %json 1\nstart: \"%json\" /%json \\/ x/ <|%json|> a # %json\na: %json {\n\"type\":\n \"null\"} | %regex {\"substring_words\": \"%json 5\"}\n";
        let written = guided(source).expect("a grammar");
        let (before, after) =
            written.split_once("a: %json {\"type\":\"null\",").expect("the schema is in its place");
        assert!(source.starts_with(before));
        assert!(after.contains("\"key_separator\":\": \""), "{after}");
        assert!(after.contains("\n\n} | %regex {\"substring_words\": \"%json 5\"}\n"), "{after}");
        assert_eq!(written.lines().count(), source.lines().count());
    }

    #[test]
    fn what_is_wrong_in_a_schema_is_found() {
        let cases = [
            ("start: %json {\"type\": \"object\", \"not\": {}}", "\"not\""),
            ("start: %json {\"$ref\": \"http://example.com\"}", "outside the schema"),
            ("start: %json nothing", "%json {...}"),
        ];
        for (source, part) in cases {
            let error = guided(source).expect_err(source).to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn levels_of_terminals_are_summed() {
        let chain = |count: usize| {
            let names: Vec<String> = (0..count).map(|n| format!("A{n}: (A{} \"x\")?\n", n + 1)).collect();
            guided(&format!("{}A{count}: /y/\nstart: A0\n", names.concat()))
        };
        assert!(chain(limits::TERMINAL_NESTING / 2 - 1).is_ok());
        assert!(chain(limits::TERMINAL_NESTING / 2).is_err());
        assert_eq!(parentheses(r"/((a\()(b))(c)/"), 2);
    }
}
