//! What a reply may be, as a grammar in llguidance's variant of Lark's syntax
//! (<https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md>).

use serde_json::{Map, Value, json};
use turnmill_schema::{ResponseFormat, Tool, ToolChoice};

use super::format::{Arguments, Description, ToolFormat};
use super::rules::Rules;

/// What is asked of a reply.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The turn's tools.
    pub tools: &'a [Tool],
    /// Whether one is called.
    pub choice: &'a ToolChoice,
    /// Whether several may be called.
    pub parallel: bool,
    /// The form of the content.
    pub response: &'a ResponseFormat,
    /// Whether the grammar starts right after the marker that ends thoughts, where models write line breaks.
    pub after_thinking: bool,
}

/// White space is written as Python writes it, which is what models have read most. Were it free, models would write it for ever.
const SEPARATORS: (&str, &str) = (", ", ": ");

/// Line breaks after thoughts.
const GAP: &str = "GAP: /\\n{1,2}/\n";

/// White space in the first call of a reply that was free until then: the call may have begun already.
const FREE: &str = "WS: /[ \\n\\r\\t]{1,4}/\n";

impl ToolFormat {
    /// The grammar of a reply, or of the rest of one; none if anything may be written.
    ///
    /// * `required` or a named tool: the whole reply, calls only.
    /// * `auto` and a form of the content: the whole reply, calls or content.
    /// * `auto` otherwise: what follows the trigger of the first call ([`super::Parser::trigger`]) to the end of the reply.
    /// * `none`, or no tools: [`response_grammar`].
    ///
    /// `control` gives the id of the control token that is spelled like a marker, if there is one; else the marker is text. Of a
    /// tool whose parameters list properties and do not say whether there may be others, no others are written.
    pub fn grammar(self, asked: &Asked<'_>, control: &dyn Fn(&str) -> Option<u32>) -> Option<String> {
        let callable: Vec<&Tool> = match asked.choice {
            ToolChoice::None => Vec::new(),
            ToolChoice::Auto | ToolChoice::Required => asked.tools.iter().collect(),
            ToolChoice::Named(name) => asked.tools.iter().filter(|tool| tool.name == *name).collect(),
        };
        if callable.is_empty() {
            return response_grammar(asked.response, asked.after_thinking);
        }
        let free = *asked.choice == ToolChoice::Auto && asked.response.is_text();
        let writer = Writer { description: self.description(), control, parallel: asked.parallel };
        let mut lark = String::from("%llguidance {}\n");
        let gap = if asked.after_thinking && !free { "GAP? " } else { "" };
        if *asked.choice == ToolChoice::Auto && !free {
            lark.push_str(&format!("start: {gap}calls | {gap}content\n"));
            lark.push_str(&format!("content: {}\n", content(asked.response)?));
        } else {
            lark.push_str(&format!("start: {gap}calls\n"));
        }
        if !gap.is_empty() {
            lark.push_str(GAP);
        }
        writer.calls(&callable, free, &mut lark);
        Some(lark)
    }
}

/// The grammar of a reply that calls no tools; none if anything may be written.
pub fn response_grammar(response: &ResponseFormat, after_thinking: bool) -> Option<String> {
    match response {
        ResponseFormat::Text => None,
        // As it is, so that errors name its own lines.
        ResponseFormat::Lark { grammar } if !after_thinking => Some(grammar.clone()),
        _ => {
            let content = content(response)?;
            let (gap, rule) = if after_thinking { ("GAP? ", GAP) } else { ("", "") };
            Some(format!("%llguidance {{}}\nstart: {gap}content\ncontent: {content}\n{rule}"))
        }
    }
}

/// The body of a rule for content of this form.
fn content(response: &ResponseFormat) -> Option<String> {
    Some(match response {
        ResponseFormat::Text => return None,
        ResponseFormat::JsonObject => json_rule(&json!({"type": "object"})),
        ResponseFormat::JsonSchema { schema } => json_rule(schema),
        ResponseFormat::Regex { regex } => regex_literal(regex),
        ResponseFormat::Lark { grammar } => format!("%lark {{\n{grammar}\n}}"),
    })
}

/// Writes the rules of calls.
struct Writer<'a> {
    description: &'static Description,
    control: &'a dyn Fn(&str) -> Option<u32>,
    parallel: bool,
}

impl Writer<'_> {
    /// Adds the rule `calls` and those it needs. `free`: the first marker has been written, and the white space of the first call
    /// is free.
    fn calls(&self, tools: &[&Tool], free: bool, lark: &mut String) {
        let Description { begin, begin_required, end, padding, between, list, .. } = *self.description;
        let begin = if begin_required { marker(begin, self.control) } else { String::new() };
        let end = marker(end, self.control);
        let (padding, between) = (literal(padding), literal(between));
        // Around all calls, and around each.
        let (open, close, before, after) = if list {
            (format!("{begin} \"[\""), "\"]\"", String::new(), String::new())
        } else {
            (String::new(), "", format!("{begin} {padding}"), format!("{padding} {end}"))
        };
        let (open, first) = match (free, list) {
            (false, _) => (open, format!("{before} call {after}")),
            (true, true) => ("WS? \"[\"".to_owned(), "free".to_owned()),
            (true, false) => (open, format!("WS? free WS? {end}")),
        };
        let further =
            if self.parallel { format!("({between} {before} call {after})*") } else { String::new() };
        lark.push_str(&format!("calls: {open} {first} {further} {close}\n"));
        if free {
            lark.push_str(FREE);
            self.alternatives("free", tools, |tool| self.call(tool, true), lark);
        }
        if !free || self.parallel {
            self.alternatives("call", tools, |tool| self.call(tool, false), lark);
        }
        self.arguments(tools, lark);
    }

    fn alternatives(
        &self,
        rule: &str,
        tools: &[&Tool],
        mut body: impl FnMut((usize, &Tool)) -> String,
        lark: &mut String,
    ) {
        let bodies: Vec<String> = tools.iter().enumerate().map(|(at, tool)| body((at, tool))).collect();
        lark.push_str(&format!("{rule}: {}\n", bodies.join("\n    | ")));
    }

    fn call(&self, (at, tool): (usize, &Tool), free: bool) -> String {
        match self.description.arguments {
            Arguments::Json { key } => {
                let name = Value::from(tool.name.as_str()).to_string();
                if free {
                    let name = literal(&name);
                    format!(
                        "\"{{\" WS? (\"\\\"type\\\"\" WS? \":\" WS? \"\\\"function\\\"\" WS? \",\" WS?)? \"\\\"name\\\"\" WS? \":\" \
                         WS? {name} WS? \",\" WS? (\"\\\"arguments\\\"\" | \"\\\"parameters\\\"\") WS? \":\" WS? args{at} WS? \"}}\""
                    )
                } else {
                    // In pieces, as JSON's own rules are: if content may be JSON as well, the lexer cannot go back to a `{`.
                    let (comma, colon) = SEPARATORS;
                    let [key, name] = [format!("\"{key}\""), name].map(|text| literal(&text));
                    let [comma, colon] = [comma, colon].map(literal);
                    format!("\"{{\" \"\\\"name\\\"\" {colon} {name} {comma} {key} {colon} args{at} \"}}\"")
                }
            }
            Arguments::AfterName { marker: text, .. } => {
                format!("{} {} args{at}", literal(&tool.name), marker(text, self.control))
            }
            Arguments::Bare { before_name, .. } => {
                format!("{} args{at}", literal(&format!("{before_name}{}", tool.name)))
            }
        }
    }

    /// Adds a rule `argsN` for the arguments of each tool.
    fn arguments(&self, tools: &[&Tool], lark: &mut String) {
        let schemas: Vec<Value> = tools.iter().map(|tool| closed(tool.parameters.as_ref())).collect();
        let Arguments::Bare { quote, .. } = self.description.arguments else {
            for (at, schema) in schemas.iter().enumerate() {
                lark.push_str(&format!("args{at}: {}\n", json_rule(schema)));
            }
            return;
        };
        let mut rules = Rules::new(quote, (self.control)(quote));
        for (at, schema) in schemas.iter().enumerate() {
            let body = rules.object_of(schema);
            lark.push_str(&format!("args{at}: {body}\n"));
        }
        lark.push_str(&rules.finish());
    }
}

/// A tool's parameters, of which nothing but an object can be made, with no other properties than those they list. A schema that
/// combines others is left as it is: what one of them lists, another may not. Without parameters the object is empty, as OpenAI has it.
fn closed(parameters: Option<&Map<String, Value>>) -> Value {
    const COMBINES: [&str; 10] = [
        "additionalProperties",
        "unevaluatedProperties",
        "patternProperties",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "if",
        "$ref",
        "enum",
    ];
    let Some(parameters) = parameters else {
        return json!({"type": "object", "properties": {}, "additionalProperties": false});
    };
    let mut schema = parameters.clone();
    schema.entry("type").or_insert_with(|| json!("object"));
    let listed = schema.get("properties").and_then(Value::as_object);
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    let lists_all = listed.is_some_and(|listed| {
        !listed.is_empty() && required.filter_map(Value::as_str).all(|key| listed.contains_key(key))
    });
    if lists_all && !COMBINES.iter().any(|key| schema.contains_key(*key)) {
        schema.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
    Value::Object(schema)
}

/// JSON that fits a schema.
pub(super) fn json_rule(schema: &Value) -> String {
    let (comma, colon) = SEPARATORS;
    let mut schema = schema.as_object().cloned().unwrap_or_default();
    let options = json!({"whitespace_flexible": false, "item_separator": comma, "key_separator": colon});
    schema.insert("x-guidance".to_owned(), options);
    format!("%json {}", Value::Object(schema))
}

/// A text, as a literal; nothing for an empty one.
pub(super) fn literal(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    // Lark's literals are JSON strings in which this character is escaped as well.
    Value::from(text).to_string().replace('\x7f', "\\u007f")
}

/// A marker: its control token, or its text.
pub(super) fn marker(text: &str, control: &dyn Fn(&str) -> Option<u32>) -> String {
    match control(text).filter(|_| !text.is_empty()) {
        // By its id: Lark's form for names has no place for names like `[ARGS]`.
        Some(id) => format!("<[{id}]>"),
        None => literal(text),
    }
}

/// A regular expression, as a literal.
pub(super) fn regex_literal(regex: &str) -> String {
    if regex.is_empty() {
        return "\"\"".to_owned();
    }
    let mut lark = String::from("/");
    let mut chars = regex.chars();
    while let Some(c) = chars.next() {
        match c {
            '/' => lark.push_str("\\/"),
            '\n' => lark.push_str("\\n"),
            '\\' => match chars.next() {
                Some('\n') => lark.push_str("\\n"),
                Some(next) => lark.extend(['\\', next]),
                None => lark.push_str("\\\\"),
            },
            _ => lark.push(c),
        }
    }
    lark.push('/');
    lark
}
