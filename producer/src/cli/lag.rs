//! `turnmill lag`: how much work waits.

use std::io::{Write, stdout};

use clap::Args;
use comfy_table::{Table, presets};
use serde::Serialize;

use super::print::json_line;
use super::{Exit, Global};

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
    lag: &'a turnmill::Lag,
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

/// Agents by priority, then the turns.
fn for_people(lag: &turnmill::Lag) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["AGENTS", "RUNNABLE", "LEASED"]);
    for priority in &lag.priorities {
        let name = priority.priority.as_str().to_owned();
        table.add_row([name, priority.runnable.to_string(), priority.leased.to_string()]);
    }
    let oldest = match lag.oldest_ms {
        Some(ms) => format!("; the oldest was enqueued {:.1} s ago", ms as f64 / 1000.0),
        None => String::new(),
    };
    let turns = if lag.open_turns == 1 { "turn" } else { "turns" };
    format!("{}\n\n{} {turns} waiting or running{oldest}\n", table.trim_fmt(), lag.open_turns)
}

#[cfg(test)]
mod tests {
    use turnmill::PriorityLag;
    use turnmill::schema::Priority;

    use super::*;

    #[test]
    fn people_see_counts_and_the_oldest() {
        let row = PriorityLag { priority: Priority::Batch, runnable: 12, leased: 3, undelivered: None };
        let lag = turnmill::Lag { priorities: vec![row], open_turns: 1, oldest_ms: Some(2340) };
        let text = for_people(&lag);
        let row: Vec<&str> = text.lines().nth(1).unwrap_or_default().split_whitespace().collect();
        assert_eq!(row, ["batch", "12", "3"]);
        assert!(text.ends_with("\n1 turn waiting or running; the oldest was enqueued 2.3 s ago\n"), "{text}");
    }
}
