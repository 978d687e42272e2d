//! Turns whose replies must have a form: tool calls, JSON, a regular expression. Promise 3 holds for them too: another worker
//! that goes on with one, and other turns in its steps, change no word.

use serde_json::{Value, json};
use turnmill_client::{NewTurn, TurnResult};
use turnmill_schema::{FinishReason, Message, Outcome, ResponseFormat, Sampling, Tool, ToolChoice};
use turnmill_tests::line::Line;
use turnmill_tests::worker::Worker;

/// How many of something: in CI `usual`, in a long run what `variable` says.
fn count(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().expect("a number"))
}

fn tool(value: Value) -> Tool {
    serde_json::from_value(value).expect("a tool")
}

pub(super) fn tools() -> Vec<Tool> {
    vec![
        tool(json!({"name": "add", "description": "Adds two numbers.", "parameters": {
            "type": "object", "required": ["a", "b"],
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}
        }})),
        tool(json!({"name": "weather", "description": "The weather of a city.", "parameters": {
            "type": "object", "required": ["city", "unit"], "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"enum": ["celsius", "fahrenheit"]},
                "days": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 7}, "maxItems": 3}
            }
        }})),
        tool(json!({"name": "now", "parameters": {
            "type": "object", "required": ["zone"], "properties": {"zone": {"enum": ["utc", "local"]}}
        }})),
    ]
}

fn person() -> Value {
    json!({
        "type": "object", "required": ["name", "age", "tags"], "additionalProperties": false,
        "properties": {
            "name": {"type": "string", "maxLength": 24},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3}
        }
    })
}

fn sampled(seed: u64) -> Sampling {
    Sampling { temperature: 1.0, seed: Some(seed), max_tokens: Some(200), ..Sampling::default() }
}

pub(super) fn calling(seed: u64, choice: ToolChoice) -> NewTurn {
    let text = ["What is 17 + 25?", "How is the weather in Oslo?", "What time is it?"][seed as usize % 3];
    NewTurn::user(text).tools(tools(), choice).sampling(sampled(seed))
}

fn formed(seed: u64) -> NewTurn {
    let format = match seed % 4 {
        0 => ResponseFormat::JsonSchema { schema: person() },
        1 => ResponseFormat::Regex { regex: "(yes|no), because [a-z ]{5,40}\\.".into() },
        2 => ResponseFormat::Lark {
            grammar: "start: \"<\" WORD \">\" (\" \" WORD){2,4}\nWORD: /[a-z]{1,8}/".into(),
        },
        _ => ResponseFormat::JsonSchema {
            schema: json!({"type": "array", "minItems": 2, "maxItems": 3, "items": person()}),
        },
    };
    NewTurn::user("Tell me about somebody.").response_format(format).sampling(sampled(seed))
}

/// Whether `arguments` fit the parameters of the tool of that name.
fn fits(name: &str, arguments: &str) -> bool {
    let tools = tools();
    let tool = tools.iter().find(|tool| tool.name == name).expect("one of the turn's tools");
    let schema = tool.parameters.clone().map_or(json!({"type": "object"}), Value::Object);
    let arguments: Value = serde_json::from_str(arguments).expect("arguments are JSON");
    jsonschema::is_valid(&schema, &arguments)
}

fn check_calls(result: &TurnResult, choice: &ToolChoice) {
    assert_eq!(result.outcome, Outcome::Completed, "{result:?}");
    let last = result.tool_calls.len() - 1;
    for (index, call) in result.tool_calls.iter().enumerate() {
        // A limit of tokens may cut the last one.
        if index < last || result.finish == Some(FinishReason::ToolCalls) {
            assert!(fits(&call.name, &call.arguments), "{result:?}");
        }
        assert!(*choice == ToolChoice::Required || *choice == ToolChoice::Named(call.name.clone()));
    }
}

/// Turns that must call one tool: each ends in one call that fits.
async fn must_call(line: &Line) {
    let choices = [ToolChoice::Required, ToolChoice::Named("weather".into())];
    let one_call = |seed: u64| NewTurn {
        parallel_tool_calls: Some(false),
        ..calling(seed, choices[seed as usize % 2].clone())
    };
    let turns = count("TURNMILL_TEST_CALLS", 16);
    let ids = line.enqueue((0..turns).map(one_call).collect()).await;
    let mut cut = 0;
    for (id, choice) in ids.into_iter().zip(choices.iter().cycle()) {
        let result = line.wait(id).await;
        check_calls(&result, choice);
        match result.finish {
            Some(FinishReason::Length) => cut += 1,
            finish => assert_eq!(
                (result.tool_calls.len(), finish),
                (1, Some(FinishReason::ToolCalls)),
                "{result:?}"
            ),
        }
    }
    println!(
        "{turns} turns that must call a tool: {cut} cut by their limit of tokens, the others are calls that fit"
    );
    assert!(cut * 8 <= turns, "{cut} of {turns} calls did not end");
}

#[tokio::test]
async fn what_must_be_called_is_called_and_fits() {
    let line = Line::start().await;
    let _worker = line.worker(&[]);
    must_call(&line).await;
    // A small model may call for as long as it may speak.
    check_calls(&line.run(calling(1, ToolChoice::Required)).await, &ToolChoice::Required);
}

/// Gemma 3 270M's file has no template for chats, and no format of calls: the generic one makes it usable.
#[tokio::test]
async fn a_model_that_was_taught_no_calls_makes_them() {
    let line = Line::start().await;
    let _worker = gemma(&line);
    must_call(&line).await;
}

/// A worker with Gemma 3 270M, whose vocabulary has 262,144 tokens.
fn gemma(line: &Line) -> Worker {
    let model = std::env::var("TURNMILL_TEST_GEMMA")
        .expect("TURNMILL_TEST_GEMMA names Gemma 3 270M's file; deploy/test fetches it and sets this");
    let template = concat!(env!("CARGO_MANIFEST_DIR"), "/data/turns.jinja");
    line.worker(&["--model", &model, "--chat-template", template])
}

#[tokio::test]
async fn replies_have_the_form_that_was_asked_for() {
    let line = Line::start().await;
    let _worker = line.worker(&[]);
    let ids = line.enqueue((0..16).map(formed).collect()).await;
    for (id, seed) in ids.into_iter().zip(0u64..) {
        let result = line.wait(id).await;
        assert_eq!(result.outcome, Outcome::Completed, "{result:?}");
        let text = result.text.clone().expect("it was read at once");
        if result.finish == Some(FinishReason::Length) {
            continue;
        }
        match formed(seed).response_format {
            ResponseFormat::JsonSchema { schema } => {
                let value: Value = serde_json::from_str(&text).expect("JSON");
                assert!(jsonschema::is_valid(&schema, &value), "{text}");
            }
            ResponseFormat::Regex { .. } => {
                let because = text.strip_prefix("yes, because ").or(text.strip_prefix("no, because "));
                let why = because.and_then(|why| why.strip_suffix('.')).expect("as the expression has it");
                assert!((5..=40).contains(&why.len()), "{text}");
            }
            ResponseFormat::Lark { .. } => assert!(text.starts_with('<') && text.contains("> "), "{text}"),
            ResponseFormat::Text | ResponseFormat::JsonObject => unreachable!("no turn asks for it"),
        }
    }
}

/// Turns of all forms, none like another, and like none of another series.
fn mixed(series: u64) -> Vec<NewTurn> {
    let plain = |seed| NewTurn::user("Tell me a story.").sampling(sampled(seed));
    let turn = |seed: u64| match seed % 3 {
        0 => calling(seed / 3, ToolChoice::Required),
        1 => formed(seed),
        _ => plain(seed),
    };
    (series * 16..).take(16).map(turn).collect()
}

#[tokio::test]
async fn forms_change_no_word_of_others_and_crashes_change_none_of_theirs() {
    const KILLS: u32 = 5;
    let series = count("TURNMILL_TEST_KILLS", KILLS.into()).div_ceil(KILLS.into());
    let line = Line::start().await;
    let mut undisturbed = Vec::new();
    {
        let _worker = line.worker(&["--max-sequences", "1", "--speculation", "off"]);
        for turn in (0..series).flat_map(mixed) {
            let ids = line.enqueue(vec![turn]).await;
            undisturbed.extend(line.told(&ids).await);
        }
    }
    let mut undisturbed = undisturbed.iter();
    for series in 0..series {
        let ids = line.enqueue(mixed(series)).await;
        // Each is killed in the middle of replies; the last one ends them all.
        for round in 0..KILLS {
            let mut worker = line.worker(&["--lease-ms", "1000", "--max-sequences", "16"]);
            line.until_tokens(&ids, 150 * (round + 1)).await;
            worker.kill9();
        }
        let _worker = line.worker(&["--lease-ms", "1000", "--speculation", "lookup"]);
        for (number, told) in line.told(&ids).await.iter().enumerate() {
            let alone = undisturbed.next().expect("every turn ran alone");
            assert_eq!(told.words(), alone.words(), "turn {number} of series {series}");
        }
        println!("series {series}: {KILLS} kills, 16 turns, each with the words that it has alone");
    }
}

#[tokio::test]
async fn what_can_never_be_is_rejected_and_named() {
    let line = Line::start().await;
    let worker = line.worker(&[]);
    let schema = |schema: Value| {
        NewTurn::user("x").response_format(ResponseFormat::JsonSchema { schema }).sampling(sampled(1))
    };
    let lark = |grammar: &str| {
        NewTurn::user("x")
            .response_format(ResponseFormat::Lark { grammar: grammar.into() })
            .sampling(sampled(1))
    };
    for (turn, names) in [
        (schema(json!({"type": "object", "unevaluatedItems": false})), "unevaluatedItems"),
        (schema(json!({"$ref": "https://example.com/schema.json"})), "$ref"),
        (schema(json!({"enum": []})), ""),
        (lark("start: start \"a\""), ""),
        (lark("start: \"a"), ""),
        (
            NewTurn { messages: vec![Message::tool_result("none", "1")], ..NewTurn::user("") },
            "made that call",
        ),
        (
            NewTurn::user("x").sampling(Sampling { stop_token_ids: vec![1 << 30], ..sampled(1) }),
            "stop_token_ids names the token",
        ),
        (
            NewTurn::user("x").sampling(Sampling { stop: vec!["a<|im_end|>".into()], ..sampled(1) }),
            "has the control token",
        ),
    ] {
        let result = line.run(turn).await;
        let error = result.error.expect("it is rejected");
        assert_eq!(result.outcome, Outcome::Failed, "{error}");
        assert!(error.contains(names), "{error}");
    }
    assert_eq!(worker.ready().0, 200);
    // A control token as a stop string, a prompt that is counted, and one that no template changes.
    let stopped = Sampling { stop: vec!["<|im_end|>".into()], temperature: 0.0, ..sampled(1) };
    let stopped = line
        .run(NewTurn::user("What is the capital of France? Answer in one sentence.").sampling(stopped))
        .await;
    assert_eq!(stopped.stop, Some(turnmill_schema::StopRule::Text("<|im_end|>".into())));
    let counted = NewTurn::user("x")
        .agent("counted".parse().expect("a name"))
        .sampling(Sampling { max_tokens: Some(0), ..sampled(1) });
    let counted = line.run(counted).await;
    assert_eq!((counted.outcome, counted.usage.completion_tokens), (Outcome::Completed, 0));
    assert!(counted.usage.prompt_tokens > 10, "{counted:?}");
    assert!(line.transcript("counted").await.is_empty(), "a count is no part of the conversation");
    let raw = NewTurn { prompt: Some("Once upon a time".into()), messages: Vec::new(), ..NewTurn::user("") };
    let raw = line.run(raw.sampling(Sampling { max_tokens: Some(4), ..sampled(1) })).await;
    assert_eq!((raw.usage.prompt_tokens, raw.usage.completion_tokens), (4, 4));
}
