//! Messages and tools as templates see them: the mappings that transformers is given.
//!
//! The content of a message that only calls tools is an empty text. OpenAI's clients write null there, and 13 of the 70 templates
//! in `tests/templates` then fail or write `None`. One wants null (DeepSeek-R1-Distill-Llama): it leaves such calls out, and with
//! null it fails, because it wants arguments as JSON text too.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Map, Value, json};
use turnmill_schema::{Message, Role, Tool, ToolCall};

/// A message. What it does not have is left out, so that `is defined` answers.
#[derive(Serialize)]
pub(super) struct SeenMessage<'a> {
    role: Role,
    content: &'a str,
    /// Thoughts, under both names that templates know them by.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<SeenCall<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct SeenCall<'a> {
    id: Cow<'a, str>,
    r#type: &'static str,
    function: Called<'a>,
}

#[derive(Serialize)]
struct Called<'a> {
    name: &'a str,
    /// A mapping, which more templates take than a text.
    arguments: Value,
}

/// A tool.
#[derive(Serialize)]
pub(super) struct SeenTool<'a> {
    r#type: &'static str,
    function: SeenFunction<'a>,
}

#[derive(Serialize)]
struct SeenFunction<'a> {
    name: &'a str,
    /// Empty if there is none: many templates add it to other text.
    description: &'a str,
    parameters: Parameters<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Parameters<'a> {
    Given(&'a Map<String, Value>),
    /// Templates look into `properties` without asking.
    Any(Value),
}

impl<'a> SeenMessage<'a> {
    /// `message`, with ids of calls shortened if `short_ids`.
    pub(super) fn new(message: &'a Message, short_ids: bool) -> Self {
        let id = |id: &'a str| if short_ids { short(id) } else { Cow::Borrowed(id) };
        Self {
            role: message.role,
            content: &message.content,
            reasoning_content: message.reasoning.as_deref(),
            thinking: message.reasoning.as_deref(),
            tool_calls: message.tool_calls.iter().map(|call| SeenCall::new(call, id(&call.id))).collect(),
            tool_call_id: message.tool_call_id.as_deref().map(id),
            name: message.name.as_deref(),
        }
    }
}

/// An id of 9 letters and digits, which is what Mistral's templates take: `id` itself, or as many digits of its BLAKE3 digest.
fn short(id: &str) -> Cow<'_, str> {
    match id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric()) {
        true => Cow::Borrowed(id),
        false => Cow::Owned(blake3::hash(id.as_bytes()).to_hex()[..9].to_owned()),
    }
}

impl<'a> SeenCall<'a> {
    fn new(call: &'a ToolCall, id: Cow<'a, str>) -> Self {
        // A text that is no JSON stays one: turns are checked, and what is in histories already must not become unreadable.
        let arguments = serde_json::from_str(&call.arguments);
        let arguments = arguments.unwrap_or_else(|_| Value::from(call.arguments.as_str()));
        Self { id, r#type: "function", function: Called { name: &call.name, arguments } }
    }
}

impl<'a> SeenTool<'a> {
    pub(super) fn new(tool: &'a Tool) -> Self {
        let parameters = match &tool.parameters {
            Some(parameters) => Parameters::Given(parameters),
            None => Parameters::Any(json!({"type": "object", "properties": {}})),
        };
        let description = tool.description.as_deref().unwrap_or_default();
        let function = SeenFunction { name: &tool.name, description, parameters };
        Self { r#type: "function", function }
    }
}
