//! `turnmill dead`: turns that failed for good.

use std::collections::HashSet;
use std::io::{Write, stdout};

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;
use turnmill_client::operate::dead::{DeadLetter, DeadLetters, DeadQuery};
use turnmill_client::operate::{Operator, Scope};
use turnmill_client::schema::{AgentName, DeadReason, Message, Turn, TurnId};

use super::Tenants;
use crate::changes::{Done, change_each, named};
use crate::cli::Global;
use crate::confirm::Confirm;
use crate::exit::Exit;
use crate::moment::Seconds;
use crate::print::json_line;
use crate::spoken::call_line;
use crate::table::{or_dash, print_fields, print_table, time};
use crate::text::{age, for_stdout};

/// Letters that are purged in one call: few enough for one step of Redis, which does all of it or nothing.
const PURGED_AT_ONCE: usize = 500;

#[derive(Debug, Subcommand)]
pub enum Dead {
    /// List dead letters, oldest first, and how many there are of each reason.
    Ls(Ls),
    /// Show a dead letter: its error, and what was asked for.
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
    /// Only turns that failed for this reason.
    #[arg(long, value_name = "REASON", value_parser = PossibleValuesParser::new(REASONS))]
    reason: Option<String>,
    /// Only turns of this agent.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    agent: Option<AgentName>,
    /// Only turns that failed at least SECONDS ago.
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    older_than: Option<Seconds>,
}

const REASONS: [&str; 3] =
    [DeadReason::Attempts.as_str(), DeadReason::Rejected.as_str(), DeadReason::Unreadable.as_str()];

#[derive(Debug, Args)]
pub struct Ls {
    #[command(flatten)]
    filter: Filter,
    /// List at most N letters; all are counted.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// One JSON object a line; the last one is {reasons}.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Show {
    /// The turn that failed.
    turn: TurnId,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Change {
    /// The turns that failed.
    #[arg(value_name = "TURN", required_unless_present_any = ["all", "reason", "agent", "older_than"])]
    turns: Vec<TurnId>,
    #[command(flatten)]
    filter: Filter,
    /// All letters that fit the other flags.
    #[arg(long, conflicts_with = "turns")]
    all: bool,
    /// Print which letters would be changed, and change nothing.
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

/// A letter and what was asked for.
#[derive(Serialize)]
struct Shown<'a> {
    letter: &'a DeadLetter,
    /// None if it cannot be read.
    asked: Option<Turn>,
    /// Why `asked` cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
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
        let now_ms = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
        print_table(&header, letters.iter().map(|letter| row(letter, now_ms)))?;
        let counts = reasons.iter().map(|(reason, count)| vec![reason.clone(), count.to_string()]);
        writeln!(stdout())?;
        print_table(&["REASON", "LETTERS"], counts)
    }
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
        let query = DeadQuery { scope: Scope::AllTenants, turns: vec![self.turn], ..DeadQuery::default() };
        let mut letters = operator.dead_letters(&query).await?.letters;
        operator.add_errors(&mut letters).await?;
        let letter = letters.first().ok_or_else(|| no_letter(self.turn))?;
        let asked = operator.dead_turn(letter).await.map_err(Exit::from);
        if self.json {
            return show_json(letter, asked);
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
        let Turn { messages, prompt, tools, .. } = asked?;
        let mut said: Vec<(String, String)> = messages.iter().map(of_message).collect();
        said.extend(prompt.map(|prompt| ("Prompt".to_owned(), prompt)));
        if !tools.is_empty() {
            let names: Vec<String> = tools.into_iter().map(|tool| tool.name).collect();
            said.push(("Tools".to_owned(), names.join(", ")));
        }
        for (what, text) in said {
            writeln!(stdout(), "\n{}: {}", for_stdout(&what), for_stdout(&text))?;
        }
        Ok(())
    }
}

/// Who speaks, and what is said. A tool's result is named by its call.
fn of_message(message: &Message) -> (String, String) {
    let whose = match &message.tool_call_id {
        Some(call) => format!("{:?} ({call})", message.role),
        None => format!("{:?}", message.role),
    };
    let content = Some(message.content.clone()).filter(|content| !content.is_empty());
    let said: Vec<String> = content.into_iter().chain(message.tool_calls.iter().map(call_line)).collect();
    (whose, said.join("\n"))
}

/// The letter as JSON. If what was asked for cannot be read, the object says why and the code is that of the error.
fn show_json(letter: &DeadLetter, asked: Result<Turn, Exit>) -> Result<(), Exit> {
    match asked {
        Ok(asked) => json_line(&Shown { letter, asked: Some(asked), error: None }),
        Err(exit) => {
            let (code, error) = exit.read();
            json_line(&Shown { letter, asked: None, error })?;
            Err(Exit::Told(code))
        }
    }
}

fn no_letter(turn: TurnId) -> Exit {
    Exit::NotThere(format!("turn {turn} has no dead letter that fits; see turnmill dead ls"))
}

impl Change {
    /// The letters to change, and the turns that were named and have none, after asking if that is due.
    async fn letters(
        &self,
        operator: &Operator,
        verb: &str,
        ask: bool,
    ) -> Result<(Vec<DeadLetter>, Vec<TurnId>), Exit> {
        let mut query = self.filter.query(&self.turns);
        if !self.turns.is_empty() {
            // A turn's id says whose it is.
            query.scope = Scope::AllTenants;
        }
        let letters = operator.dead_letters(&query).await?.letters;
        if ask && !self.dry_run && !letters.is_empty() {
            let count = letters.len();
            let letters = if count == 1 { "letter" } else { "letters" };
            self.confirm.ask(&format!("{verb} {count} dead {letters}"))?;
        }
        let found: HashSet<TurnId> = letters.iter().map(|letter| letter.turn).collect();
        let missing = self.turns.iter().copied().filter(|turn| !found.contains(turn)).collect();
        Ok((letters, missing))
    }

    async fn replay(self, operator: &Operator) -> Result<(), Exit> {
        let (letters, missing) = self.letters(operator, "replay", self.turns.is_empty()).await?;
        let letters = letters.into_iter().map(|letter| (format!("turn {}", letter.turn), Ok(letter)));
        change_each(without_letters(missing).chain(letters), async |letter| {
            let letter: DeadLetter = letter?;
            let done = match self.dry_run {
                true => Done::new(letter.turn, "would_be_replayed"),
                false => {
                    let replayed_as = Some(operator.replay(&letter).await?);
                    Done { replayed_as, ..Done::new(letter.turn, "replayed") }
                }
            };
            done.print(self.json)
        })
        .await
    }

    async fn purge(self, operator: &Operator) -> Result<(), Exit> {
        let (letters, missing) = self.letters(operator, "purge", true).await?;
        let calls = letters.chunks(PURGED_AT_ONCE).map(|letters| (name_of(letters), Ok(letters)));
        change_each(without_letters(missing).chain(calls), async |letters| {
            let letters: &[DeadLetter] = letters?;
            let status = if self.dry_run { "would_be_purged" } else { "purged" };
            if !self.dry_run {
                operator.purge(letters).await?;
            }
            letters.iter().try_for_each(|letter| Done::new(letter.turn, status).print(self.json))
        })
        .await
    }
}

/// The turns that were named and have no letter, each with the error that says so.
fn without_letters<T>(turns: Vec<TurnId>) -> impl Iterator<Item = (String, Result<T, Exit>)> {
    named(turns).map(|(name, turn)| (name, Err(no_letter(turn))))
}

/// What errors call letters that are purged together.
fn name_of(letters: &[DeadLetter]) -> String {
    match letters {
        [letter] => format!("turn {}", letter.turn),
        [first, .., last] => {
            format!("the {} letters from turn {} to turn {}", letters.len(), first.turn, last.turn)
        }
        [] => "no letter".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use turnmill_client::schema::{Role, ToolCall};

    use super::*;

    #[test]
    fn calls_and_their_results_are_shown() {
        let call = ToolCall { id: "c".into(), name: "add".into(), arguments: "{\"a\": 1}".into() };
        let calling =
            Message { tool_calls: vec![call.clone(), call], ..Message::new(Role::Assistant, "I add.") };
        let said = |message| {
            let (whose, said) = of_message(&message);
            format!("{whose}: {said}")
        };
        assert_eq!(said(calling), "Assistant: I add.\nadd({\"a\": 1})\nadd({\"a\": 1})");
        assert_eq!(said(Message::tool_result("c", "3")), "Tool (c): 3");
        assert_eq!(said(Message::new(Role::User, "")), "User: ");
    }
}
