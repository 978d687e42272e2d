//! The exact history of an agent: one entry a completed turn. Data, not cache.
//!
//! Invariant: folding the entries in order gives the token ids that the model saw and made, so that the next
//! prompt starts with them and their KV blocks are found again.

use serde::{Deserialize, Serialize};

use crate::ids::TurnId;
use crate::turn::Message;

/// What one completed turn adds to its agent's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TranscriptEntry {
    /// The turn.
    pub turn: TurnId,
    /// Its new messages and the reply.
    pub messages: Vec<Message>,
    /// How many tokens of the history so far stay; below its length only where a template rewrote old turns
    /// and the history was tokenised again.
    pub keep: u32,
    /// Token ids that follow those kept.
    pub tokens: Vec<u32>,
}

/// An agent's conversation so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// All messages, oldest first.
    pub messages: Vec<Message>,
    /// All token ids.
    pub tokens: Vec<u32>,
}

impl FromIterator<TranscriptEntry> for History {
    fn from_iter<I: IntoIterator<Item = TranscriptEntry>>(entries: I) -> Self {
        let mut history = Self::default();
        for entry in entries {
            history.messages.extend(entry.messages);
            history.tokens.truncate(entry.keep as usize);
            history.tokens.extend(entry.tokens);
        }
        history
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::Role;

    fn entry(keep: u32, tokens: &[u32], content: &str) -> TranscriptEntry {
        let messages = vec![Message::new(Role::User, content)];
        TranscriptEntry { turn: TurnId::new(0), messages, keep, tokens: tokens.to_vec() }
    }

    #[test]
    fn entries_append_and_a_retokenised_one_replaces() {
        let history: History =
            [entry(0, &[1, 2], "a"), entry(2, &[3], "b"), entry(1, &[9, 9], "c")].into_iter().collect();
        assert_eq!(history.tokens, [1, 9, 9]);
        assert_eq!(history.messages.len(), 3);
    }
}
