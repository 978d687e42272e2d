//! Messages of a conversation, in the field's spelling: OpenAI's.
//!
//! What is read is lenient in the ways in which clients differ (content as a text, as text parts or null; a call nested in
//! `function` or flat; arguments as JSON text or as an object). What is written has one form.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::delta::Part;
use crate::ids::TurnId;

/// Who speaks in a message. The spelling is that of chat templates and of OpenAI's API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that hold for the conversation. OpenAI's newer name for it, `developer`, is read too.
    #[serde(alias = "developer")]
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said. Text parts are read as one text, a line break between them; null, as a message that calls tools has it, is
    /// read as an empty text.
    #[serde(default, deserialize_with = "text")]
    pub content: String,
    /// What the model thought before it replied; of an assistant's message.
    #[serde(default, alias = "reasoning_content", skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Tools that the model called; of an assistant's message.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call whose result this is; of a tool's message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The name of the one who speaks, or of the tool whose result this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Message {
    /// A message of `role` saying `content`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
            reasoning: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
        }
    }

    /// Adds some text of a reply of `turn`, of one part.
    pub fn add(&mut self, part: Part, text: &str, turn: &TurnId) {
        match part {
            Part::Content => self.content.push_str(text),
            Part::Reasoning => self.reasoning.get_or_insert_default().push_str(text),
            Part::ToolName(index) => self.tool_calls.push(ToolCall {
                id: ToolCall::id_of(turn, index),
                name: text.to_owned(),
                arguments: String::new(),
            }),
            Part::ToolArguments(_) => {
                if let Some(call) = self.tool_calls.last_mut() {
                    call.arguments.push_str(text);
                }
            }
        }
    }

    /// What the tool of the call `id` gave.
    pub fn tool_result(id: impl Into<String>, content: impl Into<String>) -> Self {
        Self { tool_call_id: Some(id.into()), ..Self::new(Role::Tool, content) }
    }
}

/// A model's call of a tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ToolCall {
    /// Its id, by which its result refers to it.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// JSON text of an object, as the model wrote it.
    pub arguments: String,
}

impl ToolCall {
    /// The id of the call at place `index` of a turn's reply. It is a function of both, so that a turn that was resumed repeats
    /// it: `call_` and 24 hexadecimal digits of a BLAKE3 digest.
    pub fn id_of(turn: &TurnId, index: u32) -> String {
        let digest = blake3::hash(format!("{turn}/{index}").as_bytes()).to_hex();
        format!("call_{}", &digest[..24])
    }
}

impl<'de> Deserialize<'de> for ToolCall {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Read {
            id: Option<String>,
            r#type: Option<String>,
            /// Its place in a list, in what streams from some servers.
            #[serde(rename = "index")]
            _index: Option<u32>,
            function: Option<Function>,
            name: Option<String>,
            arguments: Option<Value>,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Function {
            name: String,
            #[serde(default)]
            arguments: Option<Value>,
        }
        let wrong = serde::de::Error::custom::<String>;
        let read = Read::deserialize(deserializer)?;
        if read.r#type.as_deref().is_some_and(|kind| kind != "function") {
            return Err(wrong(
                "a tool call has a type other than function, which is the only one there is".into(),
            ));
        }
        let (name, arguments) = match read.function {
            Some(function) => (Some(function.name), function.arguments),
            None => (read.name, read.arguments),
        };
        let name = name.ok_or_else(|| wrong("a tool call names no function; give its name".into()))?;
        let id = read.id.ok_or_else(|| wrong(format!("the call of {name} has no id; give one")))?;
        let arguments = match arguments {
            None | Some(Value::Null) => "{}".to_owned(),
            Some(Value::String(text)) if text.trim().is_empty() => "{}".to_owned(),
            Some(Value::String(text)) => text,
            Some(value) => value.to_string(),
        };
        Ok(Self { id, name, arguments })
    }
}

/// A text, text parts or nothing, as one text.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "content must be a text, or a list of text parts: {\"type\": \"text\", \"text\": \"…\"}"
    )]
    enum Content {
        Text(String),
        Parts(Vec<TextPart>),
    }
    Ok(match Option::<Content>::deserialize(deserializer)? {
        None => String::new(),
        Some(Content::Text(text)) => text,
        // As vLLM joins them.
        Some(Content::Parts(parts)) => {
            let texts: Vec<String> = parts.into_iter().map(|part| part.text).collect();
            texts.join("\n")
        }
    })
}

#[derive(Deserialize)]
struct TextPart {
    #[serde(rename = "type")]
    _kind: TextKind,
    text: String,
}

/// What the parts that hold text are called in OpenAI's APIs. Images and sound are parts that no model here reads.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum TextKind {
    Text,
    InputText,
    OutputText,
}

/// A list, or null for an empty one.
pub(crate) fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

/// Why messages are no conversation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    /// Arguments of a call are not a JSON object.
    #[error("messages: number {number} calls {name} with arguments that are no JSON object; give an object")]
    Arguments {
        /// The message's place, from 1.
        number: usize,
        /// The tool's name.
        name: String,
    },
    /// Only the model calls tools, and only the model thinks.
    #[error("messages: number {number} has {field} and its role is not assistant; leave it out")]
    NotAssistant {
        /// The message's place, from 1.
        number: usize,
        /// `tool_calls` or `reasoning`.
        field: &'static str,
    },
    /// A result names a call that was not made.
    #[error(
        "messages: number {number} is a tool's result for the call {id:?}, and no message before it made that call; \
         give tool_call_id as the reply had it"
    )]
    NoSuchCall {
        /// The message's place, from 1.
        number: usize,
        /// The id it names.
        id: String,
    },
    /// A result without an id, when no call waits for a result.
    #[error("messages: number {number} is a tool's result, and no call waits for one; give tool_call_id")]
    NoCall {
        /// The message's place, from 1.
        number: usize,
    },
}

/// Checks what each message says by itself.
pub fn check_messages(messages: &[Message]) -> Result<(), InvalidMessage> {
    for (message, number) in messages.iter().zip(1..) {
        let assistant = message.role == Role::Assistant;
        for (has, field) in
            [(!message.tool_calls.is_empty(), "tool_calls"), (message.reasoning.is_some(), "reasoning")]
        {
            if has && !assistant {
                return Err(InvalidMessage::NotAssistant { number, field });
            }
        }
        for call in &message.tool_calls {
            let is_object = matches!(serde_json::from_str(&call.arguments), Ok(Value::Object(_)));
            if !is_object {
                return Err(InvalidMessage::Arguments { number, name: call.name.clone() });
            }
        }
    }
    Ok(())
}

/// Checks that each result among `messages` is that of a call in `history` or in a message before it. A result without an id is
/// that of the oldest call without a result.
pub fn check_results(history: &[Message], messages: &[Message]) -> Result<(), InvalidMessage> {
    let mut calls: Vec<&str> = Vec::new();
    let mut unanswered = 0usize;
    for message in history {
        calls.extend(message.tool_calls.iter().map(|call| call.id.as_str()));
        unanswered += message.tool_calls.len();
        unanswered = unanswered.saturating_sub(usize::from(message.role == Role::Tool));
    }
    for (message, number) in messages.iter().zip(1..) {
        if message.role == Role::Tool {
            match &message.tool_call_id {
                Some(id) if !calls.contains(&id.as_str()) => {
                    return Err(InvalidMessage::NoSuchCall { number, id: id.chars().take(64).collect() });
                }
                None if unanswered == 0 => return Err(InvalidMessage::NoCall { number }),
                Some(_) | None => unanswered = unanswered.saturating_sub(1),
            }
        }
        calls.extend(message.tool_calls.iter().map(|call| call.id.as_str()));
        unanswered += message.tool_calls.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::envelope::{decode, encode};

    fn read(value: Value) -> Message {
        serde_json::from_value(value).expect("a message")
    }

    #[test]
    fn clients_spellings_are_one_message() {
        let call =
            |arguments: &str| ToolCall { id: "c1".into(), name: "add".into(), arguments: arguments.into() };
        let calling = |arguments: &str| Message {
            tool_calls: vec![call(arguments)],
            ..Message::new(Role::Assistant, "")
        };
        for (value, expected) in [
            (json!({"role": "user", "content": "hi"}), Message::new(Role::User, "hi")),
            (json!({"role": "developer", "content": "hi"}), Message::new(Role::System, "hi")),
            (
                json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]}),
                Message::new(Role::User, "a\nb"),
            ),
            (
                json!({"role": "assistant", "content": null, "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{\"b\":1, \"a\":2}"}}
                ]}),
                calling("{\"b\":1, \"a\":2}"),
            ),
            (
                json!({"role": "assistant", "tool_calls": [{"id": "c1", "name": "add", "arguments": {"b": 1, "a": 2}}]}),
                calling("{\"b\":1,\"a\":2}"),
            ),
            (json!({"role": "assistant", "tool_calls": [{"id": "c1", "name": "add"}]}), calling("{}")),
            (
                json!({"role": "assistant", "content": "a", "tool_calls": null}),
                Message::new(Role::Assistant, "a"),
            ),
        ] {
            let message = read(value);
            assert_eq!(message, expected);
            assert_eq!(decode(&encode(&message).expect("encodes")), Ok(message));
        }
    }

    #[test]
    fn what_is_no_message_is_named() {
        for (value, names) in [
            (json!({"role": "user", "content": 7}), "content must be a text"),
            (
                json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
                "content must be a text",
            ),
            (json!({"role": "robot", "content": "a"}), "unknown variant `robot`"),
            (json!({"role": "assistant", "tool_calls": [{"name": "add"}]}), "the call of add has no id"),
            (json!({"role": "assistant", "tool_calls": [{"id": "c"}]}), "names no function"),
            (
                json!({"role": "assistant", "tool_calls": [{"id": "c", "type": "web", "name": "a"}]}),
                "a type other than",
            ),
        ] {
            let refused = serde_json::from_value::<Message>(value).expect_err(names).to_string();
            assert!(refused.contains(names), "{refused}");
        }
    }

    #[test]
    fn results_belong_to_calls() {
        let call = |id: &str| ToolCall { id: id.into(), name: "add".into(), arguments: "{}".into() };
        let calling = |ids: &[&str]| Message {
            tool_calls: ids.iter().map(|id| call(id)).collect(),
            ..Message::new(Role::Assistant, "")
        };
        let result = |id: Option<&str>| Message {
            tool_call_id: id.map(str::to_owned),
            ..Message::new(Role::Tool, "3")
        };
        let ask = || Message::new(Role::User, "?");
        for (history, messages, refused) in [
            (vec![ask(), calling(&["a", "b"])], vec![result(Some("b")), result(Some("a"))], None),
            (vec![], vec![ask(), calling(&["a"]), result(Some("a"))], None),
            (vec![ask(), calling(&["a"])], vec![result(None)], None),
            (
                vec![ask(), calling(&["a"])],
                vec![result(None), result(None)],
                Some("number 2 is a tool's result, and"),
            ),
            (vec![ask(), calling(&["a"]), result(Some("a"))], vec![result(None)], Some("number 1 is")),
            (vec![ask()], vec![result(Some("a"))], Some("for the call \"a\"")),
            (vec![], vec![result(Some("a")), calling(&["a"])], Some("number 1")),
        ] {
            let found = check_results(&history, &messages).err().map(|error| error.to_string());
            assert_eq!(found.is_some(), refused.is_some(), "{found:?}");
            assert!(found.unwrap_or_default().contains(refused.unwrap_or_default()));
        }
    }

    #[test]
    fn the_id_of_a_call_is_a_function_of_turn_and_index() {
        let (turn, other) = (TurnId::new(0), TurnId::new(0));
        assert_eq!(ToolCall::id_of(&turn, 3), ToolCall::id_of(&turn, 3));
        assert_ne!(ToolCall::id_of(&turn, 3), ToolCall::id_of(&turn, 4));
        assert_ne!(ToolCall::id_of(&turn, 3), ToolCall::id_of(&other, 3));
    }
}
