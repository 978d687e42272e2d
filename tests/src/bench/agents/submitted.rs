//! Agents whose turns `turnmill submit` puts into the queue and waits for, so that client and worker are of one build,
//! whatever they say to each other.

use std::io::Write;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Instant;

use serde::Deserialize;
use serde_json::json;
use tempfile::{NamedTempFile, TempDir};
use tokio::process::Child;

use super::script::{self, SYSTEM};
use super::{AGENTS, REPLY_TOKENS, TURNS, check};
use crate::bench::BenchError;
use crate::bench::build::Build;
use crate::bench::command::{json as read, last_line, output};
use crate::redis_server::{RedisServer, free_port};

/// Turns per second of all agents, on a Redis and a worker of their own.
pub(in crate::bench) async fn turns_per_s(build: &Build, model: &Path) -> Result<f64, BenchError> {
    // Before the worker, so that it goes after it.
    let store = TempDir::new()?;
    let redis = tokio::task::block_in_place(RedisServer::start);
    let mut serving = Serving::start(build, &redis, model, store.path())?;
    let seconds = serving.while_it_runs(talk(build, &redis)).await?;
    // It is gone, with its memory, before anything else is measured.
    serving.worker.kill().await?;
    Ok((AGENTS * TURNS) as f64 / seconds)
}

/// Seconds that all turns take, from the start of `turnmill submit` to its end.
async fn talk(build: &Build, redis: &RedisServer) -> Result<f64, BenchError> {
    // Its answer shows that the worker has loaded its model.
    submit(build, redis, &[line("guest", json!([{"role": "user", "content": "Good morning."}]))]).await?;
    let began = Instant::now();
    submit(build, redis, &lines()).await?;
    Ok(began.elapsed().as_secs_f64())
}

/// All turns, those of one agent in their order; the queue makes each wait for the agent's last.
fn lines() -> Vec<String> {
    let of_agents = |turn: usize| (0..AGENTS).map(move |agent| (agent, turn));
    let line = |(agent, turn)| {
        let question = json!({"role": "user", "content": script::question(agent, turn)});
        let system = json!({"role": "system", "content": SYSTEM});
        let messages = if turn == 0 { json!([system, question]) } else { json!([question]) };
        line(script::name(agent), messages)
    };
    (0..TURNS).flat_map(of_agents).map(line).collect()
}

fn line(agent: &str, messages: serde_json::Value) -> String {
    let turn = json!({
        "agent": agent, "messages": messages, "temperature": 0, "max_tokens": REPLY_TOKENS, "ignore_eos": true,
    });
    turn.to_string()
}

/// What `turnmill submit --wait --json` prints for a turn, as far as it is needed here.
#[derive(Deserialize)]
struct Ended {
    outcome: String,
    usage: Usage,
}

#[derive(Deserialize)]
struct Usage {
    completion_tokens: u64,
}

/// Submits turns, waits for them, and checks that each has the length that was asked for.
async fn submit(build: &Build, redis: &RedisServer, lines: &[String]) -> Result<(), BenchError> {
    let mut file = NamedTempFile::new()?;
    file.write_all(lines.join("\n").as_bytes())?;
    let mut command = build.client();
    command.args(["submit", "--wait", "--json", "--redis-url", &redis.url()]).arg(file.path());
    let ended = output(&mut command).await?;
    let ended: Vec<Ended> =
        ended.lines().map(|line| read("turnmill submit", line)).collect::<Result<_, _>>()?;
    for turn in &ended {
        check(turn.usage.completion_tokens, || format!("it is {}", turn.outcome))?;
    }
    if ended.len() == lines.len() {
        return Ok(());
    }
    let reason = format!("it printed {} results of {}", ended.len(), lines.len());
    Err(BenchError::Program { program: "turnmill submit".into(), reason })
}

/// A worker that serves; killed on drop.
struct Serving {
    worker: Child,
    log: NamedTempFile,
}

impl Serving {
    fn start(build: &Build, redis: &RedisServer, model: &Path, store: &Path) -> Result<Self, BenchError> {
        let log = NamedTempFile::new()?;
        let mut command = build.worker();
        command.args([
            "serve",
            "--redis-url",
            &redis.url(),
            "--store",
            &format!("file://{}", store.display()),
        ]);
        command.args(["--http-addr", &format!("127.0.0.1:{}", free_port())]).arg("--model").arg(model);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.reopen()?).kill_on_drop(true);
        Ok(Self { worker: command.spawn()?, log })
    }

    /// The result of `work`, unless the worker ends before.
    async fn while_it_runs<T>(
        &mut self,
        work: impl Future<Output = Result<T, BenchError>>,
    ) -> Result<T, BenchError> {
        tokio::select! {
            done = work => done,
            status = self.worker.wait() => Err(self.ended(status?)),
        }
    }

    fn ended(&self, status: ExitStatus) -> BenchError {
        let log = std::fs::read_to_string(self.log.path()).unwrap_or_default();
        let reason = format!("{} ({status})", last_line(&log));
        BenchError::Program { program: "turnmill-worker serve".into(), reason }
    }
}
