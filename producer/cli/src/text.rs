//! Texts as people read them, for the commands and `top` alike.
//!
//! Replies, errors and names come from models, users and other programs. A terminal obeys control characters in them:
//! they clear the screen, change its title, or answer for the person. So they are shown, not sent.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};
use std::io::{IsTerminal, Write as _, stderr, stdout};

use turnmill_client::schema::AgentName;

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

/// JSON as it goes to `out`. Its strings have no control characters up to 0x1f, but may have those from 0x7f to 0x9f.
pub fn json_for(out: &impl IsTerminal, json: String) -> String {
    if !out.is_terminal() || !json.contains(char::is_control) {
        return json;
    }
    json.chars().map(|c| if c.is_control() { format!("\\u{:04x}", u32::from(c)) } else { c.into() }).collect()
}

/// Says something on stderr. If nobody reads that, nothing else is to be said or done about it.
pub fn say(message: impl Display) {
    let _ = writeln!(stderr(), "turnmill: {}", visible(&message.to_string()));
}

/// A duration, in the two units that say most.
pub fn age(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{:.1} s", ms as f64 / 1000.0),
        60..3600 => format!("{} m {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} m", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}

/// A tenant's agent; a turn that stands alone has none.
pub fn agent_id(tenant: &str, agent: Option<&AgentName>) -> String {
    format!("{tenant}/{}", agent.map_or("-", AgentName::as_str))
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

    #[test]
    fn ages_read_well() {
        assert_eq!(age(2_340), "2.3 s");
        assert_eq!(age(61_000), "1 m 1 s");
        assert_eq!(age(7_260_000), "2 h 1 m");
        assert_eq!(age(90_000_000), "1 d 1 h");
    }

    proptest! {
        #[test]
        fn nothing_that_a_terminal_obeys_is_left(text: String) {
            let shown = visible(&text);
            prop_assert!(!shown.contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
        }
    }
}
