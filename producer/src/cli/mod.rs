//! The command line: global flags, and one file for each subcommand.

mod completions;
mod exit;
mod input;
mod lag;
mod print;
mod sampling;
mod submit;
mod tail;
mod version;

use clap::{Args, Parser, Subcommand};
use turnmill::schema::Name;
use turnmill::{Producer, ProducerError, ProducerSettings};

pub use exit::Exit;

const AFTER_HELP: &str = "\
Exit codes:
  0  done; with --wait, --stream and tail: every turn completed
  1  a turn failed, expired or was cancelled
  2  the command line or the input is wrong
  3  Redis cannot be reached, is not suitable, or refused a command
  4  the turn is unknown or its result has expired

Examples:
  turnmill submit --agent planner --message 'What is the capital of France?' --stream
  turnmill submit - --wait --json < turns.jsonl
  turnmill tail 01980000-0000-7000-8000-000000000000.0";

/// Puts agent turns into a Turnmill queue and reads what comes back.
#[derive(Debug, Parser)]
#[command(name = "turnmill", version, after_help = AFTER_HELP, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every subcommand.
#[derive(Debug, Args)]
#[command(next_help_heading = "Queue")]
struct Global {
    /// Where Redis is; rediss:// for TLS.
    #[arg(
        long,
        global = true,
        env = "TURNMILL_REDIS_URL",
        default_value = "redis://127.0.0.1:6379",
        value_name = "URL",
        hide_env_values = true
    )]
    redis_url: String,
    /// The queue; it serves one model.
    #[arg(long, global = true, env = "TURNMILL_QUEUE", default_value = "default", value_name = "NAME")]
    queue: Name,
    /// Whose turns these are; tenants never share anything.
    #[arg(long, global = true, env = "TURNMILL_TENANT", default_value = "default", value_name = "NAME")]
    tenant: Name,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Enqueue turns: one from flags, or many as JSON lines.
    Submit(Box<submit::Submit>),
    /// Follow a turn's reply, from its start or from an entry on.
    Tail(tail::Tail),
    /// Show how much work waits in the queue.
    Lag(lag::Lag),
    /// Show versions.
    Version,
    /// Write a completion script for a shell.
    Completions(completions::Completions),
}

impl Cli {
    /// Runs the subcommand.
    pub async fn run(self) -> Result<(), Exit> {
        match self.command {
            Command::Submit(submit) => submit.run(&self.global).await,
            Command::Tail(tail) => tail.run(&self.global).await,
            Command::Lag(lag) => lag.run(&self.global).await,
            Command::Version => version::run(),
            Command::Completions(completions) => completions.run(),
        }
    }
}

impl Global {
    async fn connect(&self) -> Result<Producer, ProducerError> {
        let settings = ProducerSettings::new(self.queue.clone(), self.tenant.clone());
        Producer::connect(&self.redis_url, settings).await
    }
}
