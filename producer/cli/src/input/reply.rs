//! The keys of a line that say what a reply may or must be, in OpenAI's spellings. [`crate::reply`] has the flags.

use serde_json::{Map, Value};
use turnmill_client::schema::Tool;
use turnmill_client::{NewTurn, Reasoning};

use super::fields::{Fields, read_exactly, read_value};
use crate::reply::Thinking;

/// Keys of a line.
pub const KEYS: [&str; 9] = [
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "reasoning",
    "reasoning_effort",
    "template_arguments",
    "chat_template_kwargs",
    "keep_thoughts",
];

/// Tools as JSON has them. The error names the wrong one by its place, from 1.
pub fn read_tools(tools: Vec<Value>) -> Result<Vec<Tool>, String> {
    let read = |(tool, number): (Value, u32)| {
        serde_json::from_value(tool).map_err(|error| format!("tools: number {number}: {error}"))
    };
    tools.into_iter().zip(1..).map(read).collect()
}

impl Fields {
    /// Sets what the line speaks of; null means the default, whatever the flags say.
    ///
    /// Values that a model reads (schemas, a template's variables) stay as they were written, 1.0 included.
    pub fn reply(&mut self, turn: &mut NewTurn) -> Result<(), String> {
        if let Some(tools) = self.take_exactly::<Vec<Value>>("tools")? {
            turn.tools = read_tools(tools.unwrap_or_default())?;
        }
        if let Some(choice) = self.take_exactly("tool_choice")? {
            turn.tool_choice = choice.unwrap_or_default();
        }
        self.set("parallel_tool_calls", &mut turn.parallel_tool_calls)?;
        if let Some(format) = self.take_exactly("response_format")? {
            turn.response_format = format.unwrap_or_default();
        }
        if let Some((key, value)) = self.one_of(["reasoning", "reasoning_effort"])? {
            turn.reasoning = reasoning(key, value)?;
        }
        if let Some((key, value)) = self.one_of(["template_arguments", "chat_template_kwargs"])? {
            let arguments: Option<Map<String, Value>> = read_exactly(key, value)?;
            turn.template_arguments = arguments.unwrap_or_default();
        }
        if let Some(keep) = self.take("keep_thoughts")? {
            turn.keep_thoughts = keep.unwrap_or_default();
        }
        Ok(())
    }
}

/// Ours is a word or a number as `--reasoning` takes it, or an object; OpenAI's `reasoning_effort` is one of those words.
fn reasoning(key: &str, value: Value) -> Result<Reasoning, String> {
    let word = match value {
        Value::Null => return Ok(Reasoning::default()),
        Value::String(word) => word,
        Value::Number(_) if key == "reasoning" => return budget(key, value),
        object @ Value::Object(_) if key == "reasoning" => return read_value(key, object),
        other => return Err(format!("{key} is {other}; give a word, such as \"high\"")),
    };
    let Thinking(reasoning) = word.parse().map_err(|error| format!("{key}: {error}"))?;
    Ok(reasoning)
}

fn budget(key: &str, number: Value) -> Result<Reasoning, String> {
    let tokens: u32 = read_value(key, number)?;
    let Thinking(reasoning) = tokens.to_string().parse().map_err(|error| format!("{key}: {error}"))?;
    Ok(reasoning)
}
