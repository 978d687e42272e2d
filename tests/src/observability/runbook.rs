//! The runbook: an entry an alert, in Markdown.
//!
//! An entry is a heading of the third level and what follows it. Commands stand in indented blocks.

use super::read;

/// Where it is.
pub const FILE: &str = "docs/RUNBOOK.md";

/// What an entry has to say, in its order.
pub const PARTS: [&str; 5] =
    ["**Meaning.**", "**First look.**", "**Likely causes.**", "**Commands.**", "**Done when**"];

/// What an alert means, and what to do.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its heading.
    pub title: String,
    /// What follows.
    pub body: String,
}

impl Entry {
    /// What a link to it ends with, as GitHub makes it of the heading.
    pub fn anchor(&self) -> String {
        let kept = |c: char| c.is_alphanumeric() || c == '-' || c == '_' || c == ' ';
        self.title
            .to_lowercase()
            .chars()
            .filter(|c| kept(*c))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    }
}

/// The entries of a runbook.
pub fn entries(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("### ") {
            open = true;
            entries.push(Entry { title: title.trim().to_owned(), body: String::new() });
        } else if line.starts_with("# ") || line.starts_with("## ") {
            open = false;
        } else if let Some(entry) = entries.last_mut().filter(|_| open) {
            entry.body += line;
            entry.body.push('\n');
        }
    }
    entries
}

/// The one in the repository.
pub fn load() -> String {
    read(FILE)
}

/// Words of a text that look like a metric of ours: recorded series too.
pub fn metrics(text: &str) -> Vec<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c| !is_part(c));
    let ours = |word: &&str| {
        word.starts_with("turnmill_") || word.starts_with("process_") || word.contains(":turnmill_")
    };
    words.map(|word| word.trim_end_matches(':')).filter(ours).collect()
}

/// A command of ours: the program and the words that choose what it does, and its flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// `turnmill` or `turnmill-worker`.
    pub program: String,
    /// As `dead ls`: lower-case words up to the first that is something else.
    pub words: Vec<String>,
    /// As `--reason`.
    pub flags: Vec<String>,
}

/// Commands of ours in the blocks of a text.
pub fn commands(text: &str) -> Vec<Command> {
    let block = text.lines().filter_map(|line| line.strip_prefix("    "));
    block.filter_map(command).collect()
}

fn command(line: &str) -> Option<Command> {
    let line = line.split(" #").next()?;
    let mut words = line.split_whitespace();
    let program = words.next().filter(|word| ["turnmill", "turnmill-worker"].contains(word))?.to_owned();
    let words: Vec<&str> = words.collect();
    let chooses =
        |word: &&&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-');
    Some(Command {
        program,
        words: words.iter().take_while(chooses).map(ToString::to_string).collect(),
        flags: words.iter().filter(|word| word.starts_with('-')).map(ToString::to_string).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Runbook\n\nBefore.\n\n    turnmill lag\n\n## Critical\n\n### One Thing\n\n**Meaning.** `turnmill_a_total` grows.\n\n\
        \x20   turnmill dead replay --reason attempts TURN   # not --this\n    curl http://WORKER/metrics\n\n## Next\n\nBetween.\n\n### Other\n\nB.\n";

    #[test]
    fn an_entry_ends_where_the_next_heading_begins() {
        let entries = entries(TEXT);
        let titles: Vec<&str> = entries.iter().map(|entry| entry.title.as_str()).collect();
        assert_eq!(titles, ["One Thing", "Other"]);
        assert_eq!(entries[0].anchor(), "one-thing");
        assert!(entries[0].body.contains("grows") && !entries[0].body.contains("Between"));
    }

    #[test]
    fn metrics_are_found_in_any_text() {
        let text = "`turnmill_a_total{outcome}` and turnmill_b_seconds_count, queue:turnmill_c:max; turnmill queue: turnmill";
        assert_eq!(metrics(text), ["turnmill_a_total", "turnmill_b_seconds_count", "queue:turnmill_c:max"]);
    }

    #[test]
    fn commands_are_told_with_their_flags_and_without_comments() {
        let found = commands(TEXT);
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].words, ["dead", "replay"]);
        assert_eq!(found[1].flags, ["--reason"]);
    }
}
