//! Any text, in any cuts, through the parser of any format: it never panics, the cuts do not matter, and no text is lost. What is
//! written for a model and looked for in its template never panics either, and a call that is rendered is read back.

#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use turnmill_schema::{Part, Tool, ToolCall};
use turnmill_worker::tools::{Parser, ThinkMarkers, ToolFormat, system_text};

const TOOLS: [&str; 2] = ["add", "get.weather-2"];
const THINKING: [ThinkMarkers; 3] = [ThinkMarkers::THINK, ThinkMarkers::MISTRAL, ThinkMarkers::GEMMA];
/// What parsers give a meaning, besides markers, and text of several bytes.
const WORDS: [&str; 12] = [
    "add",
    "call:add{",
    "{\"name\": \"add\", ",
    "\"arguments\": {",
    "\"parameters\": {\"a\": 1}}",
    "[{",
    "}}",
    "}]",
    "get.weather-2",
    "; ",
    "é",
    "\u{1f600}",
];

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    format: u8,
    thinking: u8,
    starts_inside: bool,
    calls_only: bool,
    is_cut: bool,
    number: f64,
    /// Bytes of text until the next cut.
    cuts: [u8; 16],
    /// Letters, and above them markers and words, which single letters would seldom make.
    text: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    let text = text(input.text);
    let format = ToolFormat::ALL.get(usize::from(input.format) % (ToolFormat::ALL.len() + 1)).copied();
    let thinking = THINKING.get(usize::from(input.thinking) % (THINKING.len() + 1)).copied();
    cuts_do_not_matter(&input, format, thinking, &text);
    if let Some(format) = format {
        calls_are_read_back(&input, format, &text);
    }
    prompts_are_made_and_read(&text);
});

fn text(bytes: &[u8]) -> String {
    let mut longer: Vec<&str> = ToolFormat::ALL.into_iter().flat_map(ToolFormat::markers).collect();
    longer.extend(THINKING.iter().flat_map(|thinking| [thinking.open, thinking.close]));
    longer.extend(WORDS);
    let piece = |byte: &u8| match byte.checked_sub(0x80) {
        Some(which) => longer[usize::from(which) % longer.len()].to_owned(),
        None => char::from(*byte).to_string(),
    };
    bytes.iter().map(piece).collect()
}

fn cuts_do_not_matter(
    input: &Input<'_>,
    format: Option<ToolFormat>,
    thinking: Option<ThinkMarkers>,
    text: &str,
) {
    let parse = |cuts: &[u8]| {
        let parser = Parser::new(format, thinking, input.starts_inside, TOOLS);
        parts(if input.calls_only { parser.calls_only() } else { parser }, text, cuts, input.is_cut)
    };
    let whole = parse(&[]);
    assert_eq!(parse(&input.cuts), whole);
    let mut calls = 0;
    for (part, text) in &whole {
        match part {
            Part::ToolName(index) => {
                assert!(*index == calls && TOOLS.contains(&text.as_str()));
                calls += 1;
            }
            Part::ToolArguments(index) => assert_eq!(*index + 1, calls),
            Part::Content | Part::Reasoning => {}
        }
    }
    let thinks = thinking.is_some_and(|markers| text.contains(markers.open) || text.contains(markers.close));
    if calls == 0 && !thinks && !input.is_cut {
        assert_eq!(whole.iter().map(|(_, text)| text.as_str()).collect::<String>(), text);
    }
}

/// The parts of `text`, which arrives in pieces of `cuts` bytes, rounded down to whole characters. Neighbours of one part are joined.
fn parts(mut parser: Parser, text: &str, cuts: &[u8], is_cut: bool) -> Vec<(Part, String)> {
    let (mut all, mut rest) = (Vec::<(Part, String)>::new(), text);
    let mut add = |pushed: Vec<(Part, String)>| {
        for (part, text) in pushed {
            assert!(!text.is_empty(), "no part is empty");
            match all.last_mut() {
                Some((last, so_far)) if *last == part => so_far.push_str(&text),
                _ => all.push((part, text)),
            }
        }
    };
    for cut in cuts {
        let (piece, after) = rest.split_at(rest.floor_char_boundary(usize::from(*cut)));
        let mut pushed = Vec::new();
        parser.push(piece, &mut pushed);
        add(pushed);
        rest = after;
    }
    let mut pushed = Vec::new();
    parser.push(rest, &mut pushed);
    if is_cut {
        parser.cut(&mut pushed)
    } else {
        parser.finish(&mut pushed)
    }
    add(pushed);
    all
}

fn calls_are_read_back(input: &Input<'_>, format: ToolFormat, text: &str) {
    let arguments = json!({text: input.number, "list": [text, null, {"text": text}], "text": text});
    let rendered = format.render_call(TOOLS[1], &arguments.to_string());
    let parser = Parser::new(Some(format), None, false, TOOLS);
    let [(Part::ToolName(0), name), (Part::ToolArguments(0), json)] =
        &parts(parser, &rendered, &input.cuts, input.is_cut)[..]
    else {
        panic!("{rendered:?} is no call");
    };
    assert_eq!((name.as_str(), serde_json::from_str::<Value>(json).ok()), (TOOLS[1], Some(arguments)));
}

fn prompts_are_made_and_read(text: &str) {
    let tool = Tool { name: TOOLS[0].to_owned(), description: Some(text.to_owned()), parameters: None };
    assert!(system_text(&[tool]).contains("<tool_call>"));
    let call = ToolCall { id: String::new(), name: TOOLS[0].to_owned(), arguments: r#"{"a":1}"#.to_owned() };
    let _ = ToolFormat::detect(text, &call);
    if let Some(thinking) = ThinkMarkers::detect(text) {
        let _ = thinking.starts_inside(text);
    }
    let _ = serde_json::from_str(text).ok().as_ref().and_then(ToolFormat::from_response_template);
}
