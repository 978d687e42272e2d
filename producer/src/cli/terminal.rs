//! Text from outside on its way to a terminal.
//!
//! Replies, errors and names come from models, users and other programs. A terminal obeys control characters in them:
//! they clear the screen, change its title, or answer for the person. So they are shown, not sent.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{IsTerminal, stdout};

/// The text with its control characters, but for line ends and tabs, in the form `\u{1b}`.
pub fn visible(text: &str) -> Cow<'_, str> {
    let is_obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(is_obeyed) {
        return text.into();
    }
    let shown = |mut shown: String, c: char| {
        // Writing to a String does not fail.
        let _ = if is_obeyed(c) { write!(shown, "{}", c.escape_unicode()) } else { shown.write_char(c) };
        shown
    };
    text.chars().fold(String::with_capacity(text.len() + 16), shown).into()
}

/// The text as it goes to stdout: whole if that is a file or a pipe.
pub fn for_stdout(text: &str) -> Cow<'_, str> {
    if stdout().is_terminal() { visible(text) } else { text.into() }
}

/// JSON as it goes to stdout. Its strings have no control characters up to 0x1f, but may have those from 0x7f to 0x9f.
pub fn json_for_stdout(json: String) -> String {
    if !stdout().is_terminal() || !json.contains(char::is_control) {
        return json;
    }
    json.chars().map(|c| if c.is_control() { format!("\\u{:04x}", u32::from(c)) } else { c.into() }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(visible("naïve\n\tplain"), "naïve\n\tplain");
        assert_eq!(visible("a\x1b[2Jb\r\u{9b}c\x07"), "a\\u{1b}[2Jb\\u{d}\\u{9b}c\\u{7}");
    }

    proptest! {
        #[test]
        fn nothing_that_a_terminal_obeys_is_left(text: String) {
            let shown = visible(&text);
            prop_assert!(!shown.contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
        }
    }
}
