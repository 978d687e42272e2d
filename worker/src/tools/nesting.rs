//! Where a JSON value ends.

/// How deep a JSON text is in objects, lists and strings. Only brackets and strings are looked at: a model that writes `{a: 1,}`
/// has written a value all the same, and the tool judges it.
#[derive(Debug, Default)]
pub(super) struct Nesting {
    /// The brackets that close what is open, innermost last.
    closing: Vec<char>,
    in_string: bool,
    escaped: bool,
}

/// What a character did to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nested {
    /// The value goes on.
    Inside,
    /// It ended the value.
    Closed,
    /// It closes what is not open.
    Wrong,
}

impl Nesting {
    /// Takes the next character of a value; the first opens an object, a list or a string.
    pub(super) fn feed(&mut self, c: char) -> Nested {
        if self.in_string {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.in_string = false,
                _ => {}
            }
        } else {
            match c {
                '"' => self.in_string = true,
                '{' => self.closing.push('}'),
                '[' => self.closing.push(']'),
                '}' | ']' if self.closing.pop() != Some(c) => return Nested::Wrong,
                _ => {}
            }
        }
        if self.closing.is_empty() && !self.in_string { Nested::Closed } else { Nested::Inside }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(text: &str) -> Option<(usize, Nested)> {
        let mut nesting = Nesting::default();
        text.char_indices().map(|(at, c)| (at, nesting.feed(c))).find(|(_, nested)| *nested != Nested::Inside)
    }

    #[test]
    fn a_value_ends_where_its_bracket_or_quote_closes() {
        for (text, end) in [
            (r#"{"a": "}]\"}", "b": [{}]}, "#, Some((24, Nested::Closed))),
            (r#""a\\" "#, Some((4, Nested::Closed))),
            (r#"[{"a": 1]"#, Some((8, Nested::Wrong))),
            (r#"{"a": {"#, None),
        ] {
            assert_eq!(ends(text), end, "{text}");
        }
    }
}
