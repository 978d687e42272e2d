//! The command line: global flags and what they connect to. The subcommands are in [`crate::commands`].

use std::path::PathBuf;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser};
use turnmill_client::operate::Operator;
use turnmill_client::schema::{QueueName, TenantName};
use turnmill_client::{Client, ClientBuilder, ClientError};

use crate::commands::Command;
use crate::environment;
use crate::exit::Exit;

const AFTER_HELP: &str = "\
Exit codes:
  0  done; with --wait, --stream and tail: every turn completed; doctor: no check failed
  1  a turn failed, expired or was cancelled; a check failed; you said no; a result lacks tokens;
     the output cannot be written
  2  the command line or the input is wrong, a file cannot be read or written, or --yes is missing
  3  Redis cannot be reached, is not suitable, or refused a command; what it holds cannot be read;
     or the object store failed
  4  the turn, agent, worker or letter is not there, or its result has expired
  5  queue full: the turn, or the line that is named and all after it, was not enqueued
  6  its state does not allow it: the turn has ended, the agent runs a turn, the name is taken, …
If several turns fail, the others are done all the same, and the code is the first of 3, 2, 5, 4, 6, 1 that
one of them had.

Examples:
  turnmill submit --agent planner --message 'What is the capital of France?' --stream
  turnmill submit - --wait --json < turns.jsonl
  turnmill tail 01980000-0000-7000-8000-000000000000.0
  turnmill lag
  turnmill top
  turnmill dead replay --reason attempts --older-than 600 --dry-run
  turnmill events --group billing --consumer billing-1 --json";

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
pub struct Global {
    /// Where Redis is; rediss:// means TLS.
    #[arg(
        long,
        global = true,
        env = "TURNMILL_REDIS_URL",
        default_value = "redis://127.0.0.1:6379",
        value_name = "URL",
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    pub redis_url: String,
    /// The queue; it serves one model.
    #[arg(
        long,
        global = true,
        env = "TURNMILL_QUEUE",
        default_value = "default",
        value_name = "NAME",
        allow_hyphen_values = true
    )]
    pub queue: QueueName,
    /// Whose turns these are; tenants never share anything.
    #[arg(
        long,
        global = true,
        env = "TURNMILL_TENANT",
        default_value = "default",
        value_name = "NAME",
        allow_hyphen_values = true
    )]
    pub tenant: TenantName,
    /// Where turns too large for Redis go, as in file:///var/lib/turnmill or s3://bucket/prefix. `none` or `auto` means: no
    /// store (workers accept the same values).
    #[arg(
        long,
        global = true,
        env = "TURNMILL_STORE",
        value_name = "URL",
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    pub store: Option<String>,
    /// For rediss://: trust the authorities in this PEM file instead of the system's.
    #[arg(long, global = true, env = "TURNMILL_REDIS_CA", value_name = "FILE", allow_hyphen_values = true)]
    pub redis_ca: Option<PathBuf>,
}

impl Cli {
    /// Whether it takes over the terminal, on which nothing else must be written then.
    pub fn takes_over(&self) -> bool {
        self.command.takes_over()
    }

    /// The arguments of this process and its variables.
    pub fn read() -> Self {
        let matches = environment::without_empty(Self::command()).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Runs the subcommand.
    pub async fn run(self) -> Result<(), Exit> {
        if self.command.needs_environment() {
            environment::check()?;
        }
        self.command.run(&self.global).await
    }
}

impl Global {
    pub async fn connect(&self) -> Result<Client, ClientError> {
        self.builder().connect().await
    }

    pub async fn operator(&self) -> Result<Operator, ClientError> {
        Ok(self.connect().await?.operate())
    }

    /// An operator for one who watches: short patience, since the next reading comes soon.
    pub async fn watcher(&self) -> Result<Operator, ClientError> {
        Ok(crate::top::patience(self.builder()).connect().await?.operate())
    }

    /// A client as the flags say.
    pub fn builder(&self) -> ClientBuilder {
        let mut builder =
            Client::builder(&self.redis_url).queue(self.queue.clone()).tenant(self.tenant.clone());
        // One variable serves both sides: a worker's own folder is nothing that a client can rely on.
        if let Some(store) = self.store.as_deref().filter(|store| !["auto", "none"].contains(store)) {
            builder = builder.store(store);
        }
        match &self.redis_ca {
            Some(file) => builder.ca_file(file),
            None => builder,
        }
    }
}
