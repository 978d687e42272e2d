//! Times as people and programs write them: moments, and durations in seconds.
//!
//! Invariant: both are bounded, since what is beyond the bounds is a mistake in the unit.

use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use turnmill_client::schema::END_OF_TIME_MS;

/// A moment from 1970 to 2199.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "serde_json::Value")]
pub struct Moment {
    /// In Unix milliseconds.
    pub unix_ms: u64,
}

/// A whole number of seconds, at most [`Seconds::MOST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "serde_json::Value")]
pub struct Seconds(u64);

impl Seconds {
    /// Ten years.
    pub const MOST: u64 = 10 * 366 * 24 * 3600;

    /// As a duration.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl FromStr for Seconds {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let seconds = s.parse().ok().filter(|seconds| *seconds <= Self::MOST);
        let wrong = || format!("{s} is not a whole number of seconds from 0 to {} (ten years)", Self::MOST);
        seconds.map(Self).ok_or_else(wrong)
    }
}

impl TryFrom<serde_json::Value> for Seconds {
    type Error = String;
    fn try_from(value: serde_json::Value) -> Result<Self, String> {
        value.to_string().parse()
    }
}

impl FromStr for Moment {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let invalid =
            || format!("{s:?} is not a time; give RFC 3339, as 2026-01-31T18:00:00Z, or Unix seconds");
        let unix_ms = match s.parse::<u64>() {
            Ok(seconds) => seconds.saturating_mul(1000),
            Err(_) => {
                let moment: Timestamp = s.parse().map_err(|_| invalid())?;
                u64::try_from(moment.as_millisecond()).map_err(|_| invalid())?
            }
        };
        match unix_ms {
            0..END_OF_TIME_MS => Ok(Self { unix_ms }),
            _ => Err(format!("{s} is after the year 2199; give Unix seconds, not milliseconds, or RFC 3339")),
        }
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
    use proptest::prelude::*;

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

    #[test]
    fn milliseconds_are_not_taken_for_seconds() {
        let error = "1700000000000".parse::<Moment>().expect_err("the year 55840");
        assert!(error.contains("give Unix seconds, not milliseconds"), "{error}");
        assert!("2200-01-01T00:00:00Z".parse::<Moment>().is_err());
        assert!("2199-12-31T23:59:59Z".parse::<Moment>().is_ok());
    }

    proptest! {
        #[test]
        fn whatever_is_taken_is_within_bounds(number: u64, text in "-?[0-9]{1,24}(\\.[0-9]{1,3})?") {
            for text in [number.to_string(), text] {
                prop_assert!(text.parse::<Moment>().map_or(true, |moment| moment.unix_ms < END_OF_TIME_MS));
                prop_assert!(text.parse::<Seconds>().map_or(true, |seconds| seconds.0 <= Seconds::MOST));
            }
        }
    }
}
