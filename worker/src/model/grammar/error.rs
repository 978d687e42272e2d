//! What can be wrong with a grammar, or with following one.

/// Longest part of llguidance's own words in a sentence, in characters.
const QUOTED: usize = 200;

/// What llguidance says if a oneOf is not just an anyOf. It goes on about an option of its own.
const OVERLAPPING: &str = "oneOf constraints are not supported";

/// Why a turn cannot be constrained. The variants answer one question: reject the turn, or fail this attempt at it?
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrammarError {
    /// The turn can never run as it is: its grammar is wrong, too large, or cannot be followed.
    #[error("{0}")]
    Rejected(String),
    /// The worker's own fault: another attempt may succeed.
    #[error("{0}")]
    Failed(String),
}

impl GrammarError {
    /// Whether every attempt would come to this, so that the turn is to be rejected.
    pub fn is_turns_fault(&self) -> bool {
        matches!(self, Self::Rejected(_))
    }

    /// A rejection with llguidance's first line, which names the place; the lines after it quote the source.
    pub(super) fn refused(error: &dyn std::fmt::Display) -> Self {
        let reason = error.to_string();
        if reason.starts_with("panic") {
            return Self::Failed("the grammar could not be compiled: its compiler failed".to_owned());
        }
        let line = reason.lines().next().unwrap_or_default();
        if line.contains(OVERLAPPING) {
            return Self::Rejected(
                "the JSON schema has a oneOf whose alternatives may fit the same JSON, which is not supported; use anyOf, or let a property \
                 with another const in each tell them apart"
                    .to_owned(),
            );
        }
        let line: String = line.chars().take(QUOTED).collect();
        Self::Rejected(format!("the grammar cannot be used: {line}; correct it"))
    }
}

/// A rejection in the words of `sentence`.
pub(super) fn rejected<T>(sentence: impl Into<String>) -> Result<T, GrammarError> {
    Err(GrammarError::Rejected(sentence.into()))
}
