//! Entries of a result stream as events.

use turnmill_redis::steps::ResultEntry;
use turnmill_schema::Event;
#[cfg(test)]
use turnmill_schema::StreamId;
use turnmill_schema::envelope::{self, EnvelopeError};

/// What an entry says; an error if it is not ours (see [`crate::passed_by`]).
pub(super) fn event_of(entry: &ResultEntry) -> Result<Event, EnvelopeError> {
    envelope::decode(&entry.event)
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
