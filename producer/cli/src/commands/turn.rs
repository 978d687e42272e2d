//! `turnmill turn`: show, cancel or retry turns.

use clap::{Args, Subcommand};
use turnmill_client::Cancelled;
use turnmill_client::operate::Operator;
use turnmill_client::operate::Scope;
use turnmill_client::operate::dead::DeadQuery;
use turnmill_client::operate::turn::{RunNow, TurnView};
use turnmill_client::schema::{Outcome, TurnId};

use crate::changes::{Done, change_each, named, show_each};
use crate::cli::Global;
use crate::exit::Exit;
use crate::print::json_line;
use crate::table::{print_fields, time};

#[derive(Debug, Subcommand)]
pub enum Turn {
    /// Show what became of turns.
    Show(Which),
    /// Cancel turns, waiting or running, and say at once what became of each.
    Cancel(Which),
    /// Run turns now or again: a turn that waits for a time runs now, a dead letter is replayed as a new turn.
    Retry(Which),
}

#[derive(Debug, Args)]
pub struct Which {
    /// The turns, as `submit` printed them.
    #[arg(required = true, value_name = "TURN")]
    turns: Vec<TurnId>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

impl Turn {
    pub async fn run(self, global: &Global) -> Result<(), Exit> {
        let operator = global.operator().await?;
        match self {
            Self::Show(Which { turns, json }) => {
                show_each(named(turns), async |turn| show(&operator.turn(turn).await?, json)).await
            }
            Self::Cancel(Which { turns, json }) => {
                change_each(named(turns), async |turn| cancel(&operator, turn, json).await).await
            }
            Self::Retry(Which { turns, json }) => {
                change_each(named(turns), async |turn| retry(&operator, turn).await?.print(json)).await
            }
        }
    }
}

/// Cancels one. An error if it was too late.
async fn cancel(operator: &Operator, turn: TurnId, json: bool) -> Result<(), Exit> {
    let outcome = match operator.client().cancel(turn).await? {
        Cancelled::Cancelled => return Done::new(turn, "cancelled").print(json),
        Cancelled::Ended(outcome) => outcome,
    };
    let printed = Done { outcome: Some(outcome), ..Done::new(turn, "ended") }.print(json);
    match outcome {
        Outcome::Cancelled => printed,
        _ => Err(Exit::conflict(format!("turn {turn} had ended as {}", outcome.as_str()))),
    }
}

async fn retry(operator: &Operator, turn: TurnId) -> Result<Done, Exit> {
    match operator.run_now(turn).await? {
        RunNow::Promoted => Ok(Done::new(turn, "runs_now")),
        RunNow::NotDelayed => Err(Exit::conflict(format!(
            "turn {turn} does not wait for a time: see turnmill turn show {turn}"
        ))),
        RunNow::Ended(Outcome::Failed) => replay(operator, turn).await,
        RunNow::Ended(outcome) => Err(Exit::conflict(format!(
            "turn {turn} has ended as {} and keeps nothing to run again; submit it anew",
            outcome.as_str()
        ))),
    }
}

async fn replay(operator: &Operator, turn: TurnId) -> Result<Done, Exit> {
    let query = DeadQuery { scope: Scope::AllTenants, turns: vec![turn], ..DeadQuery::default() };
    let found = operator.dead_letters(&query).await?;
    let Some(letter) = found.letters.first() else {
        return Err(Exit::conflict(format!("turn {turn} failed, and its dead letter is gone")));
    };
    let new = operator.replay(letter).await?;
    Ok(Done { replayed_as: Some(new), ..Done::new(turn, "replayed") })
}

fn show(view: &TurnView, json: bool) -> Result<(), Exit> {
    if json {
        return json_line(view);
    }
    let end = view.end.as_ref();
    print_fields([
        ("turn", Some(view.turn.to_string())),
        ("tenant", Some(view.tenant.clone())),
        ("agent", view.agent.as_ref().map(ToString::to_string)),
        ("state", Some(state(view))),
        (
            "behind",
            view.behind.filter(|behind| *behind > 0).map(|behind| format!("{behind} turns of its agent")),
        ),
        ("priority", Some(view.priority.as_str().to_owned())),
        ("enqueued", Some(time(view.enqueued_ms))),
        ("not before", view.not_before_ms.map(time)),
        ("deadline", view.deadline_ms.map(time)),
        ("idempotency key", view.idempotency.clone()),
        ("attempts", Some(view.attempts.to_string())),
        ("epoch", view.epoch.map(|epoch| epoch.to_string())),
        ("worker", view.worker.clone()),
        (
            "tokens published",
            Some(view.published.map_or("unknown: the reply has expired".into(), |n| n.to_string())),
        ),
        ("ended", view.ended_ms.map(time)),
        ("outcome", view.outcome.map(|outcome| outcome.as_str().to_owned())),
        ("error", end.and_then(|end| end.error.clone())),
    ])
}

/// The state, with the agent's where that is why it waits.
fn state(view: &TurnView) -> String {
    match &view.agent_state {
        Some(agent) if *agent != view.state => format!("{} (its agent is {agent})", view.state),
        _ => view.state.clone(),
    }
}
