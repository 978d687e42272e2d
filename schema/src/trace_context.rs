//! W3C trace context: where a turn stands in a trace that began before it, and which ids its own spans have.
//!
//! Invariants: a value of these types is what the W3C recommendation allows, in one spelling; the ids of an attempt's span
//! are a function of turn and epoch, so that the next worker to lease the turn knows the span of the attempt before without
//! having been told. `docs/adr/0018` says why.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::TurnId;

/// Longest `tracestate` that is carried, in bytes: what the recommendation asks everybody to carry.
pub const MAX_TRACESTATE_BYTES: usize = 512;
/// Most entries of a `tracestate`.
const MAX_MEMBERS: usize = 32;
/// The flag of a span that is recorded.
const SAMPLED: u8 = 1;

/// The span that a turn was enqueued in: `00-<trace>-<span>-<flags>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TraceParent {
    trace: [u8; 16],
    span: [u8; 8],
    flags: u8,
}

/// The text is not a `traceparent`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a traceparent; one looks like 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01, in lower case"
)]
pub struct InvalidTraceParent(String);

impl TraceParent {
    /// The context of a span; none where an id is all zeros.
    pub fn new(trace: [u8; 16], span: [u8; 8], sampled: bool) -> Option<Self> {
        let valid = trace != [0; 16] && span != [0; 8];
        valid.then_some(Self { trace, span, flags: if sampled { SAMPLED } else { 0 } })
    }

    /// The trace's id.
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace
    }

    /// The span's id.
    pub fn span_id(&self) -> [u8; 8] {
        self.span
    }

    /// Whether the caller records its span.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

impl FromStr for TraceParent {
    type Err = InvalidTraceParent;
    fn from_str(s: &str) -> Result<Self, InvalidTraceParent> {
        read(s).ok_or_else(|| InvalidTraceParent(s.chars().take(64).collect()))
    }
}

/// Versions after 00 begin with the same four fields.
fn read(s: &str) -> Option<TraceParent> {
    let mut fields = s.split('-');
    let [version] = hex(fields.next()?)?;
    let (trace, span, [flags]) = (hex(fields.next()?)?, hex(fields.next()?)?, hex(fields.next()?)?);
    let known = version != 0xff && (version != 0 || fields.next().is_none());
    known.then(|| TraceParent::new(trace, span, flags & SAMPLED != 0)).flatten()
}

fn hex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let digits = digits.as_bytes();
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = |f: &mut fmt::Formatter<'_>, bytes: &[u8]| {
            bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        };
        f.write_str("00-")?;
        digits(f, &self.trace)?;
        f.write_str("-")?;
        digits(f, &self.span)?;
        write!(f, "-{:02x}", self.flags)
    }
}

impl TryFrom<String> for TraceParent {
    type Error = InvalidTraceParent;
    fn try_from(s: String) -> Result<Self, InvalidTraceParent> {
        s.parse()
    }
}

impl From<TraceParent> for String {
    fn from(parent: TraceParent) -> String {
        parent.to_string()
    }
}

/// What other tracing systems want carried along: `key=value` members, separated by commas.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TraceState(String);

/// The text is not a `tracestate`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a tracestate; it is at most 32 members key=value with commas between them, in {MAX_TRACESTATE_BYTES} \
     bytes of ASCII"
)]
pub struct InvalidTraceState(String);

impl TraceState {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TraceState {
    type Err = InvalidTraceState;
    fn from_str(s: &str) -> Result<Self, InvalidTraceState> {
        let members = || s.split(',').map(|member| member.trim_matches([' ', '\t']));
        let printable = s.bytes().all(|byte| (b' '..=b'~').contains(&byte) || byte == b'\t');
        let is_member = |member: &str| {
            member.is_empty()
                || member.split_once('=').is_some_and(|(key, value)| is_key(key) && is_value(value))
        };
        let fits = s.len() <= MAX_TRACESTATE_BYTES && members().count() <= MAX_MEMBERS;
        match fits && printable && members().all(is_member) && members().any(|member| !member.is_empty()) {
            true => Ok(Self(s.to_owned())),
            false => Err(InvalidTraceState(s.chars().take(64).collect())),
        }
    }
}

fn is_key(key: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/@".contains(&byte);
    let starts = key.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    starts && key.bytes().all(allowed)
}

fn is_value(value: &str) -> bool {
    !value.is_empty() && !value.contains('=')
}

impl TryFrom<String> for TraceState {
    type Error = InvalidTraceState;
    fn try_from(s: String) -> Result<Self, InvalidTraceState> {
        s.parse()
    }
}

impl From<TraceState> for String {
    fn from(state: TraceState) -> String {
        state.0
    }
}

/// The trace of a turn whose producer named none: the first 16 bytes of the BLAKE3 digest of its id's text, so that all
/// attempts are in one. (The id's own bytes would not do: samplers take a trace's low bits for random ones.)
pub fn trace_of(turn: TurnId) -> [u8; 16] {
    first(&turn.to_string())
}

/// The id of the span of the attempt that leased `turn` with `epoch`: the first 8 bytes of the BLAKE3 digest of
/// `<turn id>/<epoch>`.
pub fn span_of(turn: TurnId, epoch: u64) -> [u8; 8] {
    first(&format!("{turn}/{epoch}"))
}

fn first<const N: usize>(text: &str) -> [u8; N] {
    let digest = blake3::hash(text.as_bytes());
    let mut bytes = [0; N];
    bytes.copy_from_slice(&digest.as_bytes()[..N]);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_the_recommendation_allows_is_read_and_nothing_else() {
        let parent: TraceParent = GOOD.parse().expect("valid");
        assert_eq!((parent.to_string().as_str(), parent.is_sampled()), (GOOD, true));
        assert_eq!(parent.span_id(), [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
        assert!(!GOOD.replace("-01", "-00").parse::<TraceParent>().expect("valid").is_sampled());
        let newer = format!("cc{}-more", &GOOD[2..]);
        assert_eq!(newer.parse(), Ok(parent), "a later version is read as far as it is known");
        let bad = [
            "",
            "00",
            "garbage",
            &GOOD[1..],
            &format!("{GOOD}-more"),
            &format!("ff{}", &GOOD[2..]),
            &GOOD.to_uppercase(),
            &GOOD.replace('-', "_"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ];
        for bad in bad {
            assert!(bad.parse::<TraceParent>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_tracestate_is_members_within_limits() {
        for good in ["a=1", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", "tenant@vendor=a b", "a=1, ,b=2"] {
            assert_eq!(good.parse::<TraceState>().expect(good).as_str(), good);
        }
        let long = format!("a={}", "x".repeat(MAX_TRACESTATE_BYTES));
        let many = vec!["a=1"; 33].join(",");
        for bad in ["", ",", "a", "A=1", "=1", "a=", "a=1=2", "a=\n", "a=ü", &long, &many] {
            assert!(bad.parse::<TraceState>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_follow_from_turn_and_epoch_alone() {
        let turn: TurnId = "01980000-0000-7000-8000-000000000000.0".parse().expect("a turn id");
        // Golden: workers of other versions have to find the same.
        assert_eq!(span_of(turn, 7), first("01980000-0000-7000-8000-000000000000.0/7"));
        assert_eq!(trace_of(turn), first("01980000-0000-7000-8000-000000000000.0"));
        assert_ne!(span_of(turn, 7), span_of(turn, 8));
        assert_ne!(span_of(turn, 7), span_of(TurnId::new(0), 7));
    }

    proptest! {
        #[test]
        fn every_context_round_trips(trace: [u8; 16], span: [u8; 8], sampled: bool) {
            prop_assume!(trace != [0; 16] && span != [0; 8]);
            let parent = TraceParent::new(trace, span, sampled).expect("not zeros");
            prop_assert_eq!(parent.to_string().parse(), Ok(parent));
            prop_assert_eq!((parent.trace_id(), parent.span_id(), parent.is_sampled()), (trace, span, sampled));
        }

        #[test]
        fn foreign_text_never_panics(text: String) {
            let _ = text.parse::<TraceParent>();
            let _ = text.parse::<TraceState>();
        }
    }
}
