//! Loops of tool calls: what the model reads in each round begins with what it read and said before, so that little is computed
//! again, whichever way a model's template writes calls and results.

use std::path::PathBuf;

use serde_json::json;
use turnmill_client::{NewTurn, TurnResult};
use turnmill_schema::{History, Message, Outcome, ToolChoice, TranscriptEntry, envelope};
use turnmill_tests::line::{Line, exactly, name};

use super::act::calling;

const ROUNDS: u64 = 10;
const BLOCK_TOKENS: u32 = 16;
/// More than a round with a thought has.
const ROUND_TOKENS: u32 = 250;

/// A real model's template.
fn template(file: &str) -> String {
    let folder = std::env::var_os("TURNMILL_TEST_TEMPLATES")
        .expect("TURNMILL_TEST_TEMPLATES names a folder of templates; deploy/test fetches it and sets this");
    PathBuf::from(folder).join(file).into_os_string().into_string().expect("a path of text")
}

/// The next round of a loop: a call, or its result and the next call.
fn next_call(round: u64, before: Option<&TurnResult>) -> NewTurn {
    let turn = NewTurn { parallel_tool_calls: Some(false), ..calling(round, ToolChoice::Required) };
    let Some(before) = before else { return turn };
    let results = before.tool_calls.iter().map(|call| Message::tool_result(&call.id, "42"));
    NewTurn { messages: results.collect(), ..turn }
}

/// The next question, and how far the answer has come: a thought and a call that another model made, and its result.
fn next_question(round: u64, _: Option<&TurnResult>) -> NewTurn {
    let question = calling(round, ToolChoice::Auto).messages;
    let called = json!({"role": "assistant", "content": null, "reasoning_content": "I have to look it up. ".repeat(20), "tool_calls": [
        {"id": format!("call{round}"), "type": "function", "function": {"name": "now", "arguments": "{\"zone\": \"utc\"}"}}
    ]});
    let called = serde_json::from_value(called).expect("a message");
    let result = Message::tool_result(format!("call{round}"), "It is noon.");
    let messages = [question, vec![called, result]].concat();
    NewTurn { messages, ..calling(round, ToolChoice::None) }.sampling(exactly(20))
}

/// The tokens of the history that each round of a loop computed again, one block apart, and the history in the end.
async fn computed_again(
    line: &Line,
    keep_thoughts: bool,
    next: impl Fn(u64, Option<&TurnResult>) -> NewTurn,
) -> (Vec<u32>, History) {
    let mut again = Vec::new();
    let mut before: Option<TurnResult> = None;
    for round in 0..=ROUNDS {
        let turn = NewTurn { keep_thoughts, ..next(round, before.as_ref()).agent(name("looping")) };
        let result = line.run(turn).await;
        assert_eq!(result.outcome, Outcome::Completed, "{result:?}");
        if let Some(before) = before {
            let known = before.usage.prompt_tokens + before.usage.completion_tokens;
            // The last token of a reply is computed with what follows it, and a block is found only if it is full.
            again.push((known - 1).saturating_sub(result.usage.cached_tokens + BLOCK_TOKENS));
        }
        before = Some(result);
    }
    let entries = line.transcript("looping").await;
    let entries = entries.iter().map(|entry| envelope::decode::<TranscriptEntry>(entry).expect("an entry"));
    (again, entries.collect())
}

#[tokio::test]
async fn loops_of_calls_compute_nothing_again() {
    for file in [
        None,
        Some("Qwen-Qwen2.5-7B-Instruct.jinja"),
        Some("Qwen-Qwen3-0.6B.jinja"),
        Some("meta-llama-Llama-3.1-8B-Instruct.jinja"),
    ] {
        let line = Line::start().await;
        let template = file.map(template);
        let flags: Vec<&str> = template.iter().flat_map(|file| ["--chat-template", file]).collect();
        let _worker = line.worker(&flags);
        let (again, history) = computed_again(&line, false, next_call).await;
        assert_eq!(again, [0; ROUNDS as usize], "{file:?}");
        assert_eq!(history.ends.len() as u64, ROUNDS + 1, "no turn was tokenised again");
    }
}

/// Qwen3's template keeps thoughts until the next question, and drops them then.
#[tokio::test]
async fn dropped_thoughts_cost_the_turn_that_had_them_and_kept_ones_cost_nothing() {
    for keep_thoughts in [false, true] {
        let line = Line::start().await;
        let _worker = line.worker(&["--chat-template", &template("Qwen-Qwen3-0.6B.jinja")]);
        let (again, history) = computed_again(&line, keep_thoughts, next_question).await;
        println!(
            "keep_thoughts {keep_thoughts}, of {} tokens computed again: {again:?}",
            history.tokens.len()
        );
        let expected = if keep_thoughts { 0..=0 } else { 1..=ROUND_TOKENS };
        assert!(again.iter().all(|again| expected.contains(again)), "{again:?}");
    }
}
