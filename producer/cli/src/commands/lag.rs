//! `turnmill lag`: how much work waits.

use std::io::{Write, stdout};

use clap::Args;
use serde::Serialize;
use turnmill_client::PriorityLag;

use crate::cli::Global;
use crate::exit::Exit;
use crate::print::json_line;
use crate::table::{or_dash, table};
use crate::text::age;

#[derive(Debug, Args)]
pub struct Lag {
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct LagLine<'a> {
    queue: &'a str,
    #[serde(flatten)]
    lag: &'a turnmill_client::Lag,
}

impl Lag {
    pub async fn run(self, global: &Global) -> Result<(), Exit> {
        let lag = global.connect().await?.lag().await?;
        if self.json {
            return json_line(&LagLine { queue: global.queue.as_str(), lag: &lag });
        }
        Ok(write!(stdout(), "{}", for_people(&lag))?)
    }
}

/// Priorities, then the whole.
fn for_people(lag: &turnmill_client::Lag) -> String {
    let header = ["PRIORITY", "RUNNABLE", "LEASED", "QUEUED TURNS", "OLDEST", "LAG"];
    format!("{}\n\n{}\n", table(&header, lag.priorities.iter().map(row)), summary(lag))
}

fn row(row: &PriorityLag) -> Vec<String> {
    vec![
        row.priority.as_str().to_owned(),
        row.runnable.to_string(),
        row.leased.to_string(),
        row.queued.to_string(),
        or_dash(row.oldest_ms.map(age)),
        row.lag.map_or_else(|| "unknown".to_owned(), |lag| lag.to_string()),
    ]
}

fn summary(lag: &turnmill_client::Lag) -> String {
    let turns = if lag.open_turns == 1 { "turn" } else { "turns" };
    let mut text = format!("{} {turns} waiting or running", lag.open_turns);
    if let Some(ms) = lag.oldest_ms {
        text += &format!("; the oldest was enqueued {} ago", age(ms));
    }
    for (count, what) in [(lag.delayed, "agents wait for a time"), (lag.dead, "dead letters")] {
        if count > 0 {
            text += &format!("; {count} {what}");
        }
    }
    if lag.paused {
        text += "; the queue is paused";
    }
    text
}

#[cfg(test)]
mod tests {
    use turnmill_client::schema::Priority;

    use super::*;

    #[test]
    fn people_see_counts_and_the_oldest() {
        let row = PriorityLag {
            priority: Priority::Batch,
            runnable: 12,
            leased: 3,
            queued: 40,
            oldest_ms: Some(60),
            lag: None,
        };
        let lag = turnmill_client::Lag {
            priorities: vec![row],
            open_turns: 1,
            oldest_ms: Some(2340),
            dead: 2,
            ..turnmill_client::Lag::default()
        };
        let text = for_people(&lag);
        let row: Vec<&str> = text.lines().nth(1).unwrap_or_default().split_whitespace().collect();
        assert_eq!(row, ["batch", "12", "3", "40", "0.1", "s", "unknown"]);
        let summary = "\n1 turn waiting or running; the oldest was enqueued 2.3 s ago; 2 dead letters\n";
        assert!(text.ends_with(summary), "{text}");
    }
}
