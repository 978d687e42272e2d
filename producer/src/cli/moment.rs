//! A moment as people and programs write it.

use std::str::FromStr;

use jiff::Timestamp;
use serde::Deserialize;

/// A moment since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "serde_json::Value")]
pub struct Moment {
    /// In Unix milliseconds.
    pub unix_ms: u64,
}

impl FromStr for Moment {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let invalid =
            || format!("{s:?} is not a time; give RFC 3339, as 2026-01-31T18:00:00Z, or Unix seconds");
        let unix_ms = match s.parse::<u64>() {
            Ok(seconds) => seconds.checked_mul(1000).ok_or_else(invalid)?,
            Err(_) => {
                let moment: Timestamp = s.parse().map_err(|_| invalid())?;
                u64::try_from(moment.as_millisecond()).map_err(|_| invalid())?
            }
        };
        Ok(Self { unix_ms })
    }
}

impl TryFrom<serde_json::Value> for Moment {
    type Error = String;
    fn try_from(value: serde_json::Value) -> Result<Self, String> {
        match value {
            serde_json::Value::String(text) => text.parse(),
            other => other.to_string().parse(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        for text in ["2023-11-14T22:13:20Z", "2023-11-14T23:13:20+01:00", "1700000000"] {
            assert_eq!(text.parse(), Ok(Moment { unix_ms: 1_700_000_000_000 }), "{text}");
        }
        for bad in ["", "tomorrow", "2023-11-14", "-5", "1969-01-01T00:00:00Z", "99999999999999999999"] {
            assert!(bad.parse::<Moment>().is_err(), "{bad}");
        }
        assert_eq!(serde_json::from_str("1700000000").ok(), Some(Moment { unix_ms: 1_700_000_000_000 }));
    }
}
