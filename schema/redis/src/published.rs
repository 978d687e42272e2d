//! How many tokens of a reply are published. The id of each entry of ours says it; those of others' entries, which may stand
//! above it, say nothing.

use redis::Cmd;
use redis::streams::{StreamId as RawEntry, StreamRangeReply};
use turnmill_schema::keys::FIELD_EVENT;
use turnmill_schema::{Event, StreamId, envelope};

/// Entries that are looked at. With more of others' above ours it is unknown how many tokens there are: looking at a turn costs
/// Redis little, whatever was written there.
const NEWEST: usize = 4;

/// The command whose answer [`of`] reads.
pub(crate) fn command(result: String) -> Cmd {
    let mut command = redis::cmd("XREVRANGE");
    command.arg(result).arg("+").arg("-").arg("COUNT").arg(NEWEST);
    command
}

/// Tokens published with the newest entry of ours; none if there is no such entry.
pub(crate) fn of(newest: &StreamRangeReply) -> Option<u64> {
    let ours = newest.ids.iter().find(|entry| is_ours(entry))?;
    ours.id.parse::<StreamId>().ok().map(|id| id.sequence)
}

fn is_ours(entry: &RawEntry) -> bool {
    let event: Option<Vec<u8>> = entry.get(FIELD_EVENT);
    event.is_some_and(|event| envelope::decode::<Event>(&event).is_ok())
}

/// An entry as Redis answers it, for tests: ours, or somebody else's.
#[cfg(test)]
pub(crate) fn entry(id: &str, is_ours: bool) -> redis::Value {
    use redis::Value;
    use turnmill_schema::{Begin, Delta};

    let text = |bytes: &[u8]| Value::BulkString(bytes.to_vec());
    let event = match id.ends_with("-0") {
        true => Event::Begin(Begin { epoch: 1, resume_from: 0, attempt: 1, worker: "w".into() }),
        false => Event::Delta(Delta::default()),
    };
    let ours = envelope::encode(&event).expect("encodes");
    let newer = envelope::encode(&serde_json::json!({"kind": "paused"})).expect("encodes");
    let event = if is_ours { ours } else { newer };
    Value::Array(vec![text(id.as_bytes()), Value::Array(vec![text(FIELD_EVENT.as_bytes()), text(&event)])])
}

#[cfg(test)]
mod tests {
    use redis::{FromRedisValue, Value};

    use super::*;

    #[test]
    fn only_entries_of_ours_count() {
        let ours = |id| entry(id, true);
        let foreign = |id| entry(id, false);
        for (newest, published) in [
            (vec![], None),
            (vec![ours("7-0")], Some(0)),
            (vec![ours("7-42"), ours("7-40")], Some(42)),
            (vec![foreign("9-0"), ours("7-42")], Some(42)),
            (vec![foreign("9-99"), foreign("8-98"), ours("7-0")], Some(0)),
            (vec![foreign("9-99")], None),
            (vec![ours("nonsense")], None),
        ] {
            let reply = StreamRangeReply::from_redis_value(Value::Array(newest)).expect("an answer");
            assert_eq!(of(&reply), published, "{reply:?}");
        }
    }
}
