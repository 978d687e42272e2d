//! The id of an entry of a stream. In a result stream it is `<epoch>-<tokens published so far>`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where an entry stands in a stream. Ids grow along the stream; in a result stream across attempts too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StreamId {
    /// In a result stream the attempt's epoch; elsewhere when the entry was made, in Unix milliseconds by Redis's clock.
    pub epoch: u64,
    /// In a result stream tokens of the reply published once this entry is; elsewhere a count.
    pub sequence: u64,
}

/// The text is not a stream id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a stream id; one looks like 1700000000000-5")]
pub struct InvalidStreamId(String);

impl StreamId {
    /// Before every entry.
    pub const START: Self = Self { epoch: 0, sequence: 0 };
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.sequence)
    }
}

impl FromStr for StreamId {
    type Err = InvalidStreamId;
    fn from_str(s: &str) -> Result<Self, InvalidStreamId> {
        let invalid = || InvalidStreamId(s.chars().take(64).collect());
        let (epoch, sequence) = s.split_once('-').unwrap_or((s, "0"));
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if !digits(epoch) || !digits(sequence) {
            return Err(invalid());
        }
        Ok(Self {
            epoch: epoch.parse().map_err(|_| invalid())?,
            sequence: sequence.parse().map_err(|_| invalid())?,
        })
    }
}

impl TryFrom<String> for StreamId {
    type Error = InvalidStreamId;
    fn try_from(s: String) -> Result<Self, InvalidStreamId> {
        s.parse()
    }
}

impl From<StreamId> for String {
    fn from(id: StreamId) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_sort_as_redis_sorts_them() {
        let id: StreamId = "1700000000000-5".parse().expect("valid");
        assert_eq!(id.to_string(), "1700000000000-5");
        assert_eq!("7".parse(), Ok(StreamId { epoch: 7, sequence: 0 }));
        assert!(StreamId { epoch: 9, sequence: 99 } < StreamId { epoch: 10, sequence: 0 });
        assert!(StreamId { epoch: 9, sequence: 9 } < StreamId { epoch: 9, sequence: 10 });
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in ["", "-", "1-", "-1", "+1-0", "1-2-3", "$", "99999999999999999999-0", "a-b"] {
            assert!(bad.parse::<StreamId>().is_err(), "{bad:?}");
        }
    }
}
