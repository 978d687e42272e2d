//! Reads a JSON Schema before llguidance does: names what is not supported with its place, and refuses shapes that take too long.
//!
//! It visits what llguidance visits: the root and, through each `$ref`, what that names. llguidance copies a definition for each `$ref`
//! to it that must be intersected with something, so those are visited each time.

use std::collections::BTreeSet;

use llguidance::derivre::RegexBuilder;
use llguidance::{JsonCompileOptions, regex_to_lark};
use serde_json::{Map, Value};

use super::error::rejected;
use super::{GrammarError, limits};

/// Keywords of which several at once mean an intersection.
const APPLICATORS: [&str; 6] = ["const", "enum", "allOf", "anyOf", "oneOf", "$ref"];

/// The other keywords that llguidance follows.
const ASSERTIONS: [&str; 21] = [
    "type",
    "items",
    "additionalItems",
    "prefixItems",
    "minItems",
    "maxItems",
    "properties",
    "additionalProperties",
    "patternProperties",
    "required",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
];

/// Keywords that say nothing about which JSON fits, those of OpenAPI included. `nullable` only widens what fits.
const ANNOTATIONS: [&str; 23] = [
    "$schema",
    "$id",
    "id",
    "$anchor",
    "$comment",
    "$defs",
    "definitions",
    "$vocabulary",
    "title",
    "description",
    "default",
    "examples",
    "example",
    "deprecated",
    "readOnly",
    "writeOnly",
    "contentMediaType",
    "contentEncoding",
    "contentSchema",
    "discriminator",
    "externalDocs",
    "xml",
    "nullable",
];

/// Formats of strings that llguidance knows, as far as regular expressions can tell them: 29 February passes in each year, second 60 in
/// each minute, and a host's name of any length.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// Why bounds are refused.
const LEAKY: &str = "exclusiveMinimum or exclusiveMaximum is a whole number, and the bound on the other side is less than 1 away, which is \
                     not supported; use minimum or maximum instead";

/// `schema` with fixed white space: none but one space after each comma and colon between JSON's parts, as Python's `json.dumps` writes
/// and training data mostly has it. Free white space lets small models pad until their tokens are used up.
pub fn guided(schema: Value) -> Value {
    let mut schema = match schema {
        Value::Object(map) => Value::Object(map),
        // Anything, which an empty schema says too.
        _ => Value::Object(Map::new()),
    };
    let options = JsonCompileOptions {
        item_separator: ", ".to_owned(),
        key_separator: ": ".to_owned(),
        whitespace_flexible: false,
        ..JsonCompileOptions::default()
    };
    // Instead of options that the schema's author may have written there.
    options.apply_to(&mut schema);
    schema
}

/// Refuses what is not supported, or too much.
pub fn check(schema: &Value) -> Result<(), GrammarError> {
    if *schema == Value::Bool(false) {
        return rejected("the JSON schema is false, which allows nothing; give an object, or true");
    }
    let mut reader = Reader {
        root: schema,
        place: Vec::new(),
        seen: BTreeSet::new(),
        open: Vec::new(),
        depth: 0,
        schemas: 0,
        intersected: 0,
        properties: 0,
        patterns: 0,
        divisors: BTreeSet::new(),
        bounds: BTreeSet::new(),
    };
    reader.schema(schema, false)?;
    reader.finish()
}

struct Reader<'a> {
    root: &'a Value,
    /// Keys and indices on the way to the schema that is being read.
    place: Vec<String>,
    /// `$ref`s whose targets were visited.
    seen: BTreeSet<&'a str>,
    /// `$ref`s that are being followed.
    open: Vec<&'a str>,
    /// Schemas around the one that is being read, those that refer to it included.
    depth: usize,
    /// Schemas visited, and those among them that are intersected.
    schemas: usize,
    intersected: usize,
    properties: usize,
    patterns: usize,
    divisors: BTreeSet<u64>,
    /// Bounds of numbers that are intersected.
    bounds: BTreeSet<Bound>,
}

/// A bound of a number that may leave less than one between itself and another.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Bound {
    /// The whole number at the lower end of the part of the number line, one long, that the bound lies in or at.
    part: i64,
    is_lower: bool,
    is_whole: bool,
}

impl<'a> Reader<'a> {
    fn schema(&mut self, schema: &'a Value, intersected: bool) -> Result<(), GrammarError> {
        self.schemas += 1;
        self.intersected += usize::from(intersected);
        self.depth += 1;
        self.within_bounds()?;
        self.contents(schema, intersected)?;
        self.depth -= 1;
        Ok(())
    }

    fn contents(&mut self, schema: &'a Value, intersected: bool) -> Result<(), GrammarError> {
        let map = match schema {
            Value::Bool(_) => return Ok(()),
            Value::Object(map) => map,
            _ => return self.refuse("a schema must be an object, true or false; correct it"),
        };
        let mut kinds = 0;
        let mut asserts = false;
        for key in map.keys().map(String::as_str) {
            match key {
                _ if APPLICATORS.contains(&key) => kinds += 1,
                _ if ASSERTIONS.contains(&key) => asserts = true,
                // A sub-schema's own address changes what its `$ref`s mean, which llguidance does not follow.
                "$id" if !self.place.is_empty() => {
                    return self.refuse("$id is supported at the root only; remove it");
                }
                _ if ANNOTATIONS.contains(&key) || key.starts_with("x-") => {}
                _ => {
                    let key: String = key.chars().take(64).collect();
                    return self.refuse(&format!(
                        "the keyword {key:?} is not supported; remove it, or say it with keywords that are"
                    ));
                }
            }
        }
        let several = map.get("allOf").and_then(Value::as_array).is_some_and(|all| all.len() > 1);
        let intersected = intersected || several || kinds + usize::from(asserts) > 1;
        let bounds = bounds(map);
        if are_leaky(&bounds) {
            return self.refuse(LEAKY);
        }
        if intersected {
            self.bounds.extend(bounds);
        }
        map.iter().try_for_each(|(key, value)| self.keyword(map, key, value, intersected))
    }

    /// One keyword. Values of a wrong type are left to llguidance, whose error names the keyword.
    fn keyword(
        &mut self,
        map: &'a Map<String, Value>,
        key: &'a str,
        value: &'a Value,
        intersected: bool,
    ) -> Result<(), GrammarError> {
        match (key, value) {
            ("$ref", Value::String(target)) => self.reference(target, intersected),
            ("properties", Value::Object(properties)) => {
                self.properties += properties.len();
                self.each(key, properties, intersected)
            }
            ("patternProperties", Value::Object(properties)) => {
                self.patterns += properties.len();
                for pattern in properties.keys() {
                    self.expression(key, pattern)?;
                }
                self.each(key, properties, intersected)
            }
            ("required", Value::Array(names)) => {
                self.properties += names.len();
                Ok(())
            }
            ("const" | "enum", _) => {
                self.properties += names(value);
                Ok(())
            }
            ("allOf" | "anyOf" | "oneOf" | "prefixItems" | "items", Value::Array(schemas)) => {
                for (index, schema) in schemas.iter().enumerate() {
                    let place = format!("{key}/{index}");
                    self.within(place, |reader| reader.schema(schema, intersected))?;
                }
                Ok(())
            }
            ("items" | "additionalItems" | "additionalProperties", _) => {
                self.within(key.to_owned(), |reader| reader.schema(value, intersected))
            }
            // llguidance counts a name that comes twice twice. Only names of its own choice can.
            ("minProperties", Value::Number(least)) => {
                let required =
                    map.get("required").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                let required: BTreeSet<&str> = required.iter().filter_map(Value::as_str).collect();
                let patterns = map.get("patternProperties").and_then(Value::as_object);
                let is_closed = map.get("additionalProperties") == Some(&Value::Bool(false))
                    && patterns.is_none_or(Map::is_empty);
                if !is_closed && least.as_u64().is_some_and(|least| least > required.len() as u64 + 1) {
                    return self.refuse(
                        "minProperties is supported up to one more than the names in required, because other names could come twice; \
                         name more properties in required",
                    );
                }
                Ok(())
            }
            ("pattern", Value::String(pattern)) => self.expression(key, pattern),
            ("format", Value::String(format)) => {
                // Other types' formats, as OpenAPI's int64, say nothing about their JSON.
                let is_text = match map.get("type") {
                    None => true,
                    Some(Value::Array(types)) => types.iter().any(|kind| kind == "string"),
                    Some(kind) => kind == "string",
                };
                if is_text && !FORMATS.contains(&format.as_str()) {
                    let format: String = format.chars().take(64).collect();
                    return self.refuse(&format!("the format {format:?} is not supported; use pattern"));
                }
                Ok(())
            }
            ("multipleOf", Value::Number(number)) => {
                let Some(divisor) = number.as_f64().and_then(whole).filter(|whole| *whole <= limits::DIVISOR)
                else {
                    return self.refuse(&format!(
                        "multipleOf must have digits that are at most {}; use a rounder number",
                        limits::DIVISOR
                    ));
                };
                self.divisors.insert(divisor);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn each(
        &mut self,
        key: &str,
        schemas: &'a Map<String, Value>,
        intersected: bool,
    ) -> Result<(), GrammarError> {
        for (name, schema) in schemas {
            let name: String = name.chars().take(64).collect();
            let place = format!("{key}/{}", name.replace('~', "~0").replace('/', "~1"));
            self.within(place, |reader| reader.schema(schema, intersected))?;
        }
        Ok(())
    }

    fn within(
        &mut self,
        place: String,
        read: impl FnOnce(&mut Self) -> Result<(), GrammarError>,
    ) -> Result<(), GrammarError> {
        self.place.push(place);
        let result = read(self);
        self.place.pop();
        result
    }

    fn reference(&mut self, reference: &'a str, intersected: bool) -> Result<(), GrammarError> {
        let target = self.target(reference)?;
        let is_new = self.seen.insert(reference);
        if !is_new && (!intersected || self.open.contains(&reference)) {
            return Ok(());
        }
        self.open.push(reference);
        // Places in a definition are told from the definition, which may be reached in many ways.
        let here = std::mem::replace(&mut self.place, vec![reference.trim_start_matches("#/").to_owned()]);
        let result = self.schema(target, intersected);
        self.place = here;
        self.open.pop();
        result
    }

    fn target(&self, reference: &str) -> Result<&'a Value, GrammarError> {
        if matches!(reference, "#" | "#/") {
            return Ok(self.root);
        }
        let name: String = reference.chars().take(64).collect();
        let Some(path) = reference.strip_prefix("#/") else {
            return self.refuse(&format!(
                "$ref {name:?} leads outside the schema, or to an anchor; copy its target to $defs and refer to \"#/$defs/NAME\""
            ));
        };
        if path.contains(['~', '%']) {
            return self
                .refuse(&format!("$ref {name:?} has escapes; rename its target so that it needs none"));
        }
        let step = |value: &'a Value, part: &str| match value {
            Value::Array(values) => part.parse().ok().and_then(|index: usize| values.get(index)),
            value => value.get(part),
        };
        match path.split('/').try_fold(self.root, step) {
            Some(target) => Ok(target),
            None => self.refuse(&format!("$ref {name:?} leads nowhere; add its target to $defs")),
        }
    }

    /// Refuses an expression that llguidance cannot read, as one with lookaround.
    fn expression(&self, key: &str, pattern: &str) -> Result<(), GrammarError> {
        match RegexBuilder::new().mk_regex_for_serach(&regex_to_lark(pattern, "dw")) {
            Ok(_) => Ok(()),
            Err(_) => self.refuse(&format!(
                "a regular expression in {key} is wrong, or has lookaround or backreferences, which are not supported; \
                 write it without"
            )),
        }
    }

    fn within_bounds(&self) -> Result<(), GrammarError> {
        let too_much = |what: &str, limit: usize| {
            self.refuse(&format!(
                "the schema has more than {limit} {what}; make it smaller, or split the turn"
            ))
        };
        if self.schemas > limits::SCHEMAS {
            return too_much("parts, with definitions counted each time they are combined", limits::SCHEMAS);
        }
        if self.depth > limits::SCHEMA_DEPTH {
            return too_much("levels, with $ref followed", limits::SCHEMA_DEPTH);
        }
        if self.properties > limits::PROPERTIES {
            return too_much("property names", limits::PROPERTIES);
        }
        if self.patterns > limits::PATTERN_PROPERTIES {
            return too_much("patternProperties", limits::PATTERN_PROPERTIES);
        }
        let pairs = self.patterns * self.patterns.saturating_sub(1) / 2;
        if pairs * (1 + self.intersected) > limits::PATTERN_PAIRS {
            return self.refuse("patternProperties are combined too often (allOf, or $ref beside other keywords); write them once");
        }
        Ok(())
    }

    fn finish(&self) -> Result<(), GrammarError> {
        self.within_bounds()?;
        if are_leaky(&self.bounds) {
            return self.refuse(LEAKY);
        }
        // Divisors that are combined are multiplied.
        let product = self.divisors.iter().try_fold(1u64, |product, divisor| product.checked_mul(*divisor));
        if self.intersected > 0 && product.is_none_or(|product| product > limits::DIVISOR) {
            return rejected(format!(
                "the product of all multipleOf in a schema that combines others is above {}; use fewer, or rounder ones",
                limits::DIVISOR
            ));
        }
        Ok(())
    }

    fn refuse<T>(&self, sentence: &str) -> Result<T, GrammarError> {
        let place = match self.place.is_empty() {
            true => "at its root".to_owned(),
            false => format!("at /{}", self.place.join("/")),
        };
        rejected(format!("the JSON schema, {place}: {sentence}"))
    }
}

/// Names in the objects of a literal, each of which becomes a property.
fn names(value: &Value) -> usize {
    match value {
        Value::Object(map) => map.len() + map.values().map(names).sum::<usize>(),
        Value::Array(values) => values.iter().map(names).sum(),
        _ => 0,
    }
}

/// The bounds of numbers in `map` that `are_leaky` looks at: whole ones that are excluded, and all that are not whole.
fn bounds(map: &Map<String, Value>) -> BTreeSet<Bound> {
    let keys =
        [("minimum", true), ("exclusiveMinimum", true), ("maximum", false), ("exclusiveMaximum", false)];
    let found = keys.into_iter().filter_map(|(key, is_lower)| {
        let bound = map.get(key)?.as_f64()?;
        let is_whole = bound.fract() == 0.0;
        // A whole number that bounds from above ends the part below it.
        let part = (bound.floor() as i64).saturating_sub(i64::from(is_whole && !is_lower));
        (key.starts_with("exclusive") || !is_whole).then_some(Bound { part, is_lower, is_whole })
    });
    found.collect()
}

/// Whether llguidance would allow a bound that is excluded: it does if that is a whole number and the bound on the other side lies before the
/// next one. So it allows 0 above 0 and up to 0.5.
fn are_leaky(bounds: &BTreeSet<Bound>) -> bool {
    bounds
        .iter()
        .filter(|bound| bound.is_whole)
        .any(|bound| bounds.contains(&Bound { part: bound.part, is_lower: !bound.is_lower, is_whole: false }))
}

/// The digits of `number` without its decimal point; none if it has too many.
fn whole(number: f64) -> Option<u64> {
    let mut number = number.abs();
    for _ in 0..=9 {
        if number.fract() == 0.0 && (1.0..1e15).contains(&number) {
            return Some(number as u64);
        }
        // Rounded, because decimals are not exact in binary.
        number = (number * 10.0 * 1e6).round() / 1e6;
    }
    None
}
