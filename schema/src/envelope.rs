//! The form in which turns, events and transcript entries are stored: one version byte, then MessagePack.
//!
//! Invariants: structs are maps with named fields, so other languages can read them and fields can be added;
//! a reader refuses versions it does not know, trailing bytes and anything over [`MAX_ENVELOPE_BYTES`], so
//! that foreign bytes become an error and never a half-read value. `docs/PROTOCOL.md` has the fields.

use std::io::Cursor;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::turn::Turn;

/// First byte of every envelope this build writes, and the only one it reads; a turn may also stand as a reference (see
/// [`crate::payload`]).
pub const VERSION: u8 = 1;
/// Largest turn that is stored in Redis, in bytes. A longer one goes by reference (see [`crate::payload`]).
pub const MAX_INLINE_BYTES: usize = 256 * 1024;
/// Largest envelope of any kind that is written or read, in bytes, and so the largest turn: far above a transcript
/// entry of a full context, far below what would hurt.
pub const MAX_ENVELOPE_BYTES: usize = 16 * 1024 * 1024;

/// Why stored bytes cannot be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// There is no byte at all: the value is missing.
    #[error("the envelope is empty; its key was deleted or never written")]
    Empty,
    /// Written by a newer or foreign producer.
    #[error("the envelope has version {version}; this build reads version {VERSION}, so upgrade the reader")]
    UnknownVersion {
        /// The first byte found.
        version: u8,
    },
    /// Over a size limit.
    #[error("the envelope has {bytes} bytes; at most {limit} are allowed, so send less text")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit it breaks.
        limit: usize,
    },
    /// The bytes are not what their reader expects.
    #[error("the envelope cannot be read: {reason}")]
    Malformed {
        /// The decoder's words.
        reason: String,
    },
    /// The value has no MessagePack form.
    #[error("the value cannot be encoded: {0}")]
    Encode(String),
}

/// Encodes `value` as version byte and MessagePack.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, EnvelopeError> {
    encode_as(VERSION, value, MAX_ENVELOPE_BYTES)
}

/// Encodes a turn that is to stand in Redis; refuses more than [`MAX_INLINE_BYTES`].
pub fn encode_turn(turn: &Turn) -> Result<Vec<u8>, EnvelopeError> {
    encode_as(VERSION, turn, MAX_INLINE_BYTES)
}

/// Decodes what [`encode`] wrote; every byte must belong to the value.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, EnvelopeError> {
    decode_as(VERSION, bytes)
}

/// Decodes what [`encode_as`] wrote under the same first byte.
pub(crate) fn decode_as<T: DeserializeOwned>(first: u8, bytes: &[u8]) -> Result<T, EnvelopeError> {
    check_size(bytes.len(), MAX_ENVELOPE_BYTES)?;
    let (version, body) = bytes.split_first().ok_or(EnvelopeError::Empty)?;
    if *version != first {
        return Err(EnvelopeError::UnknownVersion { version: *version });
    }
    let mut decoder = rmp_serde::Deserializer::new(Cursor::new(body));
    let value =
        T::deserialize(&mut decoder).map_err(|e| EnvelopeError::Malformed { reason: e.to_string() })?;
    match body.len() as u64 - decoder.position() {
        0 => Ok(value),
        rest => Err(EnvelopeError::Malformed { reason: format!("{rest} bytes follow the value") }),
    }
}

/// Encodes `value` as the byte `first` and MessagePack, within `limit` bytes.
pub(crate) fn encode_as<T: Serialize>(first: u8, value: &T, limit: usize) -> Result<Vec<u8>, EnvelopeError> {
    let mut bytes = vec![first];
    rmp_serde::encode::write_named(&mut bytes, value).map_err(|e| EnvelopeError::Encode(e.to_string()))?;
    check_size(bytes.len(), limit)?;
    Ok(bytes)
}

/// Refuses `bytes` over `limit`.
pub(crate) fn check_size(bytes: usize, limit: usize) -> Result<(), EnvelopeError> {
    if bytes > limit { Err(EnvelopeError::TooLarge { bytes, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::delta::{Delta, Part, Span, TokenBytes, TokenLogprobs};
    use crate::event::{Begin, End, Event, FinishReason, Outcome, StopRule, Timing, Usage};
    use crate::ids::TurnId;
    use crate::message::{Message, Role};
    use crate::names::{AgentName, TenantName};
    use crate::tool::{Effort, Reasoning, ResponseFormat, Tool, ToolChoice};

    fn turn(content: &str) -> Turn {
        let id = "01980000-0000-7000-8000-000000000000.0".parse::<TurnId>().expect("a turn id");
        let tenant = TenantName::new("default").expect("a name");
        let agent = Some(AgentName::new("a").expect("a name"));
        Turn { agent, ..Turn::new(id, tenant, vec![Message::new(Role::User, content)]) }
    }

    #[test]
    fn golden_bytes_of_a_begin() {
        let begin = Event::Begin(Begin { epoch: 7, resume_from: 0, attempt: 1, worker: "w".into() });
        let bytes = encode(&begin).expect("encodes");
        let mut golden = b"\x01\x85\xa4kind\xa5begin\xa5epoch\x07\xabresume_from\x00\xa7attempt\x01".to_vec();
        golden.extend(b"\xa6worker\xa1w");
        assert_eq!(bytes, golden);
        assert_eq!(decode(&golden), Ok(begin));
    }

    #[test]
    fn golden_start_of_a_turn() {
        let bytes = encode_turn(&turn("hi")).expect("encodes");
        let golden = b"\x01\x89\xa2id\xd9\x2601980000-0000-7000-8000-000000000000.0\xa6tenant\xa7default";
        assert_eq!(bytes[..golden.len()], golden[..]);
        assert_eq!(decode(&bytes), Ok(turn("hi")));
    }

    #[test]
    fn golden_end_of_a_traced_turn() {
        let traced = Turn {
            request_id: Some("r-1".parse().expect("a request id")),
            traceparent: Some(PARENT.parse().expect("a traceparent")),
            tracestate: Some("a=1".parse().expect("a tracestate")),
            ..turn("hi")
        };
        let bytes = encode_turn(&traced).expect("encodes");
        let mut golden = b"\xaarequest_id\xa3r-1\xabtraceparent\xd9\x37".to_vec();
        golden.extend(PARENT.as_bytes());
        golden.extend(b"\xaatracestate\xa3a=1");
        assert_eq!(bytes[bytes.len() - golden.len()..], golden[..]);
        assert_eq!(decode(&bytes), Ok(traced));
    }

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_only_logs_and_traces_use_costs_no_turn() {
        let mut value = serde_json::json!(turn("hi"));
        for bad in [serde_json::json!("a b"), 7.into(), serde_json::json!({"a": [1]}), ().into()] {
            for field in ["request_id", "traceparent", "tracestate"] {
                value[field] = bad.clone();
            }
            let read: Turn = decode(&encode(&value).expect("encodes")).expect("it is a turn all the same");
            assert_eq!(read, turn("hi"), "{bad}");
        }
        assert_eq!(turn("hi").request_id().as_str(), turn("hi").id.to_string());
    }

    #[test]
    fn fields_with_defaults_may_be_missing_and_unknown_ones_are_passed_over() {
        let bytes = b"\x01\x83\xa4kind\xa3end\xa7outcome\xa7expired\xa6future\xc3";
        let end = End {
            outcome: Outcome::Expired,
            finish: None,
            stop: None,
            error: None,
            usage: Usage::default(),
            timing: Timing::default(),
            worker: None,
        };
        assert_eq!(decode(bytes), Ok(Event::End(end)));
    }

    #[test]
    fn every_cut_and_every_addition_is_refused() {
        let whole = encode_turn(&turn("hello")).expect("encodes");
        assert_eq!(decode::<Turn>(&[]), Err(EnvelopeError::Empty));
        for end in 1..whole.len() {
            let cut = decode::<Turn>(&whole[..end]);
            assert!(matches!(cut, Err(EnvelopeError::Malformed { .. })), "cut at {end}: {cut:?}");
        }
        let longer = [&whole[..], b"\x00"].concat();
        assert_eq!(
            decode::<Turn>(&longer),
            Err(EnvelopeError::Malformed { reason: "1 bytes follow the value".into() })
        );
    }

    #[test]
    fn unknown_versions_are_named() {
        let error = decode::<Turn>(b"\x02rest").expect_err("must be refused");
        assert_eq!(error, EnvelopeError::UnknownVersion { version: 2 });
        assert!(error.to_string().contains("version 2"));
    }

    #[test]
    fn limits_hold_on_both_sides() {
        let bytes = encode_turn(&turn(&"x".repeat(MAX_INLINE_BYTES))).expect_err("must be refused");
        assert!(matches!(bytes, EnvelopeError::TooLarge { limit: MAX_INLINE_BYTES, .. }));
        let huge = vec![VERSION; MAX_ENVELOPE_BYTES + 1];
        assert!(matches!(decode::<Turn>(&huge), Err(EnvelopeError::TooLarge { .. })));
    }

    fn logprobs() -> impl Strategy<Value = TokenLogprobs> {
        let top = prop::collection::vec((any::<u32>(), -100f32..0.0), 0..3);
        let bytes = prop::collection::vec(any::<Vec<u8>>().prop_map(TokenBytes), 0..3);
        (-100f32..0.0, top, bytes).prop_map(|(logprob, top, bytes)| TokenLogprobs { logprob, top, bytes })
    }

    fn end() -> impl Strategy<Value = End> {
        (any::<Option<String>>(), any::<[u32; 3]>(), any::<Option<u64>>(), any::<bool>()).prop_map(
            |(error, [prompt_tokens, cached_tokens, completion_tokens], first_token_ms, completed)| End {
                outcome: if completed { Outcome::Completed } else { Outcome::Failed },
                finish: completed.then_some(FinishReason::ToolCalls),
                stop: first_token_ms.map(|token| StopRule::Token(token as u32)),
                error,
                usage: Usage {
                    prompt_tokens,
                    cached_tokens,
                    completion_tokens,
                    reasoning_tokens: completion_tokens / 2,
                },
                timing: Timing { queued_ms: 1, first_token_ms, total_ms: u64::MAX },
                worker: Some("w".into()),
            },
        )
    }

    fn event() -> impl Strategy<Value = Event> {
        let begin = (any::<u64>(), any::<u32>(), any::<u32>(), any::<String>()).prop_map(
            |(epoch, resume_from, attempt, worker)| {
                Event::Begin(Begin { epoch, resume_from, attempt, worker })
            },
        );
        let tokens = prop::collection::vec(any::<u32>(), 0..20);
        let lengths = prop::collection::vec(any::<u32>(), 0..20);
        let logprobs = prop::collection::vec(logprobs(), 0..3);
        let delta = (any::<u32>(), tokens, any::<String>(), lengths, logprobs).prop_map(
            |(index, tokens, text, lengths, logprobs)| {
                let spans = lengths.iter().map(|bytes| Span { part: Part::ToolName(*bytes), bytes: *bytes });
                let spans = spans.collect();
                Event::Delta(Delta { index, tokens, text, lengths, spans, logprobs })
            },
        );
        prop_oneof![begin, delta, end().prop_map(Event::End)]
    }

    proptest! {
        #[test]
        fn events_round_trip(event in event()) {
            prop_assert_eq!(decode(&encode(&event).expect("encodes")), Ok(event));
        }

        #[test]
        fn turns_round_trip(content: String, seed: Option<u64>, deadline_ms: Option<u64>, bias: f32) {
            prop_assume!(!bias.is_nan());
            let mut turn = turn(&content);
            turn.deadline_ms = deadline_ms;
            turn.sampling.seed = seed;
            turn.sampling.logit_bias.insert(3, bias);
            let schema = serde_json::json!({"z": [content, seed], "a": {"b": null, "c": 0.5}});
            turn.response_format = ResponseFormat::JsonSchema { schema: schema.clone() };
            turn.tools = vec![Tool {
                name: "t".into(),
                description: Some(content.clone()),
                parameters: schema.as_object().cloned(),
            }];
            turn.tool_choice = ToolChoice::Named(content.clone());
            turn.template_arguments.extend(schema.as_object().cloned().into_iter().flatten());
            turn.reasoning =
                Reasoning { enabled: Some(seed.is_some()), effort: Some(Effort::High), budget: Some(7) };
            prop_assert_eq!(decode(&encode_turn(&turn).expect("encodes")), Ok(turn));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let _ = decode::<Turn>(&bytes);
            let _ = decode::<Event>(&[&[VERSION][..], &bytes].concat());
        }
    }
}
