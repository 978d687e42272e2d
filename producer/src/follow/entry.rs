//! Entries of a result stream as events. Anybody may write there by mistake, and so may a newer version: an entry that cannot be read
//! is told and passed by. If it held tokens, the next delta or the End shows the gap.

use turnmill_redis::steps::ResultEntry;
use turnmill_schema::envelope::{self, EnvelopeError};
use turnmill_schema::{Event, StreamId, TurnId};

/// What an entry says.
pub(crate) fn event_of(entry: &ResultEntry) -> Result<Event, EnvelopeError> {
    envelope::decode(&entry.event)
}

/// Counts the entries of one turn that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PassedBy(u64);

impl PassedBy {
    /// Counts one, and says so.
    pub(crate) fn note(&mut self, turn: TurnId, entry: StreamId, reason: &EnvelopeError) {
        self.0 += 1;
        let passed_by = self.0;
        tracing::warn!(%turn, %entry, %reason, passed_by, "an entry of a result is not of this version; it is passed over");
    }
}

/// Entries that are not ours, for tests.
#[cfg(test)]
pub(crate) fn foreign(id: StreamId) -> Vec<ResultEntry> {
    let newer = serde_json::json!({"kind": "paused", "epoch": 7});
    let newer = envelope::encode(&newer).expect("encodes");
    // Without the field, of another version, not MessagePack, and an event that this version does not know.
    let events = [vec![], vec![2, 0x80], vec![1, 0xc1], newer];
    events.map(|event| ResultEntry { id: id.to_string(), event, at_ms: None }).into()
}
