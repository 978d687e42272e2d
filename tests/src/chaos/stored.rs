//! What Redis holds of a queue, as plain values that the audit judges.

use std::collections::BTreeMap;

use turnmill_schema::{AgentId, Begin, End, Event, Manifest, TranscriptEntry, TurnId};

use super::ledger::Words;

/// A whole queue.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// Everything that has a turn's key.
    pub turns: BTreeMap<TurnId, StoredTurn>,
    /// Everything that has an agent's key.
    pub agents: BTreeMap<AgentId, StoredAgent>,
}

/// A turn's hash and result stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredTurn {
    /// Of its hash; none where the hash is gone.
    pub state: Option<String>,
    /// Of its hash, once it ended.
    pub outcome: Option<String>,
    /// Its result stream.
    pub entries: Vec<Entry>,
}

/// An entry of a result stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The first half of its id.
    pub epoch: u64,
    /// What it says.
    pub event: Event,
}

/// What an agent has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredAgent {
    /// Fields of its hash.
    pub state: Option<String>,
    /// The worker that holds it.
    pub owner: Option<String>,
    /// Its entry in a ready stream.
    pub ticket: Option<String>,
    /// How many turns wait.
    pub backlog: usize,
    /// Its history.
    pub transcript: Vec<TranscriptEntry>,
    /// What the object store has of its K and V.
    pub manifest: Option<Manifest>,
}

impl StoredTurn {
    /// Its attempts.
    pub fn begins(&self) -> impl Iterator<Item = &Begin> {
        self.entries
            .iter()
            .filter_map(|entry| if let Event::Begin(begin) = &entry.event { Some(begin) } else { None })
    }

    /// Its End, and the epoch of that entry.
    pub fn end(&self) -> Option<(u64, &End)> {
        self.entries.iter().find_map(|entry| match &entry.event {
            Event::End(end) => Some((entry.epoch, end)),
            _ => None,
        })
    }

    /// What a reader gets, who drops the tokens it has and stops at the End.
    pub fn words(&self) -> Words {
        let mut words = Words::default();
        for Entry { event, .. } in &self.entries {
            match event {
                Event::Delta(delta) => {
                    let read = words.tokens.len();
                    let new = delta.clone().beyond(read as u32).ok().flatten();
                    if let Some(new) = new.filter(|new| new.index as usize == read) {
                        words.tokens.extend(new.tokens);
                        words.text.push_str(&new.text);
                    }
                }
                Event::Begin(_) => {}
                Event::End(_) => break,
            }
        }
        words
    }
}
