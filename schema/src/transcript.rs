//! The exact history of an agent: one entry a completed turn. Data, not cache.
//!
//! Invariant: folding the entries in order gives the token ids that the model saw and made, so that the next
//! prompt starts with them and their KV blocks are found again.

use serde::{Deserialize, Serialize};

use crate::ids::TurnId;
use crate::message::Message;

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
    /// What besides messages the chat template was given: tools and arguments, as [`crate::Turn::rendering`] has it; none: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rendering: Option<String>,
}

/// An entry as a worker stores it: with a mark, unlike that of any other attempt at its turn.
///
/// A turn completes twice if a server loses what it wrote the first time, and need not say the same then. By turn and mark a worker
/// that knows a history up to this entry can tell whether that is still the agent's.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MarkedEntry<'a> {
    turn: &'a TurnId,
    mark: u64,
    messages: &'a [Message],
    keep: u32,
    tokens: &'a [u32],
    #[serde(skip_serializing_if = "Option::is_none")]
    rendering: Option<&'a str>,
}

impl<'a> MarkedEntry<'a> {
    /// Turn and mark are among the first bytes of the entry in its envelope, as many as these.
    pub const START_BYTES: usize = 72;

    /// The entry with the mark of the attempt that made it.
    pub fn new(entry: &'a TranscriptEntry, mark: u64) -> Self {
        let TranscriptEntry { turn, messages, keep, tokens, rendering } = entry;
        Self { turn, mark, messages, keep: *keep, tokens, rendering: rendering.as_deref() }
    }
}

/// An agent's conversation so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// All messages, oldest first.
    pub messages: Vec<Message>,
    /// All token ids.
    pub tokens: Vec<u32>,
    /// Its first turn, whose time is the conversation's.
    pub first: Option<TurnId>,
    /// What the template was given for the newest turn: [`TranscriptEntry::rendering`].
    pub rendering: Option<String>,
    /// Where turns end whose tokens are as they were made: how many messages and tokens there are up to there, both rising.
    pub ends: Vec<TurnEnd>,
}

/// Where a turn ends in a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnEnd {
    /// Messages up to its end.
    pub messages: usize,
    /// Tokens up to its end.
    pub tokens: usize,
}

impl FromIterator<TranscriptEntry> for History {
    fn from_iter<I: IntoIterator<Item = TranscriptEntry>>(entries: I) -> Self {
        let mut history = Self::default();
        history.extend(entries);
        history
    }
}

impl Extend<TranscriptEntry> for History {
    fn extend<I: IntoIterator<Item = TranscriptEntry>>(&mut self, entries: I) {
        for entry in entries {
            self.messages.extend(entry.messages);
            self.tokens.truncate(entry.keep as usize);
            self.ends.retain(|end| end.tokens <= entry.keep as usize);
            self.tokens.extend(entry.tokens);
            self.first.get_or_insert(entry.turn);
            self.rendering = entry.rendering;
            self.ends.push(TurnEnd { messages: self.messages.len(), tokens: self.tokens.len() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{decode, encode};
    use crate::message::Role;

    fn entry(keep: u32, tokens: &[u32], content: &str) -> TranscriptEntry {
        let messages = vec![Message::new(Role::User, content)];
        TranscriptEntry { turn: TurnId::new(0), messages, keep, tokens: tokens.to_vec(), rendering: None }
    }

    #[test]
    fn entries_append_and_a_retokenised_one_replaces() {
        let history: History =
            [entry(0, &[1, 2], "a"), entry(2, &[3], "b"), entry(1, &[9, 9], "c")].into_iter().collect();
        assert_eq!(history.tokens, [1, 9, 9]);
        assert_eq!(history.messages.len(), 3);
        // The second turn's end is gone with its token; the first turn's lies where the history was tokenised again.
        assert_eq!(history.ends, [TurnEnd { messages: 3, tokens: 3 }]);
        let appended: History = [entry(0, &[1, 2], "a"), entry(2, &[3], "b")].into_iter().collect();
        let ends = [TurnEnd { messages: 1, tokens: 2 }, TurnEnd { messages: 2, tokens: 3 }];
        assert_eq!(appended.ends, ends);
    }

    #[test]
    fn a_marked_entry_is_told_by_its_start() {
        for shard in [0, 9, u16::MAX] {
            let entry = TranscriptEntry { turn: TurnId::new(shard), ..entry(0, &[1; 50], "said") };
            let other = TranscriptEntry { turn: TurnId::new(shard), ..entry.clone() };
            let stored = |entry, mark| encode(&MarkedEntry::new(entry, mark)).expect("encodes");
            assert_eq!(decode(&stored(&entry, u64::MAX)), Ok(entry.clone()));
            let start = |entry, mark| stored(entry, mark)[..MarkedEntry::START_BYTES].to_vec();
            for (other, mark) in [(&entry, u64::MAX - 1), (&entry, 0), (&other, u64::MAX)] {
                assert_ne!(start(other, mark), start(&entry, u64::MAX));
            }
            let golden = [b"\x01\x85\xa4turn\xd9", &[entry.turn.to_string().len() as u8][..]].concat();
            assert_eq!(start(&entry, 1)[..golden.len()], golden, "enqueue.lua reads the turn from here");
        }
    }
}
