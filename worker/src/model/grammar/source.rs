//! What a reply must be, and its form as llguidance takes it.

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use super::error::rejected;
use super::{GrammarError, lark, limits, schema};

/// What a reply must be.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Constraint {
    /// A JSON object.
    JsonObject,
    /// JSON that fits a JSON Schema, with properties in the schema's order.
    JsonSchema(Value),
    /// Text that a regular expression matches as a whole: Rust's syntax without lookaround.
    Regex(String),
    /// A sentence of a grammar in llguidance's dialect of lark: `%json {...}` is JSON of a schema, `<|name|>` a control token and `<[id]>`
    /// a token by its id.
    Lark(String),
}

/// A constraint as text, small enough to be looked at.
pub(super) struct Source<'a> {
    constraint: &'a Constraint,
    text: String,
}

impl<'a> Source<'a> {
    /// The text of `constraint`.
    pub fn new(constraint: &'a Constraint) -> Result<Self, GrammarError> {
        let text = match constraint {
            Constraint::JsonObject => String::new(),
            Constraint::JsonSchema(schema) => {
                check_depth(schema)?;
                schema.to_string()
            }
            Constraint::Regex(text) | Constraint::Lark(text) => text.clone(),
        };
        if text.len() > limits::SOURCE_BYTES {
            return rejected(format!(
                "the {} has {} bytes; at most {} are allowed; make it smaller",
                constraint.name(),
                text.len(),
                limits::SOURCE_BYTES
            ));
        }
        Ok(Self { constraint, text })
    }

    /// Length of the text in bytes.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// BLAKE3 of the constraint.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.constraint.name().as_bytes()).update(b"\0").update(self.text.as_bytes());
        *hasher.finalize().as_bytes()
    }

    /// The grammar, once its shape is within bounds. Recurses as deep as a schema does.
    pub fn grammar(&self) -> Result<TopLevelGrammar, GrammarError> {
        Ok(match self.constraint {
            Constraint::JsonObject => {
                TopLevelGrammar::from_json_schema(schema::guided(json!({"type": "object"})))
            }
            Constraint::JsonSchema(schema) => {
                schema::check(schema)?;
                TopLevelGrammar::from_json_schema(schema::guided(schema.clone()))
            }
            Constraint::Regex(text) => TopLevelGrammar::from_regex(text),
            Constraint::Lark(text) => TopLevelGrammar::from_lark(lark::guided(text)?),
        })
    }
}

impl Constraint {
    /// How sentences call it.
    fn name(&self) -> &'static str {
        match self {
            Self::JsonObject => "JSON object",
            Self::JsonSchema(_) => "JSON schema",
            Self::Regex(_) => "regular expression",
            Self::Lark(_) => "lark grammar",
        }
    }
}

/// Refuses JSON that nests too deep.
pub(super) fn check_depth(value: &Value) -> Result<(), GrammarError> {
    fn is_deeper(value: &Value, left: usize) -> bool {
        match value {
            Value::Object(map) => left == 0 || map.values().any(|value| is_deeper(value, left - 1)),
            Value::Array(values) => left == 0 || values.iter().any(|value| is_deeper(value, left - 1)),
            _ => false,
        }
    }
    if is_deeper(value, limits::JSON_DEPTH) {
        return rejected(format!(
            "the JSON schema nests deeper than {} levels; move parts to $defs",
            limits::JSON_DEPTH
        ));
    }
    Ok(())
}
