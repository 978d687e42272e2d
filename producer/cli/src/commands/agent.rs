//! `turnmill agent`: list, show and hold agents, and go back in or copy their histories.

use std::io::{Write, stdout};

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use turnmill_client::operate::Operator;
use turnmill_client::operate::agent::{AgentAction, AgentQuery, AgentView};
use turnmill_client::schema::{AgentName, TurnId};

use super::Tenants;
use super::agent_file::{Export, Import};
use crate::cli::Global;
use crate::confirm::Confirm;
use crate::exit::Exit;
use crate::print::json_line;
use crate::table::{or_dash, print_fields, print_table, time};
use crate::text::{age, for_stdout};

#[derive(Debug, Subcommand)]
pub enum Agent {
    /// List agents that have work, the oldest waiting turn first.
    Ls(Ls),
    /// Show what an agent waits for.
    Show(Which),
    /// Lease no more of an agent's turns; a turn that runs goes on.
    Pause(Which),
    /// Lease the turns of a paused or halted agent again.
    Resume(Which),
    /// Choose what happens to an agent's later turns when one becomes a dead letter.
    Policy(Policy),
    /// Forget an agent's history: its next turn starts a new conversation.
    Reset(Reset),
    /// Forget what an agent heard and said after a turn.
    Rollback(Rollback),
    /// Make a new agent with the history of another one, whole or up to a turn.
    Fork(Fork),
    /// Write an agent to a file: its history and, with --store, its K and V.
    Export(Export),
    /// Make an agent from a file that `agent export` wrote.
    Import(Import),
}

#[derive(Debug, Args)]
pub struct Ls {
    #[command(flatten)]
    tenants: Tenants,
    /// List idle agents too. This reads all keys of the server, which is slow if there are many.
    #[arg(long)]
    idle: bool,
    /// List at most N agents.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Which {
    /// The agent's name.
    agent: AgentName,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Policy {
    #[command(flatten)]
    which: Which,
    /// `halt`: later turns wait for `agent resume`. `skip`: they go on.
    policy: OnDead,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnDead {
    Halt,
    Skip,
}

#[derive(Debug, Args)]
pub struct Reset {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    confirm: Confirm,
}

#[derive(Debug, Args)]
pub struct Rollback {
    #[command(flatten)]
    which: Which,
    /// The last turn that stays in the history.
    #[arg(long, value_name = "TURN")]
    to: TurnId,
    #[command(flatten)]
    confirm: Confirm,
}

#[derive(Debug, Args)]
pub struct Fork {
    #[command(flatten)]
    which: Which,
    /// The new agent's name.
    #[arg(value_name = "NEW_AGENT")]
    new: AgentName,
    /// The last turn that the new agent knows [default: the newest].
    #[arg(long, value_name = "TURN")]
    at: Option<TurnId>,
}

/// What became of an agent's history.
#[derive(Serialize)]
struct Turns<'a> {
    agent: &'a AgentName,
    /// Turns that stay, or that were copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    turns: Option<usize>,
    /// Turns that were forgotten.
    #[serde(skip_serializing_if = "Option::is_none")]
    forgotten: Option<usize>,
}

/// What a command made of an agent.
#[derive(Serialize)]
struct Done<'a> {
    agent: &'a AgentName,
    state: String,
}

impl Agent {
    pub async fn run(self, global: &Global) -> Result<(), Exit> {
        match &self {
            Self::Reset(reset) => {
                reset.confirm.ask(&format!("forget the history of agent {}", reset.which.agent))?;
            }
            Self::Rollback(Rollback { which, to, confirm }) => {
                confirm.ask(&format!("forget the history of agent {} after turn {to}", which.agent))?;
            }
            _ => {}
        }
        let operator = global.operator().await?;
        match self {
            Self::Ls(ls) => ls.run(&operator).await,
            Self::Show(which) => show(&operator.agent(&which.agent).await?, which.json),
            Self::Pause(which) => act(&operator, which, AgentAction::Pause).await,
            Self::Resume(which) => act(&operator, which, AgentAction::Resume).await,
            Self::Policy(Policy { which, policy: OnDead::Halt }) => {
                act(&operator, which, AgentAction::Halt).await
            }
            Self::Policy(Policy { which, policy: OnDead::Skip }) => {
                act(&operator, which, AgentAction::Skip).await
            }
            Self::Reset(reset) => act(&operator, reset.which, AgentAction::Reset).await,
            Self::Rollback(rollback) => rollback.run(&operator).await,
            Self::Fork(fork) => fork.run(&operator).await,
            Self::Export(export) => export.run(&operator).await,
            Self::Import(import) => import.run(&operator).await,
        }
    }
}

impl Rollback {
    async fn run(self, operator: &Operator) -> Result<(), Exit> {
        let Which { agent, json } = self.which;
        let forgotten = operator.roll_back(&agent, self.to).await?;
        if json {
            return json_line(&Turns { agent: &agent, turns: None, forgotten: Some(forgotten) });
        }
        Ok(writeln!(stdout(), "{agent} forgot {forgotten} turns after {}", self.to)?)
    }
}

impl Fork {
    async fn run(self, operator: &Operator) -> Result<(), Exit> {
        let Which { agent, json } = self.which;
        let turns = operator.fork(&agent, &self.new, self.at).await?;
        if json {
            return json_line(&Turns { agent: &self.new, turns: Some(turns), forgotten: None });
        }
        Ok(writeln!(stdout(), "{} knows {turns} turns of {agent}", self.new)?)
    }
}

async fn act(operator: &Operator, which: Which, action: AgentAction) -> Result<(), Exit> {
    let state = operator.act_on_agent(&which.agent, action).await?;
    if which.json {
        return json_line(&Done { agent: &which.agent, state });
    }
    Ok(writeln!(stdout(), "{} is {}", which.agent, for_stdout(&state))?)
}

impl Ls {
    async fn run(self, operator: &Operator) -> Result<(), Exit> {
        let query = AgentQuery { scope: self.tenants.scope(), idle: self.idle, limit: self.limit };
        let agents = operator.agents(query).await?;
        if self.json {
            return agents.iter().try_for_each(json_line);
        }
        let header = ["TENANT", "AGENT", "STATE", "TURNS", "HEAD", "AGE", "WORKER"];
        print_table(&header, agents.iter().map(row))
    }
}

fn row(view: &AgentView) -> Vec<String> {
    vec![
        view.tenant.clone(),
        or_dash(view.agent.as_ref()),
        state(view),
        view.backlog.to_string(),
        or_dash(view.head),
        or_dash(view.head_age_ms.map(age)),
        or_dash(view.worker.as_ref()),
    ]
}

fn show(view: &AgentView, json: bool) -> Result<(), Exit> {
    if json {
        return json_line(view);
    }
    print_fields([
        ("agent", view.agent.as_ref().map(ToString::to_string)),
        ("tenant", Some(view.tenant.clone())),
        ("state", Some(state(view))),
        ("on a dead letter", Some(view.on_dead.clone())),
        ("turns", Some(view.backlog.to_string())),
        ("head", view.head.map(|head| head.to_string())),
        ("head enqueued", view.head_age_ms.map(|ms| format!("{} ago", age(ms)))),
        ("due", view.due_ms.map(time)),
        ("worker", view.worker.clone()),
        ("epoch", view.epoch.map(|epoch| epoch.to_string())),
        ("turns in its history", Some(view.transcript.to_string())),
    ])
}

fn state(view: &AgentView) -> String {
    match &view.hold {
        Some(hold) => format!("{}, then {hold}", view.state),
        None => view.state.clone(),
    }
}
