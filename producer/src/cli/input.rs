//! Turns as JSON lines: one object a line, flags being the defaults for all.
//!
//! Keys are those of [`KEYS`] and, nested under `sampling` or beside the others, those of
//! [`turnmill::schema::Sampling`]. Any other key is refused with its line's number.

use std::time::Duration;

use futures::Stream;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use turnmill::NewTurn;
use turnmill::schema::envelope::MAX_ENVELOPE_BYTES;
use turnmill::schema::{Message, Name, RequestId, Role, Sampling, TraceParent, TraceState};

use super::moment::Moment;

/// Longest line, in bytes: above any turn that fits, however its text is escaped (`\u0001` is one byte in six).
const MAX_LINE_BYTES: u64 = 6 * MAX_ENVELOPE_BYTES as u64;

/// Keys of a line besides those of sampling.
const KEYS: [&str; 14] = [
    "agent",
    "message",
    "messages",
    "system",
    "new_session",
    "sampling",
    "priority",
    "deadline",
    "delay",
    "at",
    "idempotency_key",
    "request_id",
    "traceparent",
    "tracestate",
];

/// A turn, and the line that it stood in.
#[derive(Debug)]
pub struct Given {
    /// Counted from 1; none: it came from flags.
    pub line: Option<u64>,
    pub turn: NewTurn,
}

/// A line that is no turn.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct WrongLine {
    pub line: u64,
    /// What is wrong and what to do.
    pub reason: String,
}

/// The turns of `input`, up to the first line that is wrong. Blank lines are passed over.
pub fn turns(
    input: impl AsyncRead + Send + Unpin,
    defaults: Defaults,
) -> impl Stream<Item = Result<Given, WrongLine>> {
    let lines = Lines { input: BufReader::with_capacity(1 << 18, input), defaults, number: 0 };
    futures::stream::try_unfold(lines, |mut lines| async move {
        let turn = lines.next().await?;
        Ok(turn.map(|turn| (turn, lines)))
    })
}

/// What a line need not say.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    /// All but the messages.
    pub turn: NewTurn,
    /// A system message for turns without one.
    pub system: Option<String>,
}

struct Lines<R> {
    input: BufReader<R>,
    defaults: Defaults,
    number: u64,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    async fn next(&mut self) -> Result<Option<Given>, WrongLine> {
        loop {
            self.number += 1;
            let line_number = self.number;
            let wrong = |reason: String| WrongLine { line: line_number, reason };
            let mut line = Vec::new();
            let mut limited = (&mut self.input).take(MAX_LINE_BYTES + 1);
            let bytes =
                limited.read_until(b'\n', &mut line).await.map_err(|error| wrong(error.to_string()))?;
            if bytes == 0 {
                return Ok(None);
            }
            if bytes as u64 > MAX_LINE_BYTES {
                return Err(wrong(format!("it is longer than {MAX_LINE_BYTES} bytes")));
            }
            if !line.trim_ascii().is_empty() {
                let turn = self.defaults.read(&line).map_err(wrong)?;
                return Ok(Some(Given { line: Some(line_number), turn }));
            }
        }
    }
}

impl Defaults {
    /// Reads a line.
    fn read(&self, line: &[u8]) -> Result<NewTurn, String> {
        let object: Map<String, Value> = serde_json::from_slice(line).map_err(|error| {
            let text = error.to_string();
            let what = text.split(" at line ").next().unwrap_or_default();
            format!("not a JSON object: {what} at column {}", error.column())
        })?;
        check_keys(object.keys())?;
        let mut fields = Fields(object);
        let mut turn = self.turn.clone();
        if let Some(agent) = fields.take("agent")? {
            turn.agent = agent;
        }
        if let Some(key) = fields.take::<Option<Name>>("idempotency_key")? {
            turn.idempotency_key = key;
        }
        if let Some(id) = fields.take::<Option<RequestId>>("request_id")? {
            turn.request_id = id;
        }
        if let Some(parent) = fields.take::<Option<TraceParent>>("traceparent")? {
            (turn.traceparent, turn.tracestate) = (parent, None);
        }
        if let Some(state) = fields.take::<Option<TraceState>>("tracestate")? {
            turn.tracestate = state;
        }
        turn.new_session = fields.take("new_session")?.unwrap_or(turn.new_session);
        turn.priority = fields.take("priority")?.unwrap_or(turn.priority);
        if let Some(seconds) = fields.take("deadline")? {
            turn = turn.deadline_in(Duration::from_secs(seconds));
        }
        turn = match (fields.take("delay")?, fields.take::<Moment>("at")?) {
            (Some(_), Some(_)) => return Err("give either delay or at, not both".into()),
            (Some(seconds), None) => turn.delay(Duration::from_secs(seconds)),
            (None, Some(Moment { unix_ms })) => turn.run_at(unix_ms),
            (None, None) => turn,
        };
        turn.messages = fields.messages(self.system.as_deref())?;
        turn.sampling = fields.sampling(&turn.sampling)?;
        turn.sampling.validate().map_err(|error| error.to_string())?;
        Ok(turn)
    }
}

/// What was not read of a line yet.
struct Fields(Map<String, Value>);

impl Fields {
    fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, String> {
        let value = self.0.remove(key);
        value
            .map(|value| serde_json::from_value(value).map_err(|error| format!("{key}: {error}")))
            .transpose()
    }

    fn messages(&mut self, default_system: Option<&str>) -> Result<Vec<Message>, String> {
        let system: Option<String> = self.take("system")?;
        let message: Option<String> = self.take("message")?;
        let messages: Option<Vec<Message>> = self.take("messages")?;
        let messages = match (message, messages) {
            (Some(content), None) => vec![Message::new(Role::User, content)],
            (None, Some(messages)) if !messages.is_empty() => messages,
            (Some(_), Some(_)) => return Err("give either message or messages, not both".into()),
            (None, _) => return Err("give message or messages, at least one".into()),
        };
        let has_system = messages.iter().any(|message| message.role == Role::System);
        let default_system = default_system.filter(|_| !has_system).map(str::to_owned);
        let system = system.or(default_system).map(|content| Message::new(Role::System, content));
        Ok(system.into_iter().chain(messages).collect())
    }

    /// Whatever is left must be sampling. Each value is read on its own first, so that errors name its key.
    fn sampling(mut self, defaults: &Sampling) -> Result<Sampling, String> {
        let mut given: Map<String, Value> = self.take("sampling")?.unwrap_or_default();
        for (key, value) in self.0 {
            if given.insert(key.clone(), value).is_some() {
                return Err(format!("{key} is given twice, beside sampling and in it"));
            }
        }
        let Ok(Value::Object(mut whole)) = serde_json::to_value(defaults) else {
            return Err("the sampling flags are not usable".into());
        };
        for (key, value) in given {
            if !whole.contains_key(&key) {
                return Err(format!("unknown key {key:?} in sampling"));
            }
            let alone = Map::from_iter([(key.clone(), value.clone())]);
            serde_json::from_value::<Sampling>(alone.into()).map_err(|error| format!("{key}: {error}"))?;
            whole.insert(key, value);
        }
        serde_json::from_value(whole.into()).map_err(|error| format!("sampling: {error}"))
    }
}

/// Refuses keys that are neither ours nor sampling's.
fn check_keys<'a>(mut keys: impl Iterator<Item = &'a String>) -> Result<(), String> {
    let sampling = serde_json::to_value(Sampling::default()).unwrap_or_default();
    let known = |key: &str| KEYS.contains(&key) || sampling.get(key).is_some();
    match keys.find(|key| !known(key)) {
        Some(key) => Err(format!("unknown key {key:?}; see turnmill submit --help for those there are")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use turnmill::schema::Priority;

    use super::*;

    fn read(line: &str) -> Result<NewTurn, String> {
        Defaults::default().read(line.as_bytes())
    }

    #[test]
    fn a_whole_line_is_read() {
        let line = r#"{"agent": "a", "messages": [{"role": "user", "content": "hi"}], "system": "Be brief.",
            "new_session": true, "priority": "batch", "idempotency_key": "k", "deadline": 5,
            "temperature": 0, "sampling": {"seed": 18446744073709551615, "logit_bias": {"5": -1.5}}}"#;
        let turn = read(line).expect("valid");
        assert_eq!(turn.agent, Name::new("a").ok());
        let roles: Vec<Role> = turn.messages.iter().map(|message| message.role).collect();
        assert_eq!(roles, [Role::System, Role::User]);
        assert!(turn.new_session && turn.deadline_ms.is_some());
        assert_eq!((turn.priority, turn.idempotency_key), (Priority::Batch, Name::new("k").ok()));
        let sampling = turn.sampling;
        assert_eq!((sampling.temperature, sampling.seed), (0.0, Some(u64::MAX)));
        assert_eq!(sampling.logit_bias.get(&5), Some(&-1.5));
    }

    #[test]
    fn flags_are_defaults_that_a_line_overrides() {
        let sampling = Sampling { temperature: 0.7, max_tokens: Some(9), ..Sampling::default() };
        let turn = NewTurn { agent: Name::new("flag").ok(), ..NewTurn::default() }.sampling(sampling.clone());
        let defaults = Defaults { turn, system: Some("from the flag".into()) };
        let plain = defaults.read(br#"{"message": "hi"}"#).expect("valid");
        assert_eq!((plain.agent, plain.sampling), (Name::new("flag").ok(), sampling));
        assert_eq!(plain.messages[0], Message::new(Role::System, "from the flag"));
        let own = defaults.read(br#"{"message": "hi", "agent": null, "system": "own", "max_tokens": 1}"#);
        let own = own.expect("valid");
        assert_eq!((own.agent, own.sampling.max_tokens, own.sampling.temperature), (None, Some(1), 0.7));
        assert_eq!(own.messages[0].content, "own");
    }

    #[test]
    fn a_lines_own_trace_context_replaces_the_flags() {
        let parent =
            |digit| format!("00-{0}-{1}-01", "a1".repeat(16), digit).parse::<TraceParent>().expect("valid");
        let (flag, own) = (parent("b2".repeat(8)), parent("c3".repeat(8)));
        let turn = NewTurn {
            tracestate: Some("a=1".parse().expect("valid")),
            ..NewTurn::default().traceparent(flag)
        };
        let defaults = Defaults { turn, system: None };
        let read = |line: &str| defaults.read(line.as_bytes()).expect("valid");
        let plain = read(r#"{"message": "a", "request_id": "r-1"}"#);
        assert_eq!((plain.traceparent, plain.tracestate.is_some()), (Some(flag), true));
        assert_eq!(plain.request_id.expect("given").as_str(), "r-1");
        let traced = read(&format!(r#"{{"message": "a", "traceparent": "{own}"}}"#));
        assert_eq!((traced.traceparent, traced.tracestate), (Some(own), None));
    }

    #[test]
    fn every_mistake_is_named() {
        for (line, names) in [
            ("{", "at column"),
            ("[]", "not a JSON object"),
            ("{}", "give message or messages"),
            (r#"{"messages": []}"#, "at least one"),
            (r#"{"message": "a", "messages": []}"#, "not both"),
            (r#"{"massage": "a"}"#, r#"unknown key "massage""#),
            (r#"{"message": "a", "sampling": {"top": 1}}"#, r#"unknown key "top""#),
            (r#"{"message": "a", "top_p": "x"}"#, "top_p: "),
            (r#"{"message": "a", "top_p": 0}"#, "top_p is 0"),
            (r#"{"message": "a", "max_tokens": -1}"#, "max_tokens: "),
            (r#"{"message": "a", "seed": 1, "sampling": {"seed": 1}}"#, "seed is given twice"),
            (r#"{"message": "a", "agent": "a b"}"#, "agent: "),
            (r#"{"message": "a", "priority": "high"}"#, "priority: "),
            (r#"{"message": "a", "at": "noon"}"#, "at: "),
            (r#"{"message": "a", "request_id": "a b"}"#, "request_id: "),
            (r#"{"message": "a", "traceparent": "00-1-2-3"}"#, "traceparent: "),
            (r#"{"message": "a", "tracestate": ","}"#, "tracestate: "),
            (r#"{"message": "a", "at": 5, "delay": 1}"#, "either delay or at"),
            (r#"{"messages": [{"role": "user", "content": "a", "name": "b"}]}"#, "messages: "),
        ] {
            let error = read(line).expect_err(line);
            assert!(error.contains(names), "{line}: {error}");
        }
    }

    #[tokio::test]
    async fn lines_before_a_wrong_one_are_read_and_its_number_is_told() {
        let input =
            "{\"message\": \"a\"}\n\n{\"message\": \"b\"}\nnonsense\n{\"message\": \"c\"}\n".as_bytes();
        let read: Vec<_> = turns(input, Defaults::default()).collect().await;
        assert_eq!(read.len(), 3);
        assert!(read[0].is_ok() && read[1].is_ok());
        assert!(matches!(&read[2], Err(WrongLine { line: 4, .. })), "{read:?}");
    }

    #[tokio::test]
    async fn an_endless_line_is_refused() {
        let input = tokio::io::repeat(b'x');
        let read: Vec<_> = turns(input, Defaults::default()).take(2).collect().await;
        assert!(
            matches!(&read[..], [Err(WrongLine { line: 1, reason })] if reason.contains("longer")),
            "{read:?}"
        );
    }
}
