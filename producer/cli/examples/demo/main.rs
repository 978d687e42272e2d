//! Three agents with one system prompt take two turns each, at once; their replies stream to the terminal.
//!
//! `deploy/demo` runs this against a Redis and a worker of its own. It also shows the library's whole use:
//! connect, enqueue, follow.

mod cast;
mod screen;
mod table;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use futures::future::try_join_all;
use turnmill_client::schema::{AgentName, End, Event, Message, Outcome, QueueName, Role, Sampling};
use turnmill_client::{Client, NewTurn};

use cast::{AGENTS, Agent, SYSTEM};
use screen::{Screen, Voice, visible};
use table::Row;

/// Longest wait for one turn. A worker that is there needs seconds.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs the demo.
#[derive(Parser)]
struct Args {
    /// Where Redis is.
    #[arg(long, default_value = "redis://127.0.0.1:6379")]
    redis_url: String,
    /// The queue that a worker serves.
    #[arg(long, default_value = "default")]
    queue: QueueName,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {}", visible(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let client = Client::builder(&args.redis_url).queue(args.queue).connect().await?;
    let screen = Screen::new();
    let talks = AGENTS.iter().map(|agent| talk(&client, agent, screen.voice(agent.name)));
    let rows = try_join_all(talks).await?.concat();
    println!("\n{}\n\n{}", table::render(&rows), table::summary(&rows));
    Ok(())
}

/// An agent's turns, one after the other: the second continues the history the first one left.
async fn talk(client: &Client, agent: &Agent, mut voice: Voice) -> Result<Vec<Row>, Box<dyn Error>> {
    let name = AgentName::new(agent.name)?;
    let mut rows = Vec::new();
    for (index, question) in agent.questions.into_iter().enumerate() {
        let first = index == 0;
        let mut messages = vec![Message::new(Role::User, question)];
        if first {
            messages.insert(0, Message::new(Role::System, SYSTEM));
        }
        // A small model left to the likeliest token says the same thing again and again.
        let sampling = Sampling {
            temperature: 0.0,
            repetition_penalty: 1.15,
            max_tokens: Some(64),
            ..Sampling::default()
        };
        let turn =
            NewTurn { messages, sampling, new_session: first, ..NewTurn::default() }.agent(name.clone());
        voice.asked(question);
        let end = tokio::time::timeout(PATIENCE, take(client, turn, &mut voice))
            .await
            .map_err(|_| "a turn had no result for five minutes; is a worker serving this queue?")??;
        rows.push(Row { agent: agent.name, turn: index + 1, end });
    }
    Ok(rows)
}

/// Enqueues a turn and speaks its reply as it is made.
async fn take(client: &Client, turn: NewTurn, voice: &mut Voice) -> Result<End, Box<dyn Error>> {
    let turn = client.enqueue(turn).await?.turn;
    let mut events = client.follow(turn, None);
    while let Some(followed) = events.next().await {
        match followed?.event {
            Event::Begin(_) => {}
            Event::Delta(delta) => voice.speak(&delta.content()),
            Event::End(end) => {
                voice.finish();
                return match end.outcome {
                    Outcome::Completed => Ok(end),
                    outcome => {
                        Err(format!("turn {turn} {outcome:?}: {}", end.error.unwrap_or_default()).into())
                    }
                };
            }
        }
    }
    Err(format!("the result stream of turn {turn} ended without an end").into())
}
