//! Turns whose replies must have a form: tool calls, JSON, a regular expression. Promise 3 holds for them too: another worker
//! that goes on with one, and other turns in its steps, change no word.

use serde_json::{Value, json};
use turnmill_client::{NewTurn, TurnResult};
use turnmill_schema::{
    FinishReason, History, Message, Outcome, ResponseFormat, Sampling, Tool, ToolChoice, TranscriptEntry,
    envelope,
};
use turnmill_tests::line::{Line, name};

fn tool(value: Value) -> Tool {
    serde_json::from_value(value).expect("a tool")
}

fn tools() -> Vec<Tool> {
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

fn calling(seed: u64, choice: ToolChoice) -> NewTurn {
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

#[tokio::test]
async fn what_must_be_called_is_called_and_fits() {
    let line = Line::start().await;
    let _worker = line.worker(&[]);
    let choices = [ToolChoice::Required, ToolChoice::Named("weather".into())];
    let one_call = |seed: u64| NewTurn {
        parallel_tool_calls: Some(false),
        ..calling(seed, choices[seed as usize % 2].clone())
    };
    let ids = line.enqueue((0..16).map(one_call).collect()).await;
    for (id, choice) in ids.into_iter().zip(choices.iter().cycle()) {
        let result = line.wait(id).await;
        check_calls(&result, choice);
        assert_eq!(
            (result.tool_calls.len(), result.finish),
            (1, Some(FinishReason::ToolCalls)),
            "{result:?}"
        );
    }
    // A small model may call for as long as it may speak.
    check_calls(&line.run(calling(1, ToolChoice::Required)).await, &ToolChoice::Required);
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

/// Turns of all forms, none like another.
fn mixed() -> Vec<NewTurn> {
    let plain = |seed| NewTurn::user("Tell me a story.").sampling(sampled(seed));
    let turn = |seed: u64| match seed % 3 {
        0 => calling(seed / 3, ToolChoice::Required),
        1 => formed(seed),
        _ => plain(seed),
    };
    (0..16).map(turn).collect()
}

#[tokio::test]
async fn forms_change_no_word_of_others_and_crashes_change_none_of_theirs() {
    let undisturbed = {
        let line = Line::start().await;
        let _worker = line.worker(&["--max-sequences", "1", "--speculation", "off"]);
        let mut told = Vec::new();
        for turn in mixed() {
            let ids = line.enqueue(vec![turn]).await;
            told.extend(line.told(&ids).await);
        }
        told
    };
    let line = Line::start().await;
    let ids = line.enqueue(mixed()).await;
    // Each is killed in the middle of replies; the last one ends them all.
    for round in 0..5 {
        let mut worker = line.worker(&["--lease-ms", "1000", "--max-sequences", "16"]);
        line.until_tokens(&ids, 150 * (round + 1)).await;
        worker.kill9();
    }
    let _worker = line.worker(&["--lease-ms", "1000", "--speculation", "lookup"]);
    let told = line.told(&ids).await;
    for (number, (told, alone)) in told.iter().zip(&undisturbed).enumerate() {
        assert_eq!(told.words(), alone.words(), "turn {number}");
    }
}

#[tokio::test]
async fn a_loop_of_calls_keeps_its_history_exactly() {
    const ROUNDS: u32 = 6;
    let line = Line::start().await;
    let _worker = line.worker(&[]);
    let turn = |messages: Vec<Message>, seed| NewTurn {
        messages,
        ..calling(seed, ToolChoice::Required).agent(name("looping"))
    };
    let mut result = line.run(turn(calling(0, ToolChoice::Auto).messages, 0)).await;
    for round in 1..=ROUNDS {
        let before = result.usage.prompt_tokens + result.usage.completion_tokens;
        let answers = result.tool_calls.iter().map(|call| Message::tool_result(&call.id, "42")).collect();
        result = line.run(turn(answers, u64::from(round))).await;
        assert_eq!(result.outcome, Outcome::Completed, "{result:?}");
        // The last token of a reply is computed with what follows it.
        let cached = result.usage.cached_tokens;
        assert!(cached + 16 >= before - 1, "round {round}: {cached} of {before} tokens were cached");
    }
    let entries = line.transcript("looping").await;
    let entries = entries.iter().map(|entry| envelope::decode::<TranscriptEntry>(entry).expect("an entry"));
    let history: History = entries.collect();
    assert_eq!(history.ends.len() as u32, ROUNDS + 1, "no turn was tokenised again");
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
    let counted =
        NewTurn::user("x").agent(name("counted")).sampling(Sampling { max_tokens: Some(0), ..sampled(1) });
    let counted = line.run(counted).await;
    assert_eq!((counted.outcome, counted.usage.completion_tokens), (Outcome::Completed, 0));
    assert!(counted.usage.prompt_tokens > 10, "{counted:?}");
    assert!(line.transcript("counted").await.is_empty(), "a count is no part of the conversation");
    let raw = NewTurn { prompt: Some("Once upon a time".into()), messages: Vec::new(), ..NewTurn::user("") };
    let raw = line.run(raw.sampling(Sampling { max_tokens: Some(4), ..sampled(1) })).await;
    assert_eq!((raw.usage.prompt_tokens, raw.usage.completion_tokens), (4, 4));
}
