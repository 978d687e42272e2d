//! What a producer calls the request that a turn belongs to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::TurnId;

/// Longest request id, in bytes.
pub const MAX_REQUEST_ID_BYTES: usize = 128;

/// A request's id, as logs and traces have it: 1 to 128 visible ASCII characters. Several turns may share one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RequestId(String);

/// The text is not a request id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a request id; it is 1 to {MAX_REQUEST_ID_BYTES} visible ASCII characters without blanks"
)]
pub struct InvalidRequestId(String);

impl RequestId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a turn goes by whose producer named no request.
impl From<TurnId> for RequestId {
    fn from(turn: TurnId) -> Self {
        Self(turn.to_string())
    }
}

impl FromStr for RequestId {
    type Err = InvalidRequestId;
    fn from_str(s: &str) -> Result<Self, InvalidRequestId> {
        let fits = (1..=MAX_REQUEST_ID_BYTES).contains(&s.len());
        match fits && s.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Self(s.to_owned())),
            false => Err(InvalidRequestId(s.chars().take(64).collect())),
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for RequestId {
    type Error = InvalidRequestId;
    fn try_from(s: String) -> Result<Self, InvalidRequestId> {
        s.parse()
    }
}

impl From<RequestId> for String {
    fn from(id: RequestId) -> String {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_gateways_pass_and_what_would_break_a_log_line_does_not() {
        let turn = TurnId::new(3);
        for good in ["7f3d1c", "Root=1-67891233-abcdef012345678912345678", "a/b:c", &turn.to_string()] {
            assert_eq!(good.parse::<RequestId>().expect(good).as_str(), good);
        }
        assert_eq!(RequestId::from(turn).as_str().parse(), Ok(RequestId::from(turn)));
        for bad in ["", "a b", "a\nb", "ä", &"x".repeat(129)] {
            assert!(bad.parse::<RequestId>().is_err(), "{bad:?}");
        }
    }
}
