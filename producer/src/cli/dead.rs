//! `turnmill dead`: turns that failed for good.

use std::io::{Write, stdout};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use serde::Serialize;
use turnmill::operate::Operator;
use turnmill::operate::dead::{DeadLetter, DeadLetters, DeadQuery};
use turnmill::schema::{DeadReason, Name, TurnId};

use super::confirm::Confirm;
use super::moment::Seconds;
use super::print::{json_line, unless_closed};
use super::table::{or_dash, print_fields, print_table, time};
use super::{Exit, Global, Tenants};
use crate::text::{age, for_stdout};

#[derive(Debug, Subcommand)]
pub enum Dead {
    /// List dead letters, oldest first, and how many there are of each reason.
    Ls(Ls),
    /// Show one with its error and what was asked for.
    Show(Show),
    /// Enqueue dead letters as new turns, each at the end of its agent's backlog, and purge them.
    Replay(Change),
    /// Forget dead letters with their turns and results.
    Purge(Change),
}

#[derive(Debug, Args)]
struct Filter {
    #[command(flatten)]
    tenants: Tenants,
    /// Those that failed for this reason.
    #[arg(long, value_name = "REASON", value_parser = PossibleValuesParser::new(REASONS))]
    reason: Option<String>,
    /// Those of this agent.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    agent: Option<Name>,
    /// Those that failed at least SECONDS ago.
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    older_than: Option<Seconds>,
}

const REASONS: [&str; 3] =
    [DeadReason::Attempts.as_str(), DeadReason::Rejected.as_str(), DeadReason::Unreadable.as_str()];

#[derive(Debug, Args)]
pub struct Ls {
    #[command(flatten)]
    filter: Filter,
    /// List at most so many; all are counted.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// One JSON object a line, and a last one {reasons}.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Show {
    /// The turn.
    turn: TurnId,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Change {
    /// These turns.
    #[arg(value_name = "TURN", required_unless_present_any = ["all", "reason", "agent", "older_than"])]
    turns: Vec<TurnId>,
    #[command(flatten)]
    filter: Filter,
    /// All that fit the other flags.
    #[arg(long, conflicts_with = "turns")]
    all: bool,
    /// Say which, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    confirm: Confirm,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

impl Filter {
    fn query(&self, turns: &[TurnId]) -> DeadQuery {
        DeadQuery {
            scope: self.tenants.scope(),
            turns: turns.to_vec(),
            reason: self.reason.clone(),
            agent: self.agent.clone(),
            older_than: self.older_than.map(Seconds::duration),
        }
    }
}

/// What a command did to a letter.
#[derive(Serialize)]
struct Done {
    turn: TurnId,
    /// `replayed`, `purged`, or with --dry-run `would_be_replayed`, `would_be_purged`.
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    replayed_as: Option<TurnId>,
}

impl Dead {
    pub async fn run(self, global: &Global) -> Result<(), Exit> {
        let operator = global.operator().await?;
        match self {
            Self::Ls(ls) => ls.run(&operator).await,
            Self::Show(show) => show.run(&operator).await,
            Self::Replay(change) => change.replay(&operator).await,
            Self::Purge(change) => change.purge(&operator).await,
        }
    }
}

impl Ls {
    async fn run(self, operator: &Operator) -> Result<(), Exit> {
        let DeadLetters { reasons, mut letters } = operator.dead_letters(&self.filter.query(&[])).await?;
        letters.truncate(self.limit);
        operator.add_errors(&mut letters).await?;
        if self.json {
            letters.iter().try_for_each(json_line)?;
            return json_line(&serde_json::json!({ "reasons": reasons }));
        }
        let header = ["TURN", "TENANT", "AGENT", "REASON", "ATTEMPTS", "FAILED", "ERROR"];
        let now_ms = now_ms();
        print_table(&header, letters.iter().map(|letter| row(letter, now_ms)))?;
        let counts = reasons.iter().map(|(reason, count)| vec![reason.clone(), count.to_string()]);
        writeln!(stdout())?;
        print_table(&["REASON", "LETTERS"], counts)
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn row(letter: &DeadLetter, now_ms: u64) -> Vec<String> {
    vec![
        letter.turn.to_string(),
        letter.tenant.clone(),
        or_dash(letter.agent.as_ref()),
        letter.reason.clone(),
        letter.attempts.to_string(),
        format!("{} ago", age(now_ms.saturating_sub(letter.failed_ms))),
        or_dash(letter.error.as_ref()),
    ]
}

impl Show {
    async fn run(self, operator: &Operator) -> Result<(), Exit> {
        let mut letters = find(operator, DeadQuery { turns: vec![self.turn], ..everywhere() }).await?;
        operator.add_errors(&mut letters).await?;
        let letter = &letters[0];
        let asked = operator.dead_turn(letter).await;
        if self.json {
            let asked = asked.as_ref().ok();
            return json_line(&serde_json::json!({ "letter": letter, "asked": asked }));
        }
        print_fields([
            ("turn", Some(letter.turn.to_string())),
            ("tenant", Some(letter.tenant.clone())),
            ("agent", letter.agent.as_ref().map(ToString::to_string)),
            ("reason", Some(letter.reason.clone())),
            ("attempts", Some(letter.attempts.to_string())),
            ("failed", Some(time(letter.failed_ms))),
            ("error", letter.error.clone()),
        ])?;
        for message in asked.map(|turn| turn.messages)? {
            writeln!(stdout(), "\n{:?}: {}", message.role, for_stdout(&message.content))?;
        }
        Ok(())
    }
}

fn everywhere() -> DeadQuery {
    DeadQuery { scope: turnmill::operate::Scope::AllTenants, ..DeadQuery::default() }
}

/// The letters; an error where a turn that was named is none.
async fn find(operator: &Operator, query: DeadQuery) -> Result<Vec<DeadLetter>, Exit> {
    let found = operator.dead_letters(&query).await?.letters;
    match query.turns.iter().find(|turn| !found.iter().any(|letter| letter.turn == **turn)) {
        Some(turn) => Err(Exit::NotThere(format!("turn {turn} is no dead letter of those that fit"))),
        None => Ok(found),
    }
}

impl Change {
    /// The letters to change, after asking where that is due.
    async fn letters(&self, operator: &Operator, verb: &str, ask: bool) -> Result<Vec<DeadLetter>, Exit> {
        let mut query = self.filter.query(&self.turns);
        if !self.turns.is_empty() {
            // A turn's id says whose it is.
            query.scope = turnmill::operate::Scope::AllTenants;
        }
        let letters = find(operator, query).await?;
        if ask && !self.dry_run && !letters.is_empty() {
            let count = letters.len();
            let letters = if count == 1 { "letter" } else { "letters" };
            self.confirm.ask(&format!("{verb} {count} dead {letters}"))?;
        }
        Ok(letters)
    }

    async fn replay(self, operator: &Operator) -> Result<(), Exit> {
        for letter in self.letters(operator, "replay", self.turns.is_empty()).await? {
            let (status, replayed_as) = match self.dry_run {
                true => ("would_be_replayed", None),
                false => ("replayed", Some(operator.replay(&letter).await?)),
            };
            unless_closed(self.print(&Done { turn: letter.turn, status, replayed_as }))?;
        }
        Ok(())
    }

    async fn purge(self, operator: &Operator) -> Result<(), Exit> {
        let letters = self.letters(operator, "purge", true).await?;
        if !self.dry_run {
            operator.purge(&letters).await?;
        }
        let status = if self.dry_run { "would_be_purged" } else { "purged" };
        for letter in letters {
            self.print(&Done { turn: letter.turn, status, replayed_as: None })?;
        }
        Ok(())
    }

    fn print(&self, done: &Done) -> Result<(), Exit> {
        if self.json {
            return json_line(done);
        }
        let new = done.replayed_as.map(|new| format!(" as {new}")).unwrap_or_default();
        Ok(writeln!(stdout(), "{} {}{new}", done.turn, done.status.replace('_', " "))?)
    }
}
