//! The subcommands, one file for each.

mod agent;
mod agent_file;
mod completions;
mod dead;
mod doctor;
mod events;
mod lag;
mod man;
mod queue;
mod submit;
mod tail;
mod top;
mod turn;
mod version;
mod worker;

use clap::{Args, Subcommand};
use turnmill_client::operate::Scope;

use crate::cli::Global;
use crate::exit::Exit;

/// Whose agents and turns a command looks at.
#[derive(Clone, Copy, Debug, Args)]
pub struct Tenants {
    /// All tenants, not only --tenant.
    #[arg(long, short = 'A')]
    all_tenants: bool,
}

impl Tenants {
    pub fn scope(self) -> Scope {
        if self.all_tenants { Scope::AllTenants } else { Scope::Tenant }
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enqueue turns: one from flags, or many as JSON lines.
    Submit(Box<submit::Submit>),
    /// Follow a turn's reply, from its start or from an entry on.
    Tail(tail::Tail),
    /// Show how much work waits in the queue.
    Lag(lag::Lag),
    /// Show, cancel or retry turns.
    #[command(subcommand)]
    Turn(turn::Turn),
    /// List, show, pause or reset agents; roll back, fork, export or import their histories.
    #[command(subcommand)]
    Agent(agent::Agent),
    /// List workers, tell one to drain, or forget one that is gone.
    #[command(subcommand)]
    Worker(worker::Worker),
    /// List, show, replay or purge turns that failed for good.
    #[command(subcommand)]
    Dead(dead::Dead),
    /// Pause or resume the queue, or show its statistics.
    #[command(subcommand)]
    Queue(queue::Queue),
    /// Follow the turns of all agents as they end.
    Events(events::Events),
    /// Watch queue, workers, running turns and dead letters; cancel, drain, replay and pause by key.
    Top(top::Top),
    /// Check the server and the queue, and say what to do.
    Doctor(doctor::Doctor),
    /// Show versions.
    Version,
    /// Write a completion script for a shell.
    Completions(completions::Completions),
    /// Write manual pages, one for each command.
    Man(man::Manual),
}

impl Command {
    /// Whether it takes over the terminal, on which nothing else must be written then.
    pub fn takes_over(&self) -> bool {
        matches!(self, Self::Top(top) if top.takes_over())
    }

    /// Whether it reads the environment. A misspelt variable is refused then.
    pub fn needs_environment(&self) -> bool {
        !matches!(self, Self::Version | Self::Completions(_) | Self::Man(_))
    }

    pub async fn run(self, global: &Global) -> Result<(), Exit> {
        match self {
            Self::Submit(submit) => submit.run(global).await,
            Self::Tail(tail) => tail.run(global).await,
            Self::Lag(lag) => lag.run(global).await,
            Self::Turn(turn) => turn.run(global).await,
            Self::Agent(agent) => agent.run(global).await,
            Self::Worker(worker) => worker.run(global).await,
            Self::Dead(dead) => dead.run(global).await,
            Self::Queue(queue) => queue.run(global).await,
            Self::Events(events) => events.run(global).await,
            Self::Top(top) => top.run(global).await,
            Self::Doctor(doctor) => doctor.run(global).await,
            Self::Version => version::run(),
            Self::Completions(completions) => completions.run(),
            Self::Man(manual) => manual.run(),
        }
    }
}
