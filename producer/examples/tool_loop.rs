//! An agent that acts: it calls tools, this program runs them, and their results are the agent's next turn, until it answers.
//!
//!     cargo run --package turnmill-client --example tool_loop -- "What is 17 + 25?"
//!
//! TURNMILL_REDIS_URL and TURNMILL_QUEUE say where the queue is.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use turnmill_client::{
    AgentName, Client, FinishReason, Message, NewTurn, Sampling, Tool, ToolCall, ToolChoice,
};

/// Turns at most. A model can call tools for ever.
const ROUNDS: usize = 10;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let question = env::args().nth(1).unwrap_or_else(|| "What is 17 + 25?".to_owned());
    let redis = env::var("TURNMILL_REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let queue = env::var("TURNMILL_QUEUE").unwrap_or_else(|_| "default".to_owned());
    let client = Client::builder(&redis).queue(queue.parse()?).connect().await?;
    let agent: AgentName = "tool-loop".parse()?;

    // A new conversation, in which the model has to call a tool first: one, because a small model does not know when to stop.
    let mut turn = NewTurn {
        new_session: true,
        parallel_tool_calls: Some(false),
        ..NewTurn::user(question).agent(agent.clone()).tools(tools()?, ToolChoice::Required)
    };
    for _ in 0..ROUNDS {
        turn.sampling = Sampling { temperature: 0.0, max_tokens: Some(256), ..Sampling::default() };
        let enqueued = client.enqueue(turn).await?;
        let result = client.wait(enqueued.turn).await?;
        if let Some(error) = result.error {
            return Err(error.into());
        }
        if result.finish != Some(FinishReason::ToolCalls) {
            println!("{}", result.text.unwrap_or_default());
            return Ok(());
        }
        let mut messages = Vec::new();
        for call in &result.tool_calls {
            let given = run(call);
            println!("{}({}) = {given}", call.name, call.arguments);
            messages.push(Message { name: Some(call.name.clone()), ..Message::tool_result(&call.id, given) });
        }
        // The history has the calls; the turn says what they gave, and which tools there are now.
        let next = NewTurn { messages, ..NewTurn::default() }.agent(agent.clone()).after(enqueued.turn);
        turn = next.tools(tools()?, ToolChoice::Auto);
    }
    Err(format!("the agent called tools in {ROUNDS} turns and gave no answer").into())
}

/// What the model may call, as OpenAI's API has it.
///
/// A tool's name has 1 to 128 of the characters A-Z a-z 0-9 _ - . If the names come from elsewhere (an MCP server's "files/read"),
/// give the model `turnmill_client::tool_name(name)`, and find the tool of a call by that.
fn tools() -> Result<Vec<Tool>, serde_json::Error> {
    serde_json::from_value(json!([
        {"type": "function", "function": {
            "name": "add",
            "description": "Adds two numbers",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
                "required": ["a", "b"],
                "additionalProperties": false
            }
        }},
        {"type": "function", "function": {
            "name": "time_at",
            "description": "Tells the time of day at an offset from UTC",
            "parameters": {
                "type": "object",
                "properties": {"hours": {"type": "integer", "minimum": -12, "maximum": 14}},
                "required": ["hours"],
                "additionalProperties": false
            }
        }}
    ]))
}

/// What a call gives. What is wrong with a call is a result as well: the model can do better next time.
fn run(call: &ToolCall) -> String {
    let arguments: Value = serde_json::from_str(&call.arguments).unwrap_or_default();
    let given = match call.name.as_str() {
        "add" => arguments["a"].as_f64().zip(arguments["b"].as_f64()).map(|(a, b)| json!({ "sum": a + b })),
        "time_at" => arguments["hours"].as_i64().map(|hours| json!({ "time": time_at(hours) })),
        _ => None,
    };
    given
        .unwrap_or_else(|| json!({"error": "there is no such tool, or its arguments are missing"}))
        .to_string()
}

fn time_at(hours: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 60;
    let minutes = (now as i64).saturating_add(hours.saturating_mul(60)).rem_euclid(24 * 60);
    format!("{:02}:{:02}", minutes / 60, minutes % 60)
}
