//! What holds for every format: calls that are written are read back however they are cut, what is no call is content, and the
//! grammar accepts what is written.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Map, Value, json};
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use turnmill_schema::{Part, ResponseFormat, Tool, ToolChoice};

use super::format::Arguments;
use super::*;

/// Texts that formats give a meaning, and what is next to them.
const HOSTILE: [&str; 32] = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<|tool_call>",
    "<tool_call|>",
    "<start_function_call>",
    "<end_function_call>",
    "<escape>",
    "<|\"|>",
    "<|python_tag|>",
    "<think>",
    "</think>",
    "call:",
    "add",
    "{\"name\": \"add\", ",
    "\"arguments\": {",
    "\"parameters\": {\"a\": 1}}",
    "\"name\"",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    ";",
    "\"",
    "\\",
    "\n",
    " ",
    "é\u{1f600}",
];

fn hostile_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        3 => proptest::sample::select(&HOSTILE[..]).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
        1 => "[a-z ]{0,6}",
    ];
    vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<i32>().prop_map(|n| Value::from(f64::from(n) / 8.0)),
        hostile_text().prop_map(Value::from),
        "[a-z]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let key = prop_oneof![3 => "[a-z_]{1,6}", 1 => hostile_text()];
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((key, inner), 0..4).prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// Any arguments.
pub(super) fn any_object() -> impl Strategy<Value = Value> {
    let key = prop_oneof![3 => "[a-z_]{1,6}", 1 => hostile_text()];
    vec((key, any_value()), 0..4).prop_map(|pairs| Value::Object(pairs.into_iter().collect()))
}

fn any_format() -> impl Strategy<Value = ToolFormat> {
    proptest::sample::select(&ToolFormat::ALL[..])
}

/// JSON text as grammars write it.
fn dumps(value: &Value) -> String {
    let list = |items: Vec<String>| items.join(", ");
    match value {
        Value::Array(items) => format!("[{}]", list(items.iter().map(dumps).collect())),
        Value::Object(map) => {
            let pair =
                |(key, value): (&String, &Value)| format!("{}: {}", Value::from(key.as_str()), dumps(value));
            format!("{{{}}}", list(map.iter().map(pair).collect()))
        }
        _ => value.to_string(),
    }
}

/// Pushes `text` in the pieces between `cuts`.
fn parse(mut parser: Parser, text: &str, cuts: &[Index]) -> (Vec<(Part, String)>, Parser) {
    let mut places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    places.push(text.len());
    let mut at: Vec<usize> = cuts.iter().map(|cut| places[cut.index(places.len())]).collect();
    at.extend([0, text.len()]);
    at.sort_unstable();
    let mut parts = Vec::new();
    for piece in at.windows(2) {
        // What one push gives may go on in the next.
        let mut pushed = Vec::new();
        parser.push(&text[piece[0]..piece[1]], &mut pushed);
        parts.append(&mut pushed);
    }
    parser.finish(&mut parts);
    (joined(parts), parser)
}

fn joined(parts: Vec<(Part, String)>) -> Vec<(Part, String)> {
    let mut all: Vec<(Part, String)> = Vec::new();
    for (part, text) in parts {
        assert!(!text.is_empty(), "no part is empty");
        match all.last_mut() {
            Some((last, so_far)) if *last == part => so_far.push_str(&text),
            _ => all.push((part, text)),
        }
    }
    all
}

fn plain(format: ToolFormat) -> Parser {
    Parser::new(Some(format), None, false, ["add", "get.weather-2", "search_the_web"])
}

fn content(text: &str) -> (Part, String) {
    (Part::Content, text.to_owned())
}

fn call(index: u32, name: &str, arguments: &str) -> [(Part, String); 2] {
    [(Part::ToolName(index), name.to_owned()), (Part::ToolArguments(index), arguments.to_owned())]
}

fn is_json(format: ToolFormat) -> bool {
    !matches!(format, ToolFormat::Gemma | ToolFormat::FunctionGemma)
}

/// Several calls, as a model writes them.
fn render_all(format: ToolFormat, calls: &[(&str, Value)]) -> String {
    let description = format.description();
    let rendered: Vec<String> =
        calls.iter().map(|(name, arguments)| format.render_call(name, &dumps(arguments))).collect();
    if !description.list {
        return rendered.join(description.between);
    }
    let items: Vec<&str> =
        rendered.iter().map(|call| &call[description.begin.len() + 1..call.len() - 1]).collect();
    format!("{}[{}]", description.begin, items.join(description.between))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn calls_are_read_back_in_any_cut(
        format in any_format(),
        objects in vec(any_object(), 1..4),
        before in "[a-z.,]{0,9}",
        cuts in vec(any::<Index>(), 0..20),
    ) {
        let names = ["add", "get.weather-2", "search_the_web"];
        let calls: Vec<(&str, Value)> = names.into_iter().zip(objects).collect();
        let before = if format.description().begin_required { before } else { String::new() };
        let text = format!("{before}\n\n{}\n", render_all(format, &calls));
        let (parts, parser) = parse(plain(format), &text, &cuts);
        prop_assert_eq!(parser.calls() as usize, calls.len());
        let mut parts = parts.into_iter();
        if !before.is_empty() {
            prop_assert_eq!(parts.next(), Some((Part::Content, before)));
        }
        for (index, (name, arguments)) in (0..).zip(&calls) {
            prop_assert_eq!(parts.next(), Some((Part::ToolName(index), (*name).to_owned())));
            let (part, json) = parts.next().expect("arguments");
            prop_assert_eq!(part, Part::ToolArguments(index));
            if is_json(format) {
                prop_assert_eq!(&json, &dumps(arguments));
            }
            prop_assert_eq!(&serde_json::from_str::<Value>(&json).expect("JSON"), arguments);
        }
        prop_assert_eq!(parts.next(), None);
    }

    #[test]
    fn the_cut_does_not_matter(
        format in proptest::option::of(any_format()),
        thinking in any::<bool>(),
        inside in any::<bool>(),
        text in hostile_text(),
        cuts in vec(any::<Index>(), 0..30),
    ) {
        let parser = || Parser::new(format, thinking.then_some(ThinkMarkers::THINK), inside, ["add"]);
        let (whole, parsed) = parse(parser(), &text, &[]);
        let (cut, parsed_cut) = parse(parser(), &text, &cuts);
        prop_assert_eq!(&cut, &whole);
        prop_assert_eq!(parsed.calls(), parsed_cut.calls());
        // Without a call, and without a marker of thoughts, nothing is lost.
        let no_thoughts = !thinking || !["<think>", "</think>"].iter().any(|marker| text.contains(marker));
        if parsed.calls() == 0 && no_thoughts {
            let all: String = whole.iter().map(|(_, text)| text.as_str()).collect();
            prop_assert_eq!(all, text);
        }
        // A call's name comes once, whole, before its arguments.
        let mut calls = 0;
        for (part, text) in &whole {
            match part {
                Part::ToolName(index) => {
                    prop_assert_eq!((*index, text.as_str()), (calls, "add"));
                    calls += 1;
                }
                Part::ToolArguments(index) => prop_assert_eq!(*index + 1, calls),
                Part::Content | Part::Reasoning => {}
            }
        }
    }

    /// However tokens divide the text, the grammar is given all that came since the marker.
    #[test]
    fn a_trigger_tells_what_came_since(before in "[a-z ]{0,9}", after in "[a-z\\n{]{0,9}", cuts in vec(any::<Index>(), 0..9)) {
        let marker = ToolFormat::Hermes.description().begin;
        let text = format!("{before}{marker}{after}");
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        places.extend([0, text.len()]);
        places.sort_unstable();
        let mut parser = plain(ToolFormat::Hermes);
        let mut triggers = Vec::new();
        for piece in places.windows(2) {
            parser.push(&text[piece[0]..piece[1]], &mut Vec::new());
            triggers.extend(parser.trigger().map(|since| (piece[1], since.to_owned())));
        }
        prop_assert_eq!(triggers.len(), 1);
        let (end, since) = &triggers[0];
        prop_assert_eq!(since, &text[before.len() + marker.len()..*end]);
    }
}

#[test]
fn replies_are_divided() {
    let weather = r#"{"city": "Paris"}"#;
    let [name, arguments] = call(0, "add", weather);
    let one = vec![name, arguments];
    for (format, text, expected) in [
        // Keys the other way round, another word for arguments, a type, an id.
        (
            ToolFormat::Hermes,
            format!("<tool_call>{{\"arguments\": {weather}, \"name\": \"add\"}}</tool_call>"),
            one.clone(),
        ),
        (
            ToolFormat::Llama3,
            format!("{{\"type\": \"function\", \"name\": \"add\", \"parameters\": {weather}}}"),
            one.clone(),
        ),
        (
            ToolFormat::Llama3,
            format!("<|python_tag|>{{\"name\":\"add\",\"arguments\":{weather}}}"),
            one.clone(),
        ),
        (
            ToolFormat::Mistral,
            format!(
                "[TOOL_CALLS] [ {{\"name\": \"add\", \"arguments\": {weather}, \"id\": \"123456789\"}} ]"
            ),
            one.clone(),
        ),
        (
            ToolFormat::Mistral,
            format!("[TOOL_CALLS]{{\"name\": \"add\", \"arguments\": {weather}}}"),
            one.clone(),
        ),
        (ToolFormat::MistralArgs, format!("[TOOL_CALLS]add[CALL_ID]a1b2[ARGS]{weather}"), one.clone()),
        (ToolFormat::MistralArgs, format!("[TOOL_CALLS]add{weather}"), one.clone()),
        (
            ToolFormat::FunctionGemma,
            "<start_function_call>call:add{city:<escape>Paris<escape>}<end_function_call>".into(),
            call(0, "add", r#"{"city":"Paris"}"#).to_vec(),
        ),
        // The last marker, or the last bracket, is missing.
        (
            ToolFormat::Hermes,
            format!("<tool_call>\n{{\"name\": \"add\", \"arguments\": {weather}}}"),
            one.clone(),
        ),
        (
            ToolFormat::Hermes,
            format!("<tool_call>\n{{\"name\": \"add\", \"arguments\": {weather}}}\n</tool_"),
            one.clone(),
        ),
        (
            ToolFormat::Mistral,
            format!("[TOOL_CALLS][{{\"name\": \"add\", \"arguments\": {weather}}}, "),
            one.clone(),
        ),
        (
            ToolFormat::Hermes,
            format!(
                "<tool_call>{{\"name\": \"add\", \"arguments\": {weather}}}\n<tool_call>{{\"name\": \"add\"}}</tool_call>\n Done."
            ),
            [one.clone(), call(1, "add", "{}").to_vec(), vec![content("Done.")]].concat(),
        ),
        (
            ToolFormat::Llama3,
            format!(
                "{{\"name\": \"add\", \"parameters\": {weather}}};{{\"name\": \"add\", \"parameters\": {{}}}} ;-)"
            ),
            [one.clone(), call(1, "add", "{}").to_vec(), vec![content(";-)")]].concat(),
        ),
        // No calls.
        (
            ToolFormat::Llama3,
            "{\"name\": \"Ada\", \"age\": 36}".into(),
            vec![content("{\"name\": \"Ada\", \"age\": 36}")],
        ),
        (
            ToolFormat::Llama3,
            format!("So: {{\"name\": \"add\", \"parameters\": {weather}}}"),
            vec![content(&format!("So: {{\"name\": \"add\", \"parameters\": {weather}}}"))],
        ),
        (
            ToolFormat::Hermes,
            "<tool_call>{\"name\": \"subtract\", \"arguments\": {}}".into(),
            vec![content("<tool_call>{\"name\": \"subtract\", \"arguments\": {}}")],
        ),
        (
            ToolFormat::Hermes,
            "<tool_call>{\"name\": \"add\", \"arguments\": \"a=1\"}".into(),
            vec![content("<tool_call>{\"name\": \"add\", \"arguments\": \"a=1\"}")],
        ),
        (
            ToolFormat::Hermes,
            format!(
                "<tool_call>\n<tool_call>\n{{\"name\": \"add\", \"arguments\": {weather}}}\n</tool_call>"
            ),
            [vec![content("<tool_call>\n")], one.clone()].concat(),
        ),
        (
            ToolFormat::Hermes,
            " a <tool_ b </tool_call>\n".into(),
            vec![content(" a <tool_ b </tool_call>\n")],
        ),
    ] {
        let (parts, _) = parse(plain(format), &text, &[]);
        assert_eq!(parts, expected, "{format}: {text}");
    }
}

#[test]
fn a_call_that_breaks_off_stays_as_far_as_it_came() {
    for (format, text, expected) in [
        (
            ToolFormat::Hermes,
            "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": \"</tool_call>",
            call(0, "add", "{\"a\": \"</tool_call>").to_vec(),
        ),
        (
            ToolFormat::Hermes,
            "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1]} no",
            [call(0, "add", "{\"a\": 1").to_vec(), vec![content("]} no")]].concat(),
        ),
        (ToolFormat::Gemma, "<|tool_call>call:add{a:<|\"|>b", call(0, "add", "{\"a\":\"b").to_vec()),
    ] {
        let (parts, _) = parse(plain(format), text, &[]);
        assert_eq!(parts, expected, "{text}");
    }
}

#[test]
fn a_reply_that_is_cut_shows_no_marker_of_a_call() {
    for (format, text, prose, calls_only) in [
        (ToolFormat::Hermes, "Hi.\n<tool_call>\n{\"name\": \"ad", "Hi.", "Hi."),
        (ToolFormat::MistralArgs, "[TOOL_CALLS]ad", "", ""),
        (ToolFormat::Llama3, "<|python_tag|>{\"na", "", ""),
        // Prose may go on like this, and so may JSON.
        (ToolFormat::Hermes, "if a <", "if a <", "if a"),
        (ToolFormat::Hermes, "\n<tool_", "\n<tool_", ""),
        (ToolFormat::Llama3, "{\"na", "{\"na", ""),
        (ToolFormat::Hermes, "<tool_call> is", "<tool_call> is", "<tool_call> is"),
    ] {
        for (parser, expected) in [(plain(format), prose), (plain(format).calls_only(), calls_only)] {
            let (mut parser, mut parts) = (parser, Vec::new());
            parser.push(text, &mut parts);
            parser.cut(&mut parts);
            let expected = Some(content(expected)).filter(|(_, text)| !text.is_empty());
            assert_eq!(joined(parts), Vec::from_iter(expected), "{format}: {text}");
        }
        // An end that the model wrote cuts nothing.
        let (parts, _) = parse(plain(format), text, &[]);
        assert_eq!(parts, [content(text)], "{format}: {text}");
    }
    // A call with a name stays.
    let mut parser = plain(ToolFormat::Hermes).calls_only();
    let mut parts = Vec::new();
    parser.push("<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a", &mut parts);
    parser.cut(&mut parts);
    assert_eq!(joined(parts), call(0, "add", "{\"a"));
}

#[test]
fn thoughts_are_apart() {
    let think = |inside| Parser::new(Some(ToolFormat::Hermes), Some(ThinkMarkers::THINK), inside, ["add"]);
    let thought = |text: &str| (Part::Reasoning, text.to_owned());
    let call_text = "<tool_call>\n{\"name\": \"add\", \"arguments\": {}}\n</tool_call>";
    for (inside, text, expected) in [
        (false, "<think>\nHm.\n\nYes.\n</think>\n\n Hi", vec![thought("Hm.\n\nYes."), content(" Hi")]),
        (true, "Hm.\n</think>\n\nHi\n", vec![thought("Hm."), content("Hi\n")]),
        (false, "<think>\n\n</think>\n\nHi", vec![content("Hi")]),
        (false, "\n<think>a</think>b <think> c", vec![thought("a"), content("b <think> c")]),
        (false, "a <think>b</think>", vec![content("a <think>b</think>")]),
        (true, "a</thin", vec![thought("a</thin")]),
        (true, "\na\n", vec![thought("\na\n")]),
    ] {
        let (parts, parser) = parse(think(inside), text, &[]);
        assert_eq!(parts, expected, "{text}");
        assert_eq!(parser.in_reasoning(), parts.last().is_none_or(|(part, _)| *part != Part::Content));
    }
    let text = format!("maybe {call_text}</think>\n\n{call_text}");
    let (parts, _) = parse(think(true), &text, &[]);
    assert_eq!(parts, [vec![thought(&format!("maybe {call_text}"))], call(0, "add", "{}").to_vec()].concat());

    let mut parser = think(true);
    let mut parts = Vec::new();
    parser.push("a", &mut parts);
    assert!(parser.in_reasoning());
    assert_eq!(parser.after_thinking(), None);
    parser.push("</think>\n\n", &mut parts);
    assert!(!parser.in_reasoning());
    assert_eq!(parser.after_thinking(), Some("\n\n"));
    parser.push("b", &mut parts);
    assert_eq!(parser.after_thinking(), None);
}

#[test]
fn a_call_without_a_marker_triggers_with_its_name() {
    let mut parser = plain(ToolFormat::Llama3);
    let mut parts = Vec::new();
    for (text, trigger) in [
        ("\n{\"name\"", None),
        (": \"add", None),
        ("\", \"par", Some("{\"name\": \"add\", \"par")),
        ("ameters\": {}}", None),
    ] {
        parser.push(text, &mut parts);
        assert_eq!(parser.trigger(), trigger);
    }
    assert_eq!(parts, call(0, "add", "{}"));
}

/// Bytes are tokens, and so are the markers, so that a text can be written with and without them.
fn vocabulary() -> (TokEnv, Vec<&'static str>) {
    let mut markers = vec!["<eos>", "<|\"|>", "<escape>", "[ARGS]"];
    for format in ToolFormat::ALL {
        let description = format.description();
        markers.extend([description.begin, description.end].into_iter().filter(|marker| !marker.is_empty()));
    }
    let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    words.extend(markers.iter().map(|marker| [b"\xff", marker.as_bytes()].concat()));
    let info = TokRxInfo::new(words.len() as u32, 256);
    (Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words))), markers)
}

/// The tokens of what a format writes: its markers are control tokens if `control`, unless they are part of a text; all else is
/// bytes.
fn tokens(format: ToolFormat, text: &str, markers: &[&str], control: bool) -> Vec<u32> {
    let quote = match format.description().arguments {
        Arguments::Bare { quote, .. } => quote,
        Arguments::Json { .. } | Arguments::AfterName { .. } => "\"",
    };
    let (mut tokens, mut rest, mut quoted, mut escaped) = (Vec::new(), text, false, false);
    while let Some(first) = rest.chars().next() {
        let is_quote = rest.starts_with(quote) && !escaped;
        escaped = first == '\\' && !escaped && quote == "\"";
        quoted ^= is_quote;
        let marker = markers.iter().position(|marker| rest.starts_with(marker));
        match marker.filter(|_| control && (is_quote || !quoted)) {
            Some(at) => {
                tokens.push(256 + at as u32);
                rest = &rest[markers[at].len()..];
            }
            None => {
                let (one, after) = rest.split_at(if is_quote { quote.len() } else { first.len_utf8() });
                tokens.extend(one.bytes().map(u32::from));
                rest = after;
            }
        }
    }
    tokens
}

/// Whether a grammar accepts a text, whole.
fn accepts(format: ToolFormat, lark: &str, text: &str, control: bool) -> bool {
    let (env, markers) = vocabulary();
    let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &[]).expect("a factory");
    factory.quiet();
    let mut matcher = Matcher::new(factory.create_parser(TopLevelGrammar::from_lark(lark.to_owned())));
    assert!(!matcher.is_error(), "{:?}\n{lark}", matcher.get_error());
    tokens(format, text, &markers, control).into_iter().all(|token| {
        let allowed = matcher.compute_mask().is_ok_and(|mask| mask.is_allowed(token));
        allowed && matcher.consume_token(token).is_ok()
    }) && matcher.is_accepting().unwrap_or(false)
}

fn control_of(control: bool) -> impl Fn(&str) -> Option<u32> {
    let (_, markers) = vocabulary();
    move |text: &str| markers.iter().position(|marker| control && *marker == text).map(|at| 256 + at as u32)
}

fn tools() -> Vec<Tool> {
    serde_json::from_value(json!([
        {"name": "add", "description": "Adds \"<tool_call>\"\n", "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "integer", "minimum": 0, "maximum": 99},
                "unit \"<escape>\n/": {"enum": ["K", "°C \"\\<|", null, 1.5, ["x"]]},
                "text": {"type": "string"},
                "code": {"type": "string", "pattern": "^[a-z]+/$", "maxLength": 4},
                "tags": {"type": "array", "items": {"type": ["string", "null"]}, "maxItems": 2},
                "where": {"$ref": "#/$defs/place"},
                "rest": {},
            },
            "required": ["a", "where"],
            "$defs": {"place": {
                "type": "object",
                "properties": {"x": {"type": "number"}, "near": {"$ref": "#/$defs/place"}, "on": {"type": "boolean"}},
                "required": ["x"],
                "additionalProperties": false,
            }},
        }},
        {"name": "any", "parameters": {}},
        {"name": "now"},
    ]))
    .expect("tools")
}

fn grammar(
    format: ToolFormat,
    choice: &ToolChoice,
    parallel: bool,
    response: &ResponseFormat,
    control: bool,
) -> String {
    let asked = Asked { tools: &tools(), choice, parallel, response, after_thinking: false };
    format.grammar(&asked, &control_of(control)).expect("a grammar")
}

fn with(extra: Value) -> Value {
    let mut object = json!({"a": 7, "where": {"x": -1.5}});
    let ordered = ["a", "unit \"<escape>\n/", "text", "code", "tags", "where", "rest"];
    for (key, value) in extra.as_object().expect("an object") {
        object[key] = value.clone();
    }
    let mut map = Map::new();
    for key in ordered {
        if let Some(value) = object.get(key) {
            map.insert(key.to_owned(), value.clone());
        }
    }
    Value::Object(map)
}

#[test]
fn a_grammar_accepts_the_calls_that_fit_and_no_others() {
    let good = [
        with(json!({})),
        with(
            json!({"unit \"<escape>\n/": "°C \"\\<|", "text": "a <esc \"\\ {b},\n", "rest": {"k": [1, null, "v"]}}),
        ),
        with(json!({"unit \"<escape>\n/": null, "text": "", "code": "abc/", "tags": ["", null]})),
        with(json!({"unit \"<escape>\n/": 1.5, "where": {"x": 1, "near": {"x": 0.25, "on": true}}})),
        with(json!({"unit \"<escape>\n/": ["x"], "tags": []})),
    ];
    let bad = [
        json!({}),
        json!({"a": 7}),
        json!({"where": {"x": 1}, "a": 7}),
        with(json!({"a": 100})),
        with(json!({"unit \"<escape>\n/": "F"})),
        with(json!({"text": 1})),
        with(json!({"code": "abcd/"})),
        with(json!({"code": "a"})),
        with(json!({"tags": ["a", "b", "c"]})),
        with(json!({"where": {"on": true}})),
        with(json!({"where": {"x": 1, "y": 2}})),
        json!({"a": 7, "where": {"x": 1}, "other": 1}),
    ];
    for format in ToolFormat::ALL {
        for control in [false, true] {
            let lark =
                grammar(format, &ToolChoice::Named("add".into()), false, &ResponseFormat::Text, control);
            for arguments in &good {
                let call = format.render_call("add", &dumps(arguments));
                assert!(accepts(format, &lark, &call, control), "{format} {control}: {call}\n{lark}");
            }
            for arguments in &bad {
                let call = format.render_call("add", &dumps(arguments));
                assert!(!accepts(format, &lark, &call, control), "{format} {control}: {call}\n{lark}");
            }
            assert!(!accepts(format, &lark, &format.render_call("any", "{}"), control));
            assert!(!accepts(format, &lark, "Hello", control));
            // A tool without parameters takes none.
            let lark =
                grammar(format, &ToolChoice::Named("now".into()), false, &ResponseFormat::Text, control);
            for (arguments, expected) in [("{}", true), ("{\"a\": 1}", false)] {
                let call = format.render_call("now", arguments);
                assert_eq!(
                    accepts(format, &lark, &call, control),
                    expected,
                    "{format} {control}: {call}\n{lark}"
                );
            }
        }
    }
}

#[test]
fn a_grammar_says_how_many_calls_there_are_and_what_else() {
    let (first, second) = (with(json!({})), json!({"k": {"n": [true, "é"]}}));
    let json_object = ResponseFormat::JsonObject;
    for format in ToolFormat::ALL {
        let one = render_all(format, &[("add", first.clone())]);
        let two = render_all(format, &[("add", first.clone()), ("any", second.clone())]);
        for control in [false, true] {
            let check = |choice: &ToolChoice, parallel, response: &ResponseFormat, expected: [bool; 4]| {
                let lark = grammar(format, choice, parallel, response, control);
                for (text, expected) in [&one, &two, "{\"k\": 1}", ""].into_iter().zip(expected) {
                    assert_eq!(
                        accepts(format, &lark, text, control),
                        expected,
                        "{format} {control}: {text}\n{lark}"
                    );
                }
            };
            check(&ToolChoice::Required, true, &json_object, [true, true, false, false]);
            check(&ToolChoice::Required, false, &json_object, [true, false, false, false]);
            check(&ToolChoice::Auto, true, &json_object, [true, true, true, false]);
            check(&ToolChoice::Auto, false, &json_object, [true, false, true, false]);
            if format != ToolFormat::Llama3 {
                check(&ToolChoice::None, true, &json_object, [false, false, true, false]);
            }

            // The rest of a reply, as the parser gives it.
            let mut parser = Parser::new(Some(format), None, false, ["add", "any"]);
            parser.push(&two, &mut Vec::new());
            let rest = parser.trigger().expect("a trigger").to_owned();
            let lark = grammar(format, &ToolChoice::Auto, true, &ResponseFormat::Text, control);
            assert!(accepts(format, &lark, &rest, control), "{format} {control}: {rest}\n{lark}");
            let lark = grammar(format, &ToolChoice::Auto, false, &ResponseFormat::Text, control);
            assert!(!accepts(format, &lark, &rest, control), "{format} {control}: {rest}\n{lark}");
            // Models are free in the first call's white space, but for how much.
            if format == ToolFormat::Hermes {
                let loose = "{ \"name\":\"any\" ,\"parameters\":{}}</tool_call>";
                assert!(accepts(format, &lark, loose, control), "{lark}");
                assert!(!accepts(format, &lark, &format!("      {loose}"), control), "{lark}");
            }
        }
    }
}

#[test]
fn nothing_is_asked_of_free_replies() {
    let asked = |choice| Asked {
        tools: &[],
        choice,
        parallel: true,
        response: &ResponseFormat::Text,
        after_thinking: true,
    };
    assert_eq!(ToolFormat::Hermes.grammar(&asked(&ToolChoice::Auto), &|_| None), None);
    assert_eq!(ToolFormat::Hermes.grammar(&asked(&ToolChoice::None), &|_| None), None);
}

#[test]
fn content_has_the_form_that_is_asked_for() {
    let regex = |regex: &str| ResponseFormat::Regex { regex: regex.to_owned() };
    let lark = |grammar: &str| ResponseFormat::Lark { grammar: grammar.to_owned() };
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "x-guidance": {"lenient": true}});
    for (response, good, bad) in [
        (ResponseFormat::JsonObject, "{\"a\": [1, 2]}", "[1]"),
        (ResponseFormat::JsonSchema { schema }, "{\"a\": 1}", "{\"a\":1}"),
        (ResponseFormat::JsonSchema { schema: json!(true) }, "[1, 2]", "[1,2]"),
        (regex("a/b\\/c\n\\\nd|#\"{2}"), "a/b/c\n\nd", "a/b"),
        (regex("#\"{2}|//x"), "//x", "#"),
        (regex("x*"), "xxx", "y"),
        (lark("start: \"a\" B # }\nB: \"b\""), "ab", "a"),
    ] {
        for after_thinking in [false, true] {
            let grammar = response_grammar(&response, after_thinking).expect("a grammar");
            assert!(accepts(ToolFormat::Hermes, &grammar, good, true), "{good}\n{grammar}");
            assert!(!accepts(ToolFormat::Hermes, &grammar, bad, true), "{bad}\n{grammar}");
            assert_eq!(
                accepts(ToolFormat::Hermes, &grammar, &format!("\n\n{good}"), true),
                after_thinking,
                "{grammar}"
            );
        }
    }
    assert_eq!(response_grammar(&ResponseFormat::Text, true), None);
}

#[test]
fn names_are_only_names_in_grammars() {
    for name in ["a\"b", "a\\", "x|y", "/*\n", "//", "#", "<[1]>", "\u{7f}\u{0}", "%json {}", "é", "i"] {
        let tools = [Tool { name: name.to_owned(), description: None, parameters: None }];
        for format in ToolFormat::ALL {
            let asked = Asked {
                tools: &tools,
                choice: &ToolChoice::Required,
                parallel: false,
                response: &ResponseFormat::Text,
                after_thinking: false,
            };
            let lark = format.grammar(&asked, &|_| None).expect("a grammar");
            assert!(
                accepts(format, &lark, &format.render_call(name, "{}"), false),
                "{format}: {name:?}\n{lark}"
            );
            assert!(!accepts(format, &lark, &format.render_call("other", "{}"), false));
        }
    }
}

#[test]
fn schemas_that_refer_to_nothing_but_themselves_make_grammars() {
    let tools: Vec<Tool> = serde_json::from_value(json!([{"name": "f", "parameters": {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/a"}, "b": {"$ref": "#/missing"}, "c": {"$ref": "#/properties/c"}},
        "$defs": {"a": {"$ref": "#/$defs/a"}},
    }}]))
    .expect("tools");
    let asked = Asked {
        tools: &tools,
        choice: &ToolChoice::Required,
        parallel: false,
        response: &ResponseFormat::Text,
        after_thinking: false,
    };
    let lark = ToolFormat::Gemma.grammar(&asked, &|_| None).expect("a grammar");
    assert!(accepts(
        ToolFormat::Gemma,
        &lark,
        &ToolFormat::Gemma.render_call("f", r#"{"a": 1, "b": "x"}"#),
        false
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Arguments of a tool whose parameters say nothing about them.
    #[test]
    fn a_grammar_accepts_any_call_that_is_rendered(format in any_format(), control in any::<bool>(), object in any_object()) {
        let text = format.render_call("any", &dumps(&object));
        // A grammar has one spelling for what has several, and llguidance's JSON has no raw DEL; keys that no schema names are
        // words in bare objects.
        prop_assume!((is_json(format) || plain_keys(&object)) && !text.contains("\\u") && !text.contains('\u{7f}'));
        let lark = grammar(format, &ToolChoice::Required, true, &ResponseFormat::Text, control);
        prop_assert!(accepts(format, &lark, &text, control), "{}\n{}", text, lark);
    }
}

fn plain_keys(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().all(plain_keys),
        Value::Object(map) => map.iter().all(|(key, value)| {
            !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_') && plain_keys(value)
        }),
        _ => true,
    }
}
