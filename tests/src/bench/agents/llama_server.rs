//! Agents that talk to `llama-server` as its users do: chat completions, the whole conversation in each request, and the
//! server's prompt cache, which is on by default. It has a slot an agent, so that no conversation drives another out.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use reqwest::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::process::{Child, Command};

use super::script::{self, SYSTEM};
use super::{AGENTS, Heard, REPLY_TOKENS, Round, Server, TURNS, check, round_of};
use crate::bench::BenchError;
use crate::bench::machine::cores;
use crate::bench::side::in_folder;
use crate::redis_server::free_port;

/// Tokens that each slot has room for: system prompt, four questions and replies.
const SLOT_TOKENS: usize = 2048;
/// How long it may take to load its model.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// Runs all agents to their ends, on a server of their own.
pub(super) async fn round(server: &Server) -> Result<Round, BenchError> {
    let running = Running::start(server).await?;
    running.say(json!([{"role": "user", "content": "Good morning."}])).await?;

    let began = Instant::now();
    let heard = try_join_all((0..AGENTS).map(|agent| talk(&running, agent))).await?;
    Ok(round_of(began, heard, running.child.id().and_then(super::peak_bytes)))
}

/// An agent's turns, one after the other. The agent itself remembers what was said.
async fn talk(server: &Running, agent: usize) -> Result<Vec<Heard>, BenchError> {
    let mut messages = vec![json!({"role": "system", "content": SYSTEM})];
    let mut heard = Vec::new();
    for turn in 0..TURNS {
        messages.push(json!({"role": "user", "content": script::question(agent, turn)}));
        let began = Instant::now();
        let said = server.say(Value::from(messages.clone())).await?;
        heard.push(Heard { elapsed: began.elapsed(), computed: said.computed });
        messages.push(json!({"role": "assistant", "content": said.text}));
    }
    Ok(heard)
}

/// A running server; killed on drop.
struct Running {
    child: Child,
    address: SocketAddr,
    client: Client,
    _log: NamedTempFile,
}

/// A reply.
struct Said {
    text: String,
    computed: u64,
}

/// What the server answers, as far as it is needed.
#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    usage: Usage,
    timings: Timings,
}

#[derive(Deserialize)]
struct Choice {
    message: Reply,
    finish_reason: String,
}

#[derive(Deserialize)]
struct Reply {
    content: String,
}

#[derive(Deserialize)]
struct Usage {
    completion_tokens: u64,
}

#[derive(Deserialize)]
struct Timings {
    /// Prompt tokens that were computed.
    prompt_n: u64,
}

impl Running {
    async fn start(server: &Server) -> Result<Self, BenchError> {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let log = NamedTempFile::new()?;
        let mut command = Command::new(in_folder(&server.folder, "llama-server")?);
        command.arg("-m").arg(&server.model).args(["-ngl", "0", "-t", &cores().to_string()]);
        command.args(["-np", &AGENTS.to_string(), "-c", &(AGENTS * SLOT_TOKENS).to_string()]);
        command.args(["--host", &address.ip().to_string(), "--port", &address.port().to_string()]);
        command.stdin(Stdio::null()).stdout(log.reopen()?).stderr(log.reopen()?).kill_on_drop(true);
        let child = command.spawn()?;
        // An error means that somebody chose the cryptography already, which is as good; it is not used here.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // It is on this machine, whatever proxy others are reached through.
        let client = Client::builder().no_proxy().build()?;
        let mut running = Self { child, address, client, _log: log };
        running.until_ready().await?;
        Ok(running)
    }

    async fn until_ready(&mut self) -> Result<(), BenchError> {
        let deadline = Instant::now() + START_TIMEOUT;
        let url = format!("http://{}/health", self.address);
        loop {
            if self.client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            let exited = self.child.try_wait()?;
            if exited.is_some() || Instant::now() > deadline {
                let reason = exited.map_or("it is not ready in time".to_owned(), |status| status.to_string());
                return Err(BenchError::Program { program: "llama-server".into(), reason });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The likeliest reply to a conversation, of the given length.
    async fn say(&self, messages: Value) -> Result<Said, BenchError> {
        let request = json!({
            "messages": messages, "max_tokens": REPLY_TOKENS, "temperature": 0, "ignore_eos": true, "cache_prompt": true,
        });
        let url = format!("http://{}/v1/chat/completions", self.address);
        let request =
            self.client.post(url).header("content-type", "application/json").body(request.to_string());
        let answer = request.send().await?.error_for_status()?.text().await?;
        let completion: Completion = crate::bench::command::json("llama-server", &answer)?;
        let choice = completion.choices.into_iter().next();
        let choice = choice.ok_or_else(|| BenchError::Unreadable {
            program: "llama-server".into(),
            reason: "it gives no choice".into(),
        })?;
        check(completion.usage.completion_tokens, || choice.finish_reason)?;
        Ok(Said { text: choice.message.content, computed: completion.timings.prompt_n })
    }
}
