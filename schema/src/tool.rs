//! What a reply may or must be: tools that the model may call, the form of its answer, how long it thinks.
//!
//! As with messages, OpenAI's spellings are read, nested or flat, and one form is written.

use std::borrow::Cow;
use std::collections::HashSet;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// Longest name of a tool, in characters.
pub const MAX_TOOL_NAME: usize = 128;
/// Most tools of a turn.
pub const MAX_TOOLS: usize = 256;
/// Most bytes of a grammar: of a schema as JSON, of a regular expression, of a lark grammar. What compiles it cannot be
/// interrupted, so that its size is bounded.
pub const MAX_GRAMMAR_BYTES: usize = 64 * 1024;
/// How deep a schema may be nested.
pub const MAX_SCHEMA_DEPTH: usize = 32;

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tool {
    /// Its name: 1 to 128 of `A-Z a-z 0-9 _ - .`; see [`tool_name`] for others.
    pub name: String,
    /// What it does, for the model to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON Schema of its arguments, an object; the order of keys is kept. Absent: an empty object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Map<String, Value>>,
}

impl<'de> Deserialize<'de> for Tool {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Read {
            r#type: Option<String>,
            function: Option<Function>,
            name: Option<String>,
            description: Option<String>,
            parameters: Option<Map<String, Value>>,
            /// Arguments fit the schema in any case.
            #[serde(rename = "strict")]
            _strict: Option<bool>,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Function {
            name: Option<String>,
            description: Option<String>,
            parameters: Option<Map<String, Value>>,
            #[serde(rename = "strict")]
            _strict: Option<bool>,
        }
        let wrong = serde::de::Error::custom::<String>;
        let read = Read::deserialize(deserializer)?;
        if let Some(kind) = read.r#type.filter(|kind| kind != "function") {
            return Err(wrong(format!("a tool has the type {kind:?}; only functions can be called")));
        }
        let (name, description, parameters) = match read.function {
            Some(function) => (function.name, function.description, function.parameters),
            None => (read.name, read.description, read.parameters),
        };
        let name = name.ok_or_else(|| wrong("a tool has no name; give one".into()))?;
        Ok(Self { name, description, parameters })
    }
}

/// A name for a tool that is called `name` elsewhere: itself, if it is 1 to 128 of `A-Z a-z 0-9 _ - .`; otherwise its first 100
/// characters, with `_` for those that are not allowed, then `_` and 16 hexadecimal digits of the BLAKE3 digest of the whole name.
/// Clients give turns the latter, and translate it back in calls.
pub fn tool_name(name: &str) -> Cow<'_, str> {
    if is_tool_name(name) {
        return Cow::Borrowed(name);
    }
    let allowed = |c: char| if is_allowed(c) { c } else { '_' };
    let start: String = name.chars().take(100).map(allowed).collect();
    Cow::Owned(format!("{start}_{}", &blake3::hash(name.as_bytes()).to_hex()[..16]))
}

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-.".contains(c)
}

fn is_tool_name(name: &str) -> bool {
    (1..=MAX_TOOL_NAME).contains(&name.len()) && name.chars().all(is_allowed)
}

/// Whether the model calls tools.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// It does not, and does not know of them.
    None,
    /// It must, at least once.
    Required,
    /// It must call this tool.
    Named(String),
}

impl<'de> Deserialize<'de> for ToolChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "tool_choice must be auto, none, required, or name a tool")]
        enum Read {
            Word(String),
            Named { named: String },
            OpenAi { function: Function },
            Flat { name: String },
        }
        #[derive(Deserialize)]
        struct Function {
            name: String,
        }
        match Read::deserialize(deserializer)? {
            Read::Word(word) => match word.as_str() {
                "auto" => Ok(Self::Auto),
                "none" => Ok(Self::None),
                "required" => Ok(Self::Required),
                _ => Err(serde::de::Error::custom(format!(
                    "tool_choice is {word:?}; it must be auto, none, required, or name a tool"
                ))),
            },
            Read::Named { named: name }
            | Read::Flat { name }
            | Read::OpenAi { function: Function { name } } => Ok(Self::Named(name)),
        }
    }
}

/// The form that the content of a reply must have.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ResponseFormat {
    /// Any text.
    #[default]
    Text,
    /// A JSON object.
    JsonObject,
    /// A JSON value that fits a schema.
    JsonSchema {
        /// The schema: an object, or true.
        schema: Value,
    },
    /// A text that a regular expression matches from its first to its last character.
    Regex {
        /// In the syntax of Rust's `regex`, without look-around.
        regex: String,
    },
    /// A text of a context-free grammar.
    Lark {
        /// In llguidance's variant of Lark's syntax.
        grammar: String,
    },
}

impl<'de> Deserialize<'de> for ResponseFormat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
        enum Read {
            Text,
            JsonObject,
            JsonSchema {
                json_schema: Option<Named>,
                schema: Option<Value>,
                /// Flat, as OpenAI's Responses API has them.
                #[serde(rename = "name")]
                _name: Option<String>,
                #[serde(rename = "description")]
                _description: Option<String>,
                #[serde(rename = "strict")]
                _strict: Option<bool>,
            },
            Regex {
                regex: String,
            },
            Lark {
                grammar: String,
            },
        }
        #[derive(Deserialize)]
        struct Named {
            schema: Option<Value>,
        }
        Ok(match Read::deserialize(deserializer)? {
            Read::Text => Self::Text,
            Read::JsonObject => Self::JsonObject,
            Read::JsonSchema { json_schema, schema, .. } => {
                let schema = schema.or_else(|| json_schema.and_then(|named| named.schema));
                let missing = || serde::de::Error::custom("response_format has no schema; give one");
                Self::JsonSchema { schema: schema.ok_or_else(missing)? }
            }
            Read::Regex { regex } => Self::Regex { regex },
            Read::Lark { grammar } => Self::Lark { grammar },
        })
    }
}

/// How much the model thinks before it replies, if it can.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reasoning {
    /// Whether it thinks; absent: as its chat template has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// How hard, for models whose template asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effort: Option<Effort>,
    /// Tokens after which its thoughts are ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<u32>,
}

/// How hard a model thinks (OpenAI's words).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// Hardly.
    Minimal,
    /// A little.
    Low,
    /// Somewhat.
    Medium,
    /// Hard.
    High,
}

impl Effort {
    /// The name that templates know it by.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Minimal => "minimal",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// Why tools, or what is asked of the reply, can never be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTools {
    /// More than [`MAX_TOOLS`].
    #[error("the turn has {0} tools; give at most {MAX_TOOLS}")]
    TooMany(usize),
    /// A name that is empty, too long or has other characters.
    #[error(
        "tools: number {number} has the name {name:?}; a name is 1 to {MAX_TOOL_NAME} of the characters A-Z a-z 0-9 _ - ."
    )]
    Name {
        /// The tool's place, from 1.
        number: usize,
        /// Its first characters.
        name: String,
    },
    /// Two tools of one name.
    #[error("tools: two are called {0}; give each a name of its own")]
    Twice(String),
    /// `tool_choice` asks for a call, and there is no tool.
    #[error("tool_choice asks for a tool call, and the turn has no tools; give tools, or leave it out")]
    NoTools,
    /// `tool_choice` names a tool that is not there.
    #[error("tool_choice names {0:?}, which is none of the turn's tools; give that tool, or name another")]
    NoSuchTool(String),
    /// A grammar is too large.
    #[error("{what} has {bytes} bytes; at most {MAX_GRAMMAR_BYTES} are allowed")]
    TooLarge {
        /// Which grammar.
        what: String,
        /// Its size.
        bytes: usize,
    },
    /// A schema is nested too deeply.
    #[error("{0} is nested more than {MAX_SCHEMA_DEPTH} deep; make it flatter, or use $ref")]
    TooDeep(String),
    /// A schema that is none.
    #[error("{0} is no JSON Schema; give an object")]
    NoSchema(String),
    /// The reply has to go on, and its grammar ends.
    #[error("ignore_eos cannot be used with a grammar, which says where the reply ends; leave it out")]
    IgnoreEos,
}

/// Checks tools and choice.
pub fn check_tools(tools: &[Tool], choice: &ToolChoice) -> Result<(), InvalidTools> {
    if tools.len() > MAX_TOOLS {
        return Err(InvalidTools::TooMany(tools.len()));
    }
    let mut names = HashSet::new();
    for (tool, number) in tools.iter().zip(1..) {
        if !is_tool_name(&tool.name) {
            return Err(InvalidTools::Name { number, name: tool.name.chars().take(64).collect() });
        }
        if !names.insert(tool.name.as_str()) {
            return Err(InvalidTools::Twice(tool.name.clone()));
        }
        if let Some(parameters) = &tool.parameters {
            check_object(parameters, || format!("the parameters of the tool {}", tool.name))?;
        }
    }
    match choice {
        ToolChoice::Required if tools.is_empty() => Err(InvalidTools::NoTools),
        ToolChoice::Named(name) if !names.contains(name.as_str()) => {
            Err(InvalidTools::NoSuchTool(name.chars().take(64).collect()))
        }
        ToolChoice::Auto | ToolChoice::None | ToolChoice::Required | ToolChoice::Named(_) => Ok(()),
    }
}

impl ResponseFormat {
    /// Whether any text will do.
    pub fn is_text(&self) -> bool {
        *self == Self::Text
    }

    /// Checks what needs no grammar engine.
    pub fn check(&self) -> Result<(), InvalidTools> {
        let what = || "the schema of response_format".to_owned();
        let bytes = match self {
            Self::Text | Self::JsonObject => 0,
            Self::JsonSchema { schema: Value::Object(schema) } => return check_object(schema, what),
            Self::JsonSchema { schema: Value::Bool(true) } => 0,
            Self::JsonSchema { .. } => return Err(InvalidTools::NoSchema(what())),
            Self::Regex { regex: text } | Self::Lark { grammar: text } => text.len(),
        };
        if bytes > MAX_GRAMMAR_BYTES {
            return Err(InvalidTools::TooLarge { what: "the grammar of response_format".into(), bytes });
        }
        Ok(())
    }
}

fn check_object(schema: &Map<String, Value>, what: impl Fn() -> String) -> Result<(), InvalidTools> {
    if schema.values().any(|value| !is_flatter(value, MAX_SCHEMA_DEPTH - 1)) {
        return Err(InvalidTools::TooDeep(what()));
    }
    let bytes = serde_json::to_vec(schema).map_or(0, |json| json.len());
    if bytes > MAX_GRAMMAR_BYTES {
        return Err(InvalidTools::TooLarge { what: what(), bytes });
    }
    Ok(())
}

/// Whether objects and lists are nested at most `depth` deep.
fn is_flatter(value: &Value, depth: usize) -> bool {
    match value {
        Value::Object(map) => depth > 0 && map.values().all(|value| is_flatter(value, depth - 1)),
        Value::Array(list) => depth > 0 && list.iter().all(|value| is_flatter(value, depth - 1)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::envelope::{decode, encode};

    #[test]
    fn clients_spellings_are_one_form_and_keys_keep_their_order() {
        let parameters = json!({"type": "object", "properties": {"b": {"type": "integer"}, "a": {}}});
        let tool: Tool = serde_json::from_value(json!({
            "type": "function",
            "function": {"name": "add", "description": "Adds", "parameters": parameters, "strict": true}
        }))
        .expect("a tool");
        let flat = json!({"name": "add", "description": "Adds", "parameters": parameters});
        assert_eq!(serde_json::from_value::<Tool>(flat.clone()).expect("a tool"), tool);
        assert_eq!(serde_json::to_string(&tool).expect("JSON"), flat.to_string());
        let through: Tool = decode(&encode(&tool).expect("encodes")).expect("decodes");
        assert_eq!(serde_json::to_string(&through).expect("JSON"), flat.to_string());
        for (value, expected) in [
            (json!("auto"), ToolChoice::Auto),
            (json!("none"), ToolChoice::None),
            (json!("required"), ToolChoice::Required),
            (json!({"type": "function", "function": {"name": "add"}}), ToolChoice::Named("add".into())),
            (json!({"type": "function", "name": "add"}), ToolChoice::Named("add".into())),
        ] {
            let choice: ToolChoice = serde_json::from_value(value).expect("a choice");
            assert_eq!(choice, expected);
            assert_eq!(decode(&encode(&choice).expect("encodes")), Ok(choice));
        }
        let schema = json!({"type": "object"});
        for (value, expected) in [
            (json!({"type": "text"}), ResponseFormat::Text),
            (json!({"type": "json_object"}), ResponseFormat::JsonObject),
            (
                json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": true}}),
                ResponseFormat::JsonSchema { schema: schema.clone() },
            ),
            (
                json!({"type": "json_schema", "name": "n", "schema": schema}),
                ResponseFormat::JsonSchema { schema: schema.clone() },
            ),
            (json!({"type": "regex", "regex": "a+"}), ResponseFormat::Regex { regex: "a+".into() }),
            (
                json!({"type": "lark", "grammar": "start: \"a\""}),
                ResponseFormat::Lark { grammar: "start: \"a\"".into() },
            ),
        ] {
            let format: ResponseFormat = serde_json::from_value(value).expect("a format");
            assert_eq!(format, expected);
            assert_eq!(decode(&encode(&format).expect("encodes")), Ok(format));
        }
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let tool = |name: &str| Tool { name: name.into(), description: None, parameters: None };
        let refused = |tools: &[Tool], choice| check_tools(tools, &choice).expect_err("refused").to_string();
        assert!(refused(&[tool("")], ToolChoice::Auto).contains("number 1 has the name \"\""));
        assert!(refused(&[tool("a"), tool("ä")], ToolChoice::Auto).contains("number 2 has the name"));
        assert!(refused(&[tool("a"), tool("a")], ToolChoice::Auto).contains("two are called a"));
        assert!(refused(&[], ToolChoice::Required).contains("no tools"));
        assert!(refused(&[tool("a")], ToolChoice::Named("b".into())).contains("names \"b\""));
        assert!(refused(&vec![tool("a"); MAX_TOOLS + 1], ToolChoice::Auto).contains("257 tools"));
        let format =
            |schema| ResponseFormat::JsonSchema { schema }.check().map_err(|error| error.to_string());
        let nested = |depth| (0..depth).fold(json!({}), |inner, _| json!({"not": inner}));
        assert_eq!(format(nested(MAX_SCHEMA_DEPTH - 1)), Ok(()));
        assert!(format(nested(MAX_SCHEMA_DEPTH)).expect_err("deep").contains("32 deep"));
        assert!(format(json!({"const": "x".repeat(1 << 20)})).expect_err("large").contains("at most 65536"));
        assert!(format(json!([])).expect_err("a list").contains("no JSON Schema"));
        let regex = ResponseFormat::Regex { regex: "a".repeat(MAX_GRAMMAR_BYTES + 1) };
        assert!(regex.check().is_err());
        for (value, names) in [
            (json!({"type": "function", "function": {"description": "x"}}), "a tool has no name"),
            (json!({"type": "web_search"}), "only functions"),
            (json!({"name": "a", "parameters": "x"}), "invalid type"),
        ] {
            let refused = serde_json::from_value::<Tool>(value).expect_err(names).to_string();
            assert!(refused.contains(names), "{refused}");
        }
        let choice = serde_json::from_value::<ToolChoice>(json!("any")).expect_err("unknown").to_string();
        assert!(choice.contains("it must be auto, none, required"), "{choice}");
    }

    proptest! {
        #[test]
        fn any_name_becomes_a_tools_name_and_two_names_stay_two(name in ".{0,200}", other in ".{0,200}") {
            prop_assert!(is_tool_name(&tool_name(&name)));
            prop_assert_eq!(tool_name(&name) == tool_name(&other), name == other);
        }
    }
}
