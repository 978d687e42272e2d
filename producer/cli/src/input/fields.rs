//! One line: its keys, over the flags.
//!
//! Keys are those of [`KEYS`] and, nested under `sampling` or beside the others, those of
//! [`turnmill_client::schema::Sampling`]. Any other key is refused. Null means none, whatever the flags say.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use turnmill_client::NewTurn;
use turnmill_client::schema::{Message, Role, Sampling};

use super::numbers;
use crate::moment::{Moment, Seconds};

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

/// What a line need not say.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    /// All but the messages.
    pub turn: NewTurn,
    /// A system message for turns without one.
    pub system: Option<String>,
}

impl Defaults {
    /// Reads a line.
    pub fn read(&self, line: &str) -> Result<NewTurn, String> {
        let object: Map<String, Value> = serde_json::from_str(line).map_err(|error| {
            let text = error.to_string();
            let what = text.split(" at line ").next().unwrap_or_default();
            format!("not a JSON object: {what} at column {}", column(line, error.column()))
        })?;
        check_keys(object.keys())?;
        let mut fields = Fields(object);
        let mut turn = self.turn.clone();
        fields.set("agent", &mut turn.agent)?;
        fields.set("idempotency_key", &mut turn.idempotency_key)?;
        fields.set("request_id", &mut turn.request_id)?;
        if fields.set("traceparent", &mut turn.traceparent)? {
            turn.tracestate = None;
        }
        fields.set("tracestate", &mut turn.tracestate)?;
        if let Some(given) = fields.take("new_session")? {
            turn.new_session = given.unwrap_or_default();
        }
        if let Some(given) = fields.take("priority")? {
            turn.priority = given.unwrap_or_default();
        }
        fields.times(&mut turn)?;
        turn.messages = fields.messages(self.system.as_deref())?;
        turn.sampling = fields.sampling(&turn.sampling)?;
        turn.sampling.validate().map_err(|error| error.to_string())?;
        Ok(turn)
    }
}

/// The column, in characters as editors count, of a place that is counted in bytes.
fn column(line: &str, bytes: usize) -> usize {
    let before = line.as_bytes().get(..bytes).unwrap_or(line.as_bytes());
    String::from_utf8_lossy(before).chars().count()
}

/// What was not read of a line yet.
struct Fields(Map<String, Value>);

impl Fields {
    /// What the line says of `key`: nothing, null, or a value.
    fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<Option<T>>, String> {
        self.0.remove(key).map(|value| read_value(key, value)).transpose()
    }

    /// Sets a field that the line speaks of. False: it does not.
    fn set<T: DeserializeOwned>(&mut self, key: &str, field: &mut Option<T>) -> Result<bool, String> {
        let given = self.take(key)?;
        let is_given = given.is_some();
        given.into_iter().for_each(|value| *field = value);
        Ok(is_given)
    }

    fn times(&mut self, turn: &mut NewTurn) -> Result<(), String> {
        if let Some(deadline) = self.take::<Seconds>("deadline")? {
            let rest = NewTurn { deadline_ms: None, ..std::mem::take(turn) };
            *turn = match deadline {
                Some(seconds) => rest.deadline_in(seconds.duration()),
                None => rest,
            };
        }
        let (delay, at) = (self.take::<Seconds>("delay")?, self.take::<Moment>("at")?);
        if delay.is_none() && at.is_none() {
            return Ok(());
        }
        let rest = NewTurn { not_before_ms: None, ..std::mem::take(turn) };
        *turn = match (delay.flatten(), at.flatten()) {
            (Some(_), Some(_)) => return Err("give either delay or at, not both".into()),
            (Some(seconds), None) => rest.delay(seconds.duration()),
            (None, Some(Moment { unix_ms })) => rest.run_at(unix_ms),
            (None, None) => rest,
        };
        Ok(())
    }

    fn messages(&mut self, default_system: Option<&str>) -> Result<Vec<Message>, String> {
        let system: Option<Option<String>> = self.take("system")?;
        let message: Option<String> = self.take("message")?.flatten();
        let messages: Option<Vec<Map<String, Value>>> = self.take("messages")?.flatten();
        let messages = match (message, messages) {
            (Some(content), None) => vec![Message::new(Role::User, content)],
            (None, Some(messages)) if !messages.is_empty() => {
                messages.into_iter().enumerate().map(read_message).collect::<Result<_, _>>()?
            }
            (Some(_), Some(_)) => return Err("give either message or messages, not both".into()),
            (None, _) => return Err("give message or messages, at least one".into()),
        };
        let has_system = messages.iter().any(|message| message.role == Role::System);
        let default_system = default_system.filter(|_| !has_system).map(str::to_owned);
        let system = system.unwrap_or(default_system).map(|content| Message::new(Role::System, content));
        Ok(system.into_iter().chain(messages).collect())
    }

    /// Whatever is left must be sampling. Each value is read on its own first, so that errors name its key.
    fn sampling(mut self, defaults: &Sampling) -> Result<Sampling, String> {
        let mut given: Map<String, Value> = self.take("sampling")?.flatten().unwrap_or_default();
        for (key, value) in self.0 {
            if given.insert(key.clone(), value).is_some() {
                return Err(format!("{key} is given twice, beside sampling and in it"));
            }
        }
        let mut whole = as_object(defaults)?;
        let mut unset = as_object(&Sampling::default())?;
        for (key, value) in given {
            let Some(unset) = unset.remove(&key) else {
                return Err(format!("unknown key {key:?} in sampling"));
            };
            let value = numbers::sampling(&key, value)?;
            let value = if value.is_null() { unset } else { value };
            let alone = Map::from_iter([(key.clone(), value.clone())]);
            serde_json::from_value::<Sampling>(alone.into()).map_err(|error| format!("{key}: {error}"))?;
            whole.insert(key, value);
        }
        serde_json::from_value(whole.into()).map_err(|error| format!("sampling: {error}"))
    }
}

fn read_value<T: DeserializeOwned>(key: &str, value: Value) -> Result<T, String> {
    serde_json::from_value(numbers::whole(value)).map_err(|error| format!("{key}: {error}"))
}

/// A message. Clients of OpenAI's API write what they have no value for as null: it is left out, as elsewhere in a line. They
/// also write null as the content of a message that is a tool call; a turn has no place for one, and an empty text in its
/// stead would change what the model reads.
fn read_message((place, mut message): (usize, Map<String, Value>)) -> Result<Message, String> {
    let number = place + 1;
    message.retain(|_, value| !value.is_null());
    if !message.contains_key("content") {
        return Err(format!(
            "messages: number {number} has no content; give it a text, or leave the message out"
        ));
    }
    serde_json::from_value(message.into()).map_err(|error| format!("messages: number {number}: {error}"))
}

fn as_object(sampling: &Sampling) -> Result<Map<String, Value>, String> {
    match serde_json::to_value(sampling) {
        Ok(Value::Object(object)) => Ok(object),
        _ => Err("the sampling flags are not usable".into()),
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
    use turnmill_client::schema::{AgentName, IdempotencyKey, Priority, TraceParent};

    use super::*;

    fn read(line: &str) -> Result<NewTurn, String> {
        Defaults::default().read(line)
    }

    #[test]
    fn a_whole_line_is_read() {
        let line = r#"{"agent": "a", "messages": [{"role": "user", "content": "hi"}], "system": "Be brief.",
            "new_session": true, "priority": "batch", "idempotency_key": "k", "deadline": 5,
            "temperature": 0, "sampling": {"seed": 18446744073709551615, "logit_bias": {"5": -1.5}}}"#;
        let turn = read(line).expect("valid");
        assert_eq!(turn.agent, AgentName::new("a").ok());
        let roles: Vec<Role> = turn.messages.iter().map(|message| message.role).collect();
        assert_eq!(roles, [Role::System, Role::User]);
        assert!(turn.new_session && turn.deadline_ms.is_some());
        assert_eq!((turn.priority, turn.idempotency_key), (Priority::Batch, IdempotencyKey::new("k").ok()));
        let sampling = turn.sampling;
        assert_eq!((sampling.temperature, sampling.seed), (0.0, Some(u64::MAX)));
        assert_eq!(sampling.logit_bias.get(&5), Some(&-1.5));
    }

    #[test]
    fn flags_are_defaults_that_a_line_overrides() {
        let sampling = Sampling { temperature: 0.7, max_tokens: Some(9), ..Sampling::default() };
        let turn =
            NewTurn { agent: AgentName::new("flag").ok(), ..NewTurn::default() }.sampling(sampling.clone());
        let defaults = Defaults { turn, system: Some("from the flag".into()) };
        let plain = defaults.read(r#"{"message": "hi"}"#).expect("valid");
        assert_eq!((plain.agent, plain.sampling), (AgentName::new("flag").ok(), sampling));
        assert_eq!(plain.messages[0], Message::new(Role::System, "from the flag"));
        let own = defaults.read(r#"{"message": "hi", "agent": null, "system": "own", "max_tokens": 1}"#);
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
        let read = |line: &str| defaults.read(line).expect("valid");
        let plain = read(r#"{"message": "a", "request_id": "r-1"}"#);
        assert_eq!((plain.traceparent, plain.tracestate.is_some()), (Some(flag), true));
        assert_eq!(plain.request_id.expect("given").as_str(), "r-1");
        let traced = read(&format!(r#"{{"message": "a", "traceparent": "{own}"}}"#));
        assert_eq!((traced.traceparent, traced.tracestate), (Some(own), None));
    }

    #[test]
    fn null_means_none_whatever_the_flags_say() {
        let sampling = Sampling { temperature: 0.7, max_tokens: Some(9), ..Sampling::default() };
        let flags = NewTurn {
            agent: AgentName::new("flag").ok(),
            new_session: true,
            priority: Priority::Batch,
            deadline_ms: Some(1),
            not_before_ms: Some(1),
            request_id: "r".parse().ok(),
            sampling,
            ..NewTurn::default()
        };
        let defaults = Defaults { turn: flags, system: Some("from the flag".into()) };
        let keys = KEYS
            .into_iter()
            .map(str::to_owned)
            .chain(as_object(&Sampling::default()).expect("one").into_iter().map(|(key, _)| key));
        let mut line: Map<String, Value> = keys.map(|key| (key, Value::Null)).collect();
        line.insert("message".into(), "hi".into());
        let read = defaults.read(&Value::from(line).to_string()).expect("valid");
        assert_eq!(read, NewTurn::user("hi"));
    }

    /// What clients of OpenAI's API have in a list of messages: all keys, most of them null.
    #[test]
    fn null_means_none_in_messages_too() {
        let line = r#"{"messages": [{"role": "user", "content": "hi", "name": null},
            {"role": "assistant", "content": "yes", "refusal": null, "tool_calls": null, "audio": null}]}"#;
        let expected = [Message::new(Role::User, "hi"), Message::new(Role::Assistant, "yes")];
        assert_eq!(read(line).expect("valid").messages, expected);
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
            (r#"{"message": "a", "top_p": "x"}"#, "top_p: invalid type"),
            (r#"{"message": "a", "top_p": 0}"#, "top_p is 0"),
            (
                r#"{"message": "a", "max_tokens": -1}"#,
                "max_tokens is -1; give a whole number from 1 to 4294967295",
            ),
            (r#"{"message": "a", "delay": -1}"#, "delay: -1 is not a whole number of seconds"),
            (r#"{"message": "a", "at": 1700000000000}"#, "give Unix seconds, not milliseconds"),
            (r#"{"message": "a", "seed": 1, "sampling": {"seed": 1}}"#, "seed is given twice"),
            (r#"{"message": "a", "agent": "a b"}"#, "agent: "),
            (r#"{"message": "a", "priority": "high"}"#, "priority: "),
            (r#"{"message": "a", "at": "noon"}"#, "at: "),
            (r#"{"message": "a", "request_id": "a b"}"#, "request_id: "),
            (r#"{"message": "a", "traceparent": "00-1-2-3"}"#, "traceparent: "),
            (r#"{"message": "a", "tracestate": ","}"#, "tracestate: "),
            (r#"{"message": "a", "at": 5, "delay": 1}"#, "either delay or at"),
            (
                r#"{"messages": [{"role": "user", "content": "a", "name": "b"}]}"#,
                "messages: number 1: unknown",
            ),
            (
                r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}"#,
                "messages: number 2 has no content; give it a text",
            ),
            (
                r#"{"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}], "content": null}]}"#,
                "messages: number 1 has no content",
            ),
            (r#"{"messages": [{"role": null, "content": "a"}]}"#, "messages: number 1: missing field `role`"),
            (r#"{"messages": ["a"]}"#, "messages: invalid type"),
        ] {
            let error = read(line).expect_err(line);
            assert!(error.contains(names), "{line}: {error}");
        }
    }
}
