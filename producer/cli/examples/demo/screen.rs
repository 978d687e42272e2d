//! Several replies on one terminal at once, without garbling: whole lines are printed under the speaker's name,
//! and on a terminal each unfinished line is shown, as it grows, below them all.

use std::io::{self, IsTerminal};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Characters of text in a line; with the name it fits 80 columns.
const LINE_CHARS: usize = 70;
/// ANSI colours of the speakers, in order: cyan, yellow, magenta.
const COLOURS: [u8; 3] = [36, 33, 35];

/// Where the agents speak.
pub struct Screen {
    /// None where output is not a terminal.
    live: Option<MultiProgress>,
    colours: bool,
    voices: std::cell::Cell<usize>,
}

impl Screen {
    /// Standard output.
    pub fn new() -> Self {
        let terminal = io::stdout().is_terminal();
        let live = terminal.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stdout()));
        let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { live, colours, voices: std::cell::Cell::new(0) }
    }

    /// The next speaker's voice.
    pub fn voice(&self, name: &str) -> Voice {
        let index = self.voices.replace(self.voices.get() + 1);
        let colour = COLOURS[index % COLOURS.len()];
        let prefix = format!("{name:>7}");
        let prefix = if self.colours { format!("\x1b[{colour}m{prefix}\x1b[0m") } else { prefix };
        let live = self.live.clone().map(|screen| {
            let bar = screen.add(ProgressBar::no_length().with_style(style()).with_prefix(prefix.clone()));
            (screen, bar)
        });
        Voice { prefix, live, line: String::new() }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix} │ {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// One agent's voice.
pub struct Voice {
    prefix: String,
    live: Option<(MultiProgress, ProgressBar)>,
    /// The unfinished line.
    line: String,
}

impl Voice {
    /// Prints what the agent is asked.
    pub fn asked(&mut self, question: &str) {
        self.print(&format!("> {question}"));
    }

    /// Says a piece of the reply.
    pub fn speak(&mut self, text: &str) {
        self.line.push_str(&visible(text));
        while let Some(line) = take_line(&mut self.line) {
            self.print(&line);
        }
        if let Some((_, bar)) = &self.live {
            bar.set_message(self.line.clone());
        }
    }

    /// Prints what is left of the reply.
    pub fn finish(&mut self) {
        let line = std::mem::take(&mut self.line);
        if !line.trim().is_empty() {
            self.print(line.trim());
        }
        if let Some((_, bar)) = &self.live {
            bar.set_message("");
        }
    }

    /// Output that cannot be written is no reason to stop a turn.
    fn print(&self, line: &str) {
        let line = format!("{} │ {line}", self.prefix);
        match &self.live {
            Some((screen, _)) => screen.println(line).unwrap_or_default(),
            None => println!("{line}"),
        }
    }
}

impl Drop for Voice {
    fn drop(&mut self) {
        if let Some((_, bar)) = &self.live {
            bar.finish_and_clear();
        }
    }
}

/// The text with its control characters, but for line breaks, in the form `\u{1b}`. What a model says may clear the screen or
/// answer for the person at the terminal, which obeys such characters: so they are shown, not sent.
pub fn visible(text: &str) -> String {
    let shown = |c: char| match c {
        c if c.is_control() && c != '\n' => c.escape_unicode().to_string(),
        c => c.to_string(),
    };
    text.chars().map(shown).collect()
}

/// Takes the first whole line off `text`: up to a line break, or as many words as fit. Blank lines are dropped.
fn take_line(text: &mut String) -> Option<String> {
    loop {
        let fits = text.char_indices().nth(LINE_CHARS).map_or(text.len(), |(index, _)| index);
        let (end, next) = match text[..fits].find('\n') {
            Some(end) => (end, end + 1),
            None if fits == text.len() => return None,
            // A word longer than the line is cut.
            None => text[..fits].rfind(' ').map_or((fits, fits), |end| (end, end + 1)),
        };
        let line = text[..end].trim().to_owned();
        text.drain(..next);
        if !line.is_empty() {
            return Some(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> (Vec<String>, String) {
        let mut text = text.to_owned();
        let lines = std::iter::from_fn(|| take_line(&mut text)).collect();
        (lines, text)
    }

    #[test]
    fn lines_end_at_breaks_and_between_words() {
        assert_eq!(lines("one\n\n two\nthr"), (vec!["one".into(), "two".into()], "thr".into()));
        let (taken, rest) = lines(&"word ".repeat(20));
        assert_eq!(taken, ["word ".repeat(14).trim()]);
        assert_eq!(rest, "word ".repeat(6));
    }

    #[test]
    fn nothing_that_a_terminal_obeys_is_spoken() {
        let mut voice = Voice { prefix: String::new(), live: None, line: String::new() };
        voice.speak("wei\u{df}\x1b[2J\x1b]0;owned\x07\u{9b}6n\r");
        assert_eq!(voice.line, "wei\u{df}\\u{1b}[2J\\u{1b}]0;owned\\u{7}\\u{9b}6n\\u{d}");
        assert_eq!(visible("two\nlines"), "two\nlines");
    }

    #[test]
    fn a_word_longer_than_a_line_is_cut_between_characters() {
        let (taken, rest) = lines(&"ü".repeat(LINE_CHARS + 1));
        assert_eq!((taken, rest), (vec!["ü".repeat(LINE_CHARS)], "ü".into()));
    }
}
