//! What was said: the file of golden words, and what differs from it.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::workload::Asked;

/// Agents that a report names at most.
const NAMED: usize = 10;

const WHAT_TO_DO: &str = "\
Tokens depend on model, weights mode, seed, sampling and history alone (docs/adr/0003). If you meant to change no \
numbers, this change has a fault: find it. If you did, bump NUMERICS_REVISION, write an ADR, tell users in CHANGELOG.md, \
and record the words anew as tests/golden/README.md says.";

/// A line of the file: one turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Words {
    /// The turn's name in the workload.
    pub turn: String,
    /// Digest of the line that asked for it.
    pub asked: String,
    /// Why generation ended, as `turnmill` says it.
    pub finish: String,
    /// Digest of the token ids, as 32-bit little-endian numbers.
    pub digest: String,
    /// The token ids, so that a difference can be located.
    pub tokens: Vec<u32>,
}

impl Words {
    /// What was said to `asked`.
    pub fn new(asked: &Asked, tokens: Vec<u32>, finish: &str) -> Self {
        Self {
            turn: asked.name.clone(),
            asked: digest(asked.text().as_bytes()),
            finish: finish.to_owned(),
            digest: digest_of(&tokens),
            tokens,
        }
    }

    fn agent(&self) -> &str {
        self.turn.split('.').next().unwrap_or_default()
    }

    /// How `said` differs from this turn; none if it does not.
    fn difference(&self, said: &Self) -> Option<String> {
        if (&self.digest, &self.finish) == (&said.digest, &said.finish) {
            return None;
        }
        let ends = |words: &Self| format!("{} tokens, {}", words.tokens.len(), words.finish);
        let (was, is) = (ends(self), ends(said));
        let same = self.tokens.iter().zip(&said.tokens).take_while(|(was, is)| was == is).count();
        let at = |tokens: &[u32]| tokens.get(same).map_or("the end".to_owned(), u32::to_string);
        let (token_was, token_is) = (at(&self.tokens), at(&said.tokens));
        Some(format!("{}: token {same} was {token_was}, is {token_is} (was {was}; is {is})", self.turn))
    }
}

/// Where the words of record are kept.
pub fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/words.jsonl")
}

/// The words of record. Panics if the file cannot be read.
pub fn recorded() -> Vec<Words> {
    let text = std::fs::read_to_string(path()).expect("tests/golden/words.jsonl is in every checkout");
    text.lines().map(|line| serde_json::from_str(line).expect("each line is a turn")).collect()
}

/// Makes `said` the words of record.
pub fn record(said: &[Words]) {
    let line = |words| serde_json::to_string(words).expect("words are JSON") + "\n";
    let text: String = said.iter().map(line).collect();
    std::fs::write(path(), text).expect("tests/golden can be written");
}

/// Whether `said` is what was recorded. The error says what differs and what to do.
///
/// Once a turn differs, its agent goes on with another history. So only the first difference of each agent is told.
pub fn compare(recorded: &[Words], said: &[Words]) -> Result<(), String> {
    let asked = |all: &[Words]| -> Vec<_> { all.iter().map(|w| (w.turn.clone(), w.asked.clone())).collect() };
    if asked(recorded) != asked(said) {
        let reason = "the workload is not the one that words were recorded for";
        return Err(format!("{reason}: undo the change of tests/src/golden, or of the dice that it uses"));
    }
    let pairs = recorded.iter().zip(said);
    let differ: Vec<_> = pairs.filter_map(|(was, is)| Some((was.agent(), was.difference(is)?))).collect();
    if differ.is_empty() {
        return Ok(());
    }
    let mut agents = BTreeSet::new();
    let first: Vec<_> = differ.iter().filter(|(agent, _)| agents.insert(*agent)).collect();
    let mut report = format!(
        "{} of {} turns, of {} agents, differ from the golden words. The first of each agent:\n",
        differ.len(),
        said.len(),
        first.len()
    );
    for (_, difference) in first.iter().take(NAMED) {
        let _ = writeln!(report, "  {difference}");
    }
    if first.len() > NAMED {
        let _ = writeln!(report, "  and {} more", first.len() - NAMED);
    }
    Err(report + WHAT_TO_DO)
}

fn digest_of(tokens: &[u32]) -> String {
    digest(&tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>())
}

/// The first 64 bits of BLAKE3: chance has to be ruled out here, not malice.
fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::turns;

    #[test]
    fn the_file_fits_the_workload_and_its_own_digests() {
        let asked = turns();
        let recorded = recorded();
        let again =
            asked.iter().zip(&recorded).map(|(a, was)| Words::new(a, was.tokens.clone(), &was.finish));
        assert_eq!(again.collect::<Vec<_>>(), recorded);
        assert_eq!(asked.len(), 300);
    }

    #[test]
    fn the_first_difference_of_each_agent_is_told() {
        let recorded = recorded();
        let changed = |change: &dyn Fn(&mut Words)| {
            let mut said = recorded.clone();
            said.iter_mut().for_each(change);
            compare(&recorded, &said)
        };
        assert_eq!(changed(&|_| ()), Ok(()));
        let report = changed(&|words| {
            if words.turn == "a04.2" || words.turn == "a04.5" {
                words.tokens[3] += 1;
                words.digest = digest_of(&words.tokens);
            }
            if words.turn == "a07.0" {
                words.tokens.pop();
                words.digest = digest_of(&words.tokens);
            }
        });
        let report = report.expect_err("three turns differ");
        assert!(report.starts_with("3 of 300 turns, of 2 agents,"), "{report}");
        assert!(report.contains("a04.2: token 3 was ") && !report.contains("a04.5"), "{report}");
        assert!(report.contains("is the end (was "), "{report}");
        let other = changed(&|words| words.asked.push('0')).expect_err("asked otherwise");
        assert!(other.contains("workload"), "{other}");
    }
}
