//! One line: its keys, over the flags.
//!
//! Keys are those of [`KEYS`], those of [`reply`] and, nested under `sampling` or beside the others, those of
//! [`turnmill_client::schema::Sampling`]. Any other key is refused. Null means none, whatever the flags say.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use turnmill_client::NewTurn;
use turnmill_client::schema::{Message, Role, Sampling};

use super::{numbers, reply};
use crate::moment::{Moment, Seconds};

/// Keys of a line besides those of the reply and of sampling.
const KEYS: [&str; 15] = [
    "agent",
    "message",
    "messages",
    "prompt",
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
        fields.reply(&mut turn)?;
        turn.prompt = fields.take("prompt")?.flatten();
        turn.messages = fields.messages(self.system.as_deref(), turn.prompt.is_some())?;
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
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// What the line says of `key`: nothing, null, or a value.
    pub(super) fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<Option<T>>, String> {
        self.0.remove(key).map(|value| read_value(key, value)).transpose()
    }

    /// As [`Fields::take`], of a value that a model reads: its numbers stay as they were written.
    pub(super) fn take_exactly<T: DeserializeOwned>(
        &mut self,
        key: &str,
    ) -> Result<Option<Option<T>>, String> {
        self.0.remove(key).map(|value| read_exactly(key, value)).transpose()
    }

    /// What the line says of a thing that has several names, and by which of them it says so.
    pub(super) fn one_of<'a>(&mut self, names: [&'a str; 2]) -> Result<Option<(&'a str, Value)>, String> {
        let given = names.map(|name| Some((name, self.0.remove(name)?)));
        let is_null = |given: &Option<(&str, Value)>| given.as_ref().is_none_or(|(_, value)| value.is_null());
        match given {
            [first, second] if is_null(&second) => Ok(first.or(second)),
            [first, second] if is_null(&first) => Ok(second),
            _ => Err(format!("give either {} or {}, not both", names[0], names[1])),
        }
    }

    /// Sets a field that the line speaks of. False: it does not.
    pub(super) fn set<T: DeserializeOwned>(
        &mut self,
        key: &str,
        field: &mut Option<T>,
    ) -> Result<bool, String> {
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

    fn messages(&mut self, default_system: Option<&str>, has_prompt: bool) -> Result<Vec<Message>, String> {
        let system: Option<Option<String>> = self.take("system")?;
        let message: Option<String> = self.take("message")?.flatten();
        let messages: Option<Vec<Map<String, Value>>> = self.take_exactly("messages")?.flatten();
        if has_prompt {
            let system = system.unwrap_or(default_system.map(str::to_owned));
            return match system.is_some() || message.is_some() || messages.is_some() {
                true => Err("a prompt stands alone: leave it out, or message, messages and system".into()),
                false => Ok(Vec::new()),
            };
        }
        let messages = match (message, messages) {
            (Some(content), None) => vec![Message::new(Role::User, content)],
            (None, Some(messages)) if !messages.is_empty() => {
                messages.into_iter().enumerate().map(read_message).collect::<Result<_, _>>()?
            }
            (Some(_), Some(_)) => return Err("give either message or messages, not both".into()),
            (None, _) => return Err("give message or messages, at least one, or a prompt".into()),
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
        if let Some(value) = given.shift_remove(numbers::MAX_COMPLETION_TOKENS) {
            let value = numbers::sampling(numbers::MAX_COMPLETION_TOKENS, value)?;
            let is_given = given.get("max_tokens").is_some_and(|plain| !plain.is_null());
            if is_given && !value.is_null() {
                return Err("give either max_tokens or max_completion_tokens, not both".into());
            }
            if !is_given {
                given.insert("max_tokens".into(), value);
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

/// A value as clients write it, 20.0 for 20 included.
pub(super) fn read_value<T: DeserializeOwned>(key: &str, value: Value) -> Result<T, String> {
    read_exactly(key, numbers::whole(value))
}

/// A value as it stands. Errors begin with its key, once.
pub(super) fn read_exactly<T: DeserializeOwned>(key: &str, value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| match error.to_string() {
        said if said.starts_with(key) => said,
        said => format!("{key}: {said}"),
    })
}

/// A message. Clients of OpenAI's API write what they have no value for as null: it is left out, as elsewhere in a line. They
/// also write null as the content of a message that calls tools. Of any other message a content that is missing is a mistake.
fn read_message((place, mut message): (usize, Map<String, Value>)) -> Result<Message, String> {
    let number = place + 1;
    let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    message.retain(|key, value| !(value.is_null() || key == "annotations" && is_empty(value)));
    let has_calls = message.get("tool_calls").is_some_and(|calls| !is_empty(calls));
    if !message.contains_key("content") && !has_calls {
        return Err(format!(
            "messages: number {number} has no content; give it a text, or leave the message out"
        ));
    }
    serde_json::from_value(message.into()).map_err(|error| format!("messages: number {number}: {error}"))
}

fn as_object(sampling: &Sampling) -> Result<Map<String, Value>, String> {
    match serde_json::to_value(sampling) {
        Ok(Value::Object(mut object)) => {
            // Not written if true.
            object.entry("skip_special_tokens").or_insert(sampling.skip_special_tokens.into());
            Ok(object)
        }
        _ => Err("the sampling flags are not usable".into()),
    }
}

/// Refuses keys that are neither ours nor sampling's.
fn check_keys<'a>(mut keys: impl Iterator<Item = &'a String>) -> Result<(), String> {
    let sampling = as_object(&Sampling::default())?;
    let known = |key: &str| {
        KEYS.contains(&key)
            || reply::KEYS.contains(&key)
            || key == numbers::MAX_COMPLETION_TOKENS
            || sampling.contains_key(key)
    };
    match keys.find(|key| !known(key)) {
        Some(key) => Err(format!("unknown key {key:?}; see turnmill submit --help for those there are")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use turnmill_client::schema::{AgentName, IdempotencyKey, Priority, ToolCall, TraceParent};
    use turnmill_client::{Effort, Reasoning, ResponseFormat, Tool, ToolChoice};

    use super::*;

    fn read(line: &str) -> Result<NewTurn, String> {
        Defaults::default().read(line)
    }

    fn tool(name: &str) -> Tool {
        Tool { name: name.into(), description: None, parameters: None }
    }

    /// A line of one message and this.
    fn with(key: &str, value: Value) -> Result<NewTurn, String> {
        read(&json!({"message": "hi", key: value}).to_string())
    }

    #[test]
    fn openais_spellings_are_read() {
        let on = Reasoning { enabled: Some(true), ..Reasoning::default() };
        let hi = || NewTurn::user("hi");
        let sampled = |sampling| hi().sampling(sampling);
        let variables = |value| Map::from_iter([("enable_thinking".to_owned(), value)]);
        let schema = json!({"type": "object", "properties": {"z": {"multipleOf": 1.0}, "a": {}}});
        for (key, value, expected) in [
            (
                "tools",
                json!([{"type": "function", "function": {"name": "a"}}]),
                NewTurn { tools: vec![tool("a")], ..hi() },
            ),
            ("tool_choice", json!("required"), NewTurn { tool_choice: ToolChoice::Required, ..hi() }),
            (
                "tool_choice",
                json!({"type": "function", "function": {"name": "a"}}),
                NewTurn { tool_choice: ToolChoice::Named("a".into()), ..hi() },
            ),
            ("parallel_tool_calls", json!(false), NewTurn { parallel_tool_calls: Some(false), ..hi() }),
            (
                "response_format",
                json!({"type": "json_object"}),
                hi().response_format(ResponseFormat::JsonObject),
            ),
            (
                "response_format",
                json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}}),
                hi().response_format(ResponseFormat::JsonSchema { schema }),
            ),
            (
                "reasoning",
                json!("off"),
                NewTurn { reasoning: Reasoning { enabled: Some(false), ..on.clone() }, ..hi() },
            ),
            (
                "reasoning",
                json!(64.0),
                NewTurn { reasoning: Reasoning { budget: Some(64), ..on.clone() }, ..hi() },
            ),
            (
                "reasoning",
                json!({"effort": "low", "budget": 64.0}),
                NewTurn {
                    reasoning: Reasoning { enabled: None, effort: Some(Effort::Low), budget: Some(64) },
                    ..hi()
                },
            ),
            (
                "reasoning_effort",
                json!("high"),
                NewTurn { reasoning: Reasoning { effort: Some(Effort::High), ..on }, ..hi() },
            ),
            (
                "chat_template_kwargs",
                json!({"enable_thinking": 1.0}),
                NewTurn { template_arguments: variables(json!(1.0)), ..hi() },
            ),
            (
                "template_arguments",
                json!({"enable_thinking": false}),
                NewTurn { template_arguments: variables(json!(false)), ..hi() },
            ),
            ("keep_thoughts", json!(true), NewTurn { keep_thoughts: true, ..hi() }),
            (
                "skip_special_tokens",
                json!(false),
                sampled(Sampling { skip_special_tokens: false, ..Sampling::default() }),
            ),
            (
                "max_completion_tokens",
                json!(5.0),
                sampled(Sampling { max_tokens: Some(5), ..Sampling::default() }),
            ),
            ("max_tokens", json!(0), sampled(Sampling { max_tokens: Some(0), ..Sampling::default() })),
        ] {
            assert_eq!(with(key, value.clone()), Ok(expected), "{key}: {value}");
        }
        let both = r#"{"message": "hi", "max_tokens": null, "max_completion_tokens": 5, "reasoning": null, "reasoning_effort": "low"}"#;
        let both = read(both).expect("null is no second value");
        assert_eq!((both.sampling.max_tokens, both.reasoning.effort), (Some(5), Some(Effort::Low)));
        let older = read(r#"{"message": "hi", "max_tokens": 5, "max_completion_tokens": null}"#);
        assert_eq!(older.expect("valid").sampling.max_tokens, Some(5));
        let prompt = read(r#"{"prompt": "Once", "agent": null}"#).expect("valid");
        assert_eq!(prompt, NewTurn { prompt: Some("Once".into()), ..NewTurn::default() });
    }

    #[test]
    fn a_conversation_with_calls_is_read() {
        let line = r#"{"messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "assistant", "content": null, "reasoning_content": "Sum.", "refusal": null, "annotations": [], "audio": null,
             "function_call": null, "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{\"b\": 1.0, \"a\": 2}"}},
                {"id": "d", "name": "add", "arguments": {"b": 1.0, "a": 2}}]},
            {"role": "tool", "tool_call_id": "c", "name": "add", "content": "3"}]}"#;
        let call = |id: &str, arguments: &str| ToolCall {
            id: id.into(),
            name: "add".into(),
            arguments: arguments.into(),
        };
        let expected = [
            Message::new(Role::System, "Be brief."),
            Message {
                reasoning: Some("Sum.".into()),
                tool_calls: vec![call("c", r#"{"b": 1.0, "a": 2}"#), call("d", r#"{"b":1.0,"a":2}"#)],
                ..Message::new(Role::Assistant, "")
            },
            Message { name: Some("add".into()), ..Message::tool_result("c", "3") },
        ];
        assert_eq!(read(line).expect("valid").messages, expected);
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
        let sampling = Sampling {
            temperature: 0.7,
            max_tokens: Some(9),
            skip_special_tokens: false,
            ..Sampling::default()
        };
        let flags = NewTurn {
            agent: AgentName::new("flag").ok(),
            new_session: true,
            priority: Priority::Batch,
            deadline_ms: Some(1),
            not_before_ms: Some(1),
            request_id: "r".parse().ok(),
            tools: vec![tool("a")],
            tool_choice: ToolChoice::Required,
            parallel_tool_calls: Some(false),
            response_format: ResponseFormat::JsonObject,
            reasoning: Reasoning { budget: Some(1), ..Reasoning::default() },
            template_arguments: Map::from_iter([("a".to_owned(), Value::Null)]),
            keep_thoughts: true,
            sampling,
            ..NewTurn::default()
        };
        let defaults = Defaults { turn: flags, system: Some("from the flag".into()) };
        let keys = KEYS
            .into_iter()
            .chain(reply::KEYS)
            .chain([numbers::MAX_COMPLETION_TOKENS])
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
            ("{}", "give message or messages, at least one, or a prompt"),
            (r#"{"messages": []}"#, "at least one"),
            (r#"{"message": "a", "messages": []}"#, "not both"),
            (r#"{"massage": "a"}"#, r#"unknown key "massage""#),
            (r#"{"message": "a", "sampling": {"top": 1}}"#, r#"unknown key "top""#),
            (r#"{"message": "a", "top_p": "x"}"#, "top_p: invalid type"),
            (r#"{"message": "a", "top_p": 0}"#, "top_p is 0"),
            (
                r#"{"message": "a", "max_tokens": -1}"#,
                "max_tokens is -1; give a whole number from 0 to 4294967295",
            ),
            (
                r#"{"message": "a", "max_completion_tokens": "x"}"#,
                "max_completion_tokens is \"x\"; give a whole number from 0 to 4294967295",
            ),
            (
                r#"{"message": "a", "max_tokens": 1, "max_completion_tokens": 1}"#,
                "either max_tokens or max_completion",
            ),
            (r#"{"message": "a", "skip_special_tokens": 1}"#, "skip_special_tokens: invalid type"),
            (r#"{"message": "a", "tools": {}}"#, "tools: invalid type: map, expected a sequence"),
            (r#"{"message": "a", "tools": [{"name": "a"}, 5]}"#, "tools: number 2: invalid type"),
            (
                r#"{"message": "a", "tools": [{"type": "web_search"}]}"#,
                "tools: number 1: a tool has the type",
            ),
            (
                r#"{"message": "a", "tool_choice": "any"}"#,
                "tool_choice is \"any\"; it must be auto, none, required",
            ),
            (r#"{"message": "a", "tool_choice": 5}"#, "tool_choice must be auto, none, required"),
            (r#"{"message": "a", "parallel_tool_calls": "no"}"#, "parallel_tool_calls: invalid type"),
            (
                r#"{"message": "a", "response_format": {"type": "xml"}}"#,
                "response_format: unknown variant `xml`",
            ),
            (
                r#"{"message": "a", "response_format": {"type": "json_schema"}}"#,
                "response_format has no schema",
            ),
            (
                r#"{"message": "a", "reasoning": "very"}"#,
                "reasoning: \"very\" is no way to think; give off, on,",
            ),
            (r#"{"message": "a", "reasoning": -1}"#, "reasoning: invalid value: integer `-1`"),
            (r#"{"message": "a", "reasoning": true}"#, "reasoning is true; give a word"),
            (r#"{"message": "a", "reasoning": {"effort": "very"}}"#, "reasoning: unknown variant `very`"),
            (r#"{"message": "a", "reasoning": {"summary": "auto"}}"#, "reasoning: unknown field `summary`"),
            (r#"{"message": "a", "reasoning_effort": 5}"#, "reasoning_effort is 5; give a word"),
            (
                r#"{"message": "a", "reasoning_effort": "low", "reasoning": "on"}"#,
                "either reasoning or reasoning_effort",
            ),
            (r#"{"message": "a", "template_arguments": []}"#, "template_arguments: invalid type"),
            (r#"{"message": "a", "chat_template_kwargs": "x"}"#, "chat_template_kwargs: invalid type"),
            (
                r#"{"message": "a", "chat_template_kwargs": {}, "template_arguments": {}}"#,
                "either template_arguments or chat_template_kwargs",
            ),
            (r#"{"message": "a", "keep_thoughts": "yes"}"#, "keep_thoughts: invalid type"),
            (r#"{"prompt": 5}"#, "prompt: invalid type"),
            (r#"{"prompt": "a", "message": "b"}"#, "a prompt stands alone"),
            (r#"{"prompt": "a", "system": "b"}"#, "a prompt stands alone"),
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
                r#"{"messages": [{"role": "user", "content": "a", "names": "b"}]}"#,
                "messages: number 1: unknown",
            ),
            (
                r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}"#,
                "messages: number 1: content must be a text",
            ),
            (
                r#"{"messages": [{"role": "user", "content": "a", "function_call": {}}]}"#,
                "messages: number 1: unknown field `function_call`",
            ),
            (
                r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}"#,
                "messages: number 2 has no content; give it a text",
            ),
            (
                r#"{"messages": [{"role": "assistant", "tool_calls": [], "content": null}]}"#,
                "messages: number 1 has no content",
            ),
            (
                r#"{"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}], "content": null}]}"#,
                "messages: number 1: a tool call names no function",
            ),
            (
                r#"{"messages": [{"role": "assistant", "tool_calls": {}}]}"#,
                "messages: number 1: invalid type: map",
            ),
            (r#"{"messages": [{"role": null, "content": "a"}]}"#, "messages: number 1: missing field `role`"),
            (r#"{"messages": ["a"]}"#, "messages: invalid type"),
        ] {
            let error = read(line).expect_err(line);
            assert!(error.contains(names), "{line}: {error}");
        }
    }
}
