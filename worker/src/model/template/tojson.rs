//! The filter `tojson` as templates know it: Python's `json.dumps`, with `ensure_ascii` off unless asked for, as transformers sets
//! it up. Jinja2's and minijinja's own filters escape HTML, which no model was trained on.
//!
//! Written after the documentation of Python's `json` module and what Python 3.11 answers.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// How deep a value may be nested. Python stops at about 1,000, and each level takes our stack too.
const MAX_DEPTH: usize = 256;
/// Bytes of text that cost a step of the engine's fuel, as in minijinja.
const BYTES_PER_STEP: usize = 64;

/// `value|tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`; arguments have a name or a place.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    places: Rest<Value>,
    named: Kwargs,
) -> Result<String, Error> {
    let argument = |place: usize, name: &str| -> Result<Option<Value>, Error> {
        let given = places.get(place).map_or_else(|| named.get(name), |value| Ok(Some(value.clone())))?;
        Ok(given.filter(|value: &Value| !value.is_none()))
    };
    if places.len() > 4 {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (ascii, sorted) = (is_true(argument(0, "ensure_ascii")?), is_true(argument(3, "sort_keys")?));
    let indent = argument(1, "indent")?.map(indentation).transpose()?;
    let (item, key) = match argument(2, "separators")? {
        Some(pair) => pair_of_texts(&pair)?,
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    named.assert_all_used()?;
    let mut writer =
        Writer { state, out: String::new(), paid: 0, ascii, sorted, indent, item, key, depth: 0 };
    writer.value(value)?;
    Ok(writer.out)
}

/// A number of spaces, or a text.
fn indentation(value: Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        // Python takes a negative number for 0. A line's indent beyond 64 KiB is not meant.
        None => Ok(" ".repeat(usize::try_from(i64::try_from(value)?.clamp(0, 1 << 16)).unwrap_or(0))),
    }
}

fn pair_of_texts(pair: &Value) -> Result<(String, String), Error> {
    let texts: Vec<Value> = pair.try_iter()?.collect();
    match texts.iter().map(Value::as_str).collect::<Option<Vec<_>>>().as_deref() {
        Some(&[item, key]) => Ok((item.to_owned(), key.to_owned())),
        _ => Err(wrong("tojson: separators must be two texts".to_owned())),
    }
}

fn wrong(text: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, text)
}

struct Writer<'a, 'env, 'vm> {
    state: &'a State<'env, 'vm>,
    out: String,
    /// Bytes of it that are paid for with fuel.
    paid: usize,
    ascii: bool,
    sorted: bool,
    /// What a line begins with, once for each level; none: there is one line.
    indent: Option<String>,
    item: String,
    key: String,
    depth: usize,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        self.pay()?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)?),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Map => return self.map(value),
            ValueKind::Seq | ValueKind::Iterable => return self.list(value),
            kind => return Err(wrong(format!("tojson: {kind} has no JSON"))),
        }
        Ok(())
    }

    fn list(&mut self, list: &Value) -> Result<(), Error> {
        self.open('[')?;
        let mut first = true;
        for value in list.try_iter()? {
            self.next(&mut first);
            self.value(&value)?;
        }
        self.close(']', first);
        Ok(())
    }

    fn map(&mut self, map: &Value) -> Result<(), Error> {
        self.open('{')?;
        let mut keys: Vec<Value> = map.try_iter()?.collect();
        if self.sorted {
            let is_text = |key: &Value| key.as_str().is_some();
            if !keys.iter().all(is_text) && keys.iter().any(is_text) {
                return Err(wrong("tojson: keys of several kinds cannot be sorted".to_owned()));
            }
            keys.sort();
        }
        let mut first = true;
        for key in keys {
            self.next(&mut first);
            match key.kind() {
                ValueKind::String => self.text(key.as_str().unwrap_or_default()),
                ValueKind::None => self.text("null"),
                ValueKind::Bool => self.text(if key.is_true() { "true" } else { "false" }),
                ValueKind::Number => self.text(&number(&key)?),
                kind => return Err(wrong(format!("tojson: {kind} is no key of JSON"))),
            }
            self.out.push_str(&self.key);
            self.value(&map.get_item(&key)?)?;
        }
        self.close('}', first);
        Ok(())
    }

    fn open(&mut self, bracket: char) -> Result<(), Error> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(wrong(format!("tojson: the value is nested more than {MAX_DEPTH} deep")));
        }
        self.out.push(bracket);
        Ok(())
    }

    fn next(&mut self, first: &mut bool) {
        if !std::mem::take(first) {
            self.out.push_str(&self.item);
        }
        self.line();
    }

    fn close(&mut self, bracket: char, empty: bool) {
        self.depth -= 1;
        if !empty {
            self.line();
        }
        self.out.push(bracket);
    }

    fn line(&mut self) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            (0..self.depth).for_each(|_| self.out.push_str(indent));
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                '\0'..='\u{1f}' => self.escape(character),
                '\u{7f}'.. if self.ascii => self.escape(character),
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }

    /// UTF-16 in hexadecimal digits.
    fn escape(&mut self, character: char) {
        for unit in character.encode_utf16(&mut [0; 2]) {
            write!(self.out, "\\u{unit:04x}").expect("a text can be written to");
        }
    }

    /// What is written costs fuel while it is written: a value that holds itself many times over grows without bound.
    fn pay(&mut self) -> Result<(), Error> {
        let steps = (self.out.len() - self.paid) / BYTES_PER_STEP;
        self.paid += steps * BYTES_PER_STEP;
        self.state.consume_fuel(1 + steps as u64)
    }
}

fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    Ok(float(f64::try_from(value.clone())?))
}

/// A float as Python's `repr` has it: the fewest digits that read back equal, with an exponent from 1e16 on and below 1e-4.
fn float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').expect("the format has an exponent");
    let exponent: i32 = exponent.parse().expect("an exponent is a number");
    match exponent {
        -4..16 => {
            let plain = value.to_string();
            if plain.contains('.') { plain } else { format!("{plain}.0") }
        }
        _ => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

#[cfg(test)]
mod tests {
    use minijinja::context;
    use minijinja::value::Serde;
    use proptest::prelude::*;
    use serde_json::{Map, json};

    use super::*;
    use crate::model::template::environment::environment;

    fn rendered(expression: &str, value: &serde_json::Value) -> Result<String, Error> {
        let environment = environment().expect("an environment");
        environment.render_str(&format!("{{{{ {expression} }}}}"), context! { v => Serde(value) })
    }

    /// The second column is what Python 3.11 says.
    #[test]
    fn values_are_written_as_python_writes_them() {
        let value = json!({
            "b": [1, -2, true, null, 1.0, 0.1, []],
            "a": {"é": "<b>it's</b> & \"x\"\\\n\t\r\u{8}\u{c}\u{1}\u{7f} 五😀/", "": {}},
        });
        for (expression, expected) in [
            (
                "v|tojson",
                r#"{"b": [1, -2, true, null, 1.0, 0.1, []], "a": {"é": "<b>it's</b> & \"x\"\\\n\t\r\b\f\u0001DEL 五😀/", "": {}}}"#,
            ),
            (
                "v|tojson(ensure_ascii=True)",
                r#"{"b": [1, -2, true, null, 1.0, 0.1, []], "a": {"\u00e9": "<b>it's</b> & \"x\"\\\n\t\r\b\f\u0001\u007f \u4e94\ud83d\ude00/", "": {}}}"#,
            ),
            (
                "v|tojson(true)",
                r#"{"b": [1, -2, true, null, 1.0, 0.1, []], "a": {"\u00e9": "<b>it's</b> & \"x\"\\\n\t\r\b\f\u0001\u007f \u4e94\ud83d\ude00/", "": {}}}"#,
            ),
            ("v.b|tojson(separators=(',', ':'))", "[1,-2,true,null,1.0,0.1,[]]"),
            ("v.b|tojson(separators=none, indent=none)", "[1, -2, true, null, 1.0, 0.1, []]"),
            ("v.b|tojson(indent=2)", "[\n  1,\n  -2,\n  true,\n  null,\n  1.0,\n  0.1,\n  []\n]"),
            (
                "{'a': {'b': [1]}, 'c': {}}|tojson(indent=4)",
                "{\n    \"a\": {\n        \"b\": [\n            1\n        ]\n    },\n    \"c\": {}\n}",
            ),
            ("{'a': [1, 2]}|tojson(indent=0)", "{\n\"a\": [\n1,\n2\n]\n}"),
            ("{'a': [1, 2]}|tojson(indent=-3)", "{\n\"a\": [\n1,\n2\n]\n}"),
            ("{'a': [1]}|tojson(indent='\\t')", "{\n\t\"a\": [\n\t\t1\n\t]\n}"),
            ("[1, 2]|tojson(false, 1, (' ;', ' = '))", "[\n 1 ;\n 2\n]"),
            (
                "{'b': 1, 'a': 2, 'B': 3, 'é': 4}|tojson(sort_keys=true)",
                r#"{"B": 3, "a": 2, "b": 1, "é": 4}"#,
            ),
            ("{2: 1, 1: 2}|tojson(sort_keys=true)", r#"{"1": 2, "2": 1}"#),
            ("{1: 1, none: 2, false: 3, 2.5: 4}|tojson", r#"{"1": 1, "null": 2, "false": 3, "2.5": 4}"#),
            ("(1, 'a')|tojson", r#"[1, "a"]"#),
            ("'a'|tojson", "\"a\""),
        ] {
            let expected = expected.replace("DEL", "\u{7f}");
            assert_eq!(rendered(expression, &value).expect(expression), expected, "{expression}");
        }
        for expression in [
            "missing|tojson",
            "[missing]|tojson",
            "v|tojson(indnet=2)",
            "v|tojson(separators=',')",
            "{1: 1, 'a': 2}|tojson(sort_keys=true)",
            "range|tojson",
        ] {
            assert!(rendered(expression, &value).is_err(), "{expression}");
        }
    }

    #[test]
    fn floats_are_pythons() {
        for (value, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1e15, "1000000000000000.0"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (9999999999999998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (1e22, "1e+22"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.25e-7, "1.25e-07"),
            (5e-324, "5e-324"),
            (0.1 + 0.2, "0.30000000000000004"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "Infinity"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(float(value), expected);
        }
    }

    #[test]
    fn a_value_that_grows_without_bound_is_stopped() {
        let doubling = "{% set n = namespace(x=[]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}\
                        {{ n.x|tojson }}";
        let deep = "{% set n = namespace(x=[]) %}{% for i in range(300) %}{% set n.x = [n.x] %}{% endfor %}\
                    {{ n.x|tojson }}";
        let environment = environment().expect("an environment");
        let error = environment.render_str(doubling, ()).expect_err("endless");
        assert_eq!(error.kind(), ErrorKind::OutOfFuel);
        assert!(environment.render_str(deep, ()).is_err());
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(|value| json!(value)),
            any::<i64>().prop_map(|value| json!(value)),
            any::<u64>().prop_map(|value| json!(value)),
            // Of few digits: serde_json reads others with small errors.
            any::<i32>().prop_map(|value| json!(f64::from(value) / 8.0)),
            any::<String>().prop_map(|value| json!(value)),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(serde_json::Value::from),
                prop::collection::vec((any::<String>(), inner), 0..5)
                    .prop_map(|pairs| Map::from_iter(pairs).into()),
            ]
        })
    }

    proptest! {
        #[test]
        fn floats_read_back_equal(value: f64) {
            prop_assert_eq!(float(value).parse::<f64>(), Ok(value));
        }

        #[test]
        fn what_is_written_reads_back_equal(value in any_json(), ascii: bool, indent in prop::option::of(0..5u8)) {
            let indent = indent.map_or("none".to_owned(), |indent| indent.to_string());
            let expression = format!("v|tojson(ensure_ascii={ascii}, indent={indent})");
            let text = rendered(&expression, &value).expect("JSON has JSON");
            prop_assert!(!ascii || text.is_ascii());
            let read: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
            // Its keys too, in their order.
            prop_assert_eq!(read.to_string(), value.to_string());
        }
    }
}
