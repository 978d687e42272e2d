//! Agents that talk through a queue to a real worker.

use std::path::Path;
use std::time::Instant;

use futures::future::try_join_all;
use tempfile::TempDir;
use turnmill_client::schema::{Message, Outcome, Role};
use turnmill_client::{Client, NewTurn};

use super::script::{self, SYSTEM};
use super::{AGENTS, Heard, REPLY_TOKENS, Round, TURNS, check, round_of};
use crate::bench::BenchError;
use crate::line::{exactly, name};
use crate::redis_server::RedisServer;
use crate::worker::Worker;

/// Runs all agents to their ends, on a Redis and a worker of their own.
pub(super) async fn round(model: &Path, keeps: bool) -> Result<Round, BenchError> {
    // Before the worker, so that it goes after it.
    let folder = TempDir::new()?;
    let store = if keeps { format!("file://{}", folder.path().display()) } else { "none".to_owned() };
    let model = model.to_string_lossy();
    let redis = RedisServer::start();
    let flags = ["--model", &model, "--store", &store];
    let worker = tokio::task::block_in_place(|| Worker::start(&redis, &flags));
    let producer = Client::builder(redis.url()).connect().await?;
    take(&producer, NewTurn::user("Good morning.").sampling(exactly(REPLY_TOKENS))).await?;

    let began = Instant::now();
    let heard = try_join_all((0..AGENTS).map(|agent| talk(&producer, agent))).await?;
    Ok(round_of(began, heard, super::peak_bytes(worker.pid())))
}

/// An agent's turns, one after the other. The queue remembers what was said.
async fn talk(producer: &Client, agent: usize) -> Result<Vec<Heard>, BenchError> {
    let mut heard = Vec::new();
    for turn in 0..TURNS {
        let mut messages = vec![Message::new(Role::User, script::question(agent, turn))];
        if turn == 0 {
            messages.insert(0, Message::new(Role::System, SYSTEM));
        }
        let turn = NewTurn { messages, sampling: exactly(REPLY_TOKENS), ..NewTurn::default() };
        heard.push(take(producer, turn.agent(name(script::name(agent)))).await?);
    }
    Ok(heard)
}

async fn take(producer: &Client, turn: NewTurn) -> Result<Heard, BenchError> {
    let began = Instant::now();
    let turn = producer.enqueue(turn).await?.turn;
    let result = producer.wait(turn).await?;
    let made = if result.outcome == Outcome::Completed { result.usage.completion_tokens } else { 0 };
    check(made.into(), || result.error.clone().unwrap_or_else(|| format!("{:?}", result.finish)))?;
    let computed = result.usage.prompt_tokens.saturating_sub(result.usage.cached_tokens);
    Ok(Heard { elapsed: began.elapsed(), computed: computed.into() })
}
