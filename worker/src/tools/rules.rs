//! Grammars of objects with bare keys, made from JSON Schemas.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::bare;
use super::grammar::{json_rule, literal, marker, regex_literal};

/// Keywords of numbers, which JSON and bare objects spell alike.
const NUMERIC: [&str; 6] =
    ["type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];

/// Longest text and most items that a schema's own bounds may ask for: what is above is no bound.
const MOST: u64 = 1 << 20;

/// Makes rules. What a schema says of types, properties, enumerations, lengths, patterns and ranges holds; a schema that says
/// something else is that of any value.
pub(super) struct Rules {
    quote: &'static str,
    control: Option<u32>,
    lark: String,
    /// Rules so far.
    count: usize,
    /// Rules of schemas that are referred to.
    references: HashMap<String, String>,
}

impl Rules {
    pub(super) fn new(quote: &'static str, control: Option<u32>) -> Self {
        Self { quote, control, lark: String::new(), count: 0, references: HashMap::new() }
    }

    /// The rules, and those that any value needs.
    pub(super) fn finish(mut self) -> String {
        let any_text = self.text(&json!({}));
        let scalar = json_rule(&json!({"type": ["number", "boolean", "null"]}));
        self.lark.push_str(&format!(
            "any: {any_text} | {scalar} | anylist | anyobject\n\
             anylist: \"[\" (any (\",\" any)*)? \"]\"\n\
             anyobject: \"{{\" (anypair (\",\" anypair)*)? \"}}\"\n\
             anypair: ANYKEY \":\" any\n\
             ANYKEY: /[A-Za-z_][A-Za-z0-9_]{{0,63}}/\n"
        ));
        self.lark
    }

    /// The body of a rule for an object that fits `root`, a tool's parameters.
    pub(super) fn object_of(&mut self, root: &Value) -> String {
        self.references.clear();
        let Some(schema) = root.as_object() else { return "anyobject".to_owned() };
        if ["$ref", "anyOf", "oneOf", "allOf"].iter().any(|key| schema.contains_key(*key)) {
            return self.value(root, root);
        }
        self.object(schema, root)
    }

    /// An expression for a value that fits `schema`.
    fn value(&mut self, schema: &Value, root: &Value) -> String {
        let Some(schema) = schema.as_object().filter(|schema| !schema.is_empty()) else {
            return "any".to_owned();
        };
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            return self.reference(reference, root);
        }
        if let Some(value) = schema.get("const") {
            return self.exactly(value);
        }
        if let Some(values) = schema.get("enum").and_then(Value::as_array).filter(|values| !values.is_empty())
        {
            let values: Vec<String> = values.iter().map(|value| self.exactly(value)).collect();
            return format!("({})", values.join(" | "));
        }
        for keyword in ["anyOf", "oneOf"] {
            if let Some(options) = schema.get(keyword).and_then(Value::as_array).filter(|all| !all.is_empty())
            {
                let options: Vec<String> = options.iter().map(|option| self.value(option, root)).collect();
                return format!("({})", options.join(" | "));
            }
        }
        match schema.get("allOf").and_then(Value::as_array).map(Vec::as_slice) {
            Some([only]) => return self.value(only, root),
            Some(_) => return "any".to_owned(),
            None => {}
        }
        let of_type = match schema.get("type") {
            Some(Value::Array(kinds)) => {
                let kinds: Vec<&str> = kinds.iter().filter_map(Value::as_str).collect();
                let kinds: Vec<String> = kinds.iter().map(|kind| self.typed(kind, schema, root)).collect();
                if kinds.is_empty() { "any".to_owned() } else { format!("({})", kinds.join(" | ")) }
            }
            Some(Value::String(kind)) => self.typed(kind, schema, root),
            _ if schema.contains_key("properties") => self.typed("object", schema, root),
            _ if schema.contains_key("items") => self.typed("array", schema, root),
            _ => "any".to_owned(),
        };
        if schema.get("nullable") == Some(&Value::Bool(true)) {
            return format!("({of_type} | \"null\")");
        }
        of_type
    }

    fn typed(&mut self, kind: &str, schema: &Map<String, Value>, root: &Value) -> String {
        match kind {
            "object" => {
                let body = self.object(schema, root);
                self.rule(&body)
            }
            "array" => self.list(schema, root),
            "string" => self.text(&Value::Object(schema.clone())),
            "number" | "integer" => {
                let mut numeric: Map<String, Value> = schema
                    .iter()
                    .filter(|(key, _)| NUMERIC.contains(&key.as_str()))
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .collect();
                numeric.insert("type".to_owned(), json!(kind));
                let body = json_rule(&Value::Object(numeric));
                self.rule(&body)
            }
            "boolean" => "(\"true\" | \"false\")".to_owned(),
            "null" => "\"null\"".to_owned(),
            _ => "any".to_owned(),
        }
    }

    /// The schema at a place of the root, by a rule of its own, so that it may refer to itself.
    fn reference(&mut self, reference: &str, root: &Value) -> String {
        if let Some(rule) = self.references.get(reference) {
            return rule.clone();
        }
        let Some(schema) = reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer)) else {
            return "any".to_owned();
        };
        // A reference to nothing but references has no end.
        if schema.get("$ref").is_some() {
            return "any".to_owned();
        }
        let rule = self.name();
        self.references.insert(reference.to_owned(), rule.clone());
        let body = self.value(schema, root);
        self.lark.push_str(&format!("{rule}: {body}\n"));
        rule
    }

    /// The properties of a schema in its order, those that are not required left out or not.
    fn object(&mut self, schema: &Map<String, Value>, root: &Value) -> String {
        let none = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .map(|keys| keys.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let unlisted = required.iter().filter(|key| !properties.contains_key(**key));
        let any = Value::Bool(true);
        let members: Vec<(&str, &Value)> = properties
            .iter()
            .map(|(key, schema)| (key.as_str(), schema))
            .chain(unlisted.map(|key| (*key, &any)))
            .collect();
        if members.is_empty() {
            return match schema.get("additionalProperties") {
                Some(Value::Bool(false)) => "\"{}\"".to_owned(),
                Some(values @ Value::Object(_)) => {
                    let value = self.value(values, root);
                    let pair = self.rule(&format!("ANYKEY \":\" {value}"));
                    format!("\"{{\" ({pair} (\",\" {pair})*)? \"}}\"")
                }
                _ => "anyobject".to_owned(),
            };
        }
        // From the last member to the first: what may follow if no member, or one, has been written.
        let (mut first, mut more) = ("\"\"".to_owned(), "\"\"".to_owned());
        for (key, schema) in members.into_iter().rev() {
            let value = self.value(schema, root);
            let key_text = format!("{}:", bare::render_key(key, self.quote));
            let member = format!("{} {value}", self.text_with_markers(&key_text));
            let rest = more.clone();
            let optional = !required.contains(&key);
            let skip = |or: &str| if optional { format!(" | {or}") } else { String::new() };
            let (next_first, next_more) =
                (format!("{member} {rest}{}", skip(&first)), format!("\",\" {member} {rest}{}", skip(&more)));
            (first, more) = (self.rule(&next_first), self.rule(&next_more));
        }
        format!("\"{{\" {first} \"}}\"")
    }

    fn list(&mut self, schema: &Map<String, Value>, root: &Value) -> String {
        let item = match schema.get("items") {
            Some(items) => self.value(items, root),
            None => "any".to_owned(),
        };
        let (least, most) = bounds(schema, "minItems", "maxItems");
        let further = |least: u64| match most {
            Some(most) if most <= 1 => String::new(),
            Some(most) => format!(" (\",\" {item}){{{least},{}}}", most - 1),
            None => format!(" (\",\" {item}){{{least},}}"),
        };
        let body = match least {
            _ if most == Some(0) => "\"[]\"".to_owned(),
            0 => format!("\"[\" ({item}{})? \"]\"", further(0)),
            _ => format!("\"[\" {item}{} \"]\"", further(least - 1)),
        };
        self.rule(&body)
    }

    /// A text between markers. The marker that ends it is not in it.
    fn text(&mut self, schema: &Value) -> String {
        let none = Map::new();
        let schema = schema.as_object().unwrap_or(&none);
        let (least, most) = bounds(schema, "minLength", "maxLength");
        let most_text = most.map(|most| most.to_string()).unwrap_or_default();
        let pattern = schema.get("pattern").and_then(Value::as_str);
        let quote = literal(self.quote);
        let empty = self.text_with_markers(&format!("{0}{0}", self.quote));
        if most == Some(0) {
            return empty;
        }
        let body = self.name().to_uppercase();
        let matches = pattern.map(|pattern| format!(" & {}", unanchored(pattern))).unwrap_or_default();
        self.lark.push_str(&format!(
            "{body}: /(?s:.{{{},{most_text}}})/ & ~(/(?s:.*)/ {quote} /(?s:.*)/){matches}\n",
            least.max(1)
        ));
        let full = match self.control {
            Some(id) => format!("<[{id}]> {body} <[{id}]>"),
            // One terminal, which ends at the marker; else text would be read past the marker's first character.
            None => {
                let terminal = self.name().to_uppercase();
                self.lark.push_str(&format!("{terminal}: {quote} {body} {quote}\n"));
                terminal
            }
        };
        // With a pattern, the empty text is not tried.
        if least == 0 && pattern.is_none() { format!("({full} | {empty})") } else { format!("({full})") }
    }

    /// One value.
    fn exactly(&self, value: &Value) -> String {
        self.text_with_markers(&bare::render(value, self.quote))
    }

    /// A text that holds markers.
    fn text_with_markers(&self, text: &str) -> String {
        let quote = marker(self.quote, &|_| self.control);
        let pieces: Vec<String> = text.split(self.quote).map(literal).collect();
        match self.control {
            Some(_) => pieces.join(&format!(" {quote} ")).trim().to_owned(),
            None => literal(text),
        }
    }

    fn rule(&mut self, body: &str) -> String {
        let name = self.name();
        self.lark.push_str(&format!("{name}: {body}\n"));
        name
    }

    fn name(&mut self) -> String {
        self.count += 1;
        format!("r{}", self.count)
    }
}

fn bounds(schema: &Map<String, Value>, least: &str, most: &str) -> (u64, Option<u64>) {
    let bound = |key: &str| schema.get(key).and_then(Value::as_u64).filter(|bound| *bound <= MOST);
    (bound(least).unwrap_or(0), bound(most))
}

/// A schema's pattern, which may match anywhere in a text unless it says otherwise, as an expression for whole texts.
fn unanchored(pattern: &str) -> String {
    let (start, rest) = match pattern.strip_prefix('^') {
        Some(rest) => ("", rest),
        None => ("(?s:.*)", pattern),
    };
    let (rest, end) = match rest.strip_suffix('$') {
        Some(rest) if !rest.ends_with('\\') => (rest, ""),
        _ => (rest, "(?s:.*)"),
    };
    regex_literal(&format!("{start}(?:{rest}){end}"))
}
