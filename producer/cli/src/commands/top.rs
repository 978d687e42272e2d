//! `turnmill top`: the queue as it is now, on a terminal.

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use clap::Args;

use crate::cli::Global;
use crate::exit::Exit;
use crate::top;

/// Columns of a frame that goes to no terminal, unless COLUMNS says otherwise.
const WIDTH: u16 = 120;
/// Readings further apart are no dashboard any more, and closer ones no bounded load.
const INTERVAL_S: std::ops::RangeInclusive<f64> = 0.1..=3600.0;

/// Shows the queue, its workers, running turns and dead letters until somebody quits. `?` shows the keys.
#[derive(Debug, Args)]
#[command(after_help = top::keys::help())]
pub struct Top {
    /// Read Redis every SECONDS.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Duration,
    /// Print one frame as plain text and end. If turns run, it reads twice, an interval apart: a speed needs two readings.
    #[arg(long)]
    once: bool,
}

impl Top {
    /// Whether it takes over the terminal.
    pub fn takes_over(&self) -> bool {
        !self.once
    }

    pub async fn run(self, global: &Global) -> Result<(), Exit> {
        if !self.once && !stdout().is_terminal() {
            return Err(Exit::bad_input(
                "top needs a terminal; --once prints one frame as plain text instead",
            ));
        }
        let operator = global.watcher().await?;
        if self.once {
            return Ok(top::print(&top::once(operator, self.interval, width()).await?)?);
        }
        let watched = top::watch(operator, self.interval).await;
        watched.map_err(|error| {
            Exit::bad_input(format!(
                "the terminal cannot be used: {error}; --once prints one frame as plain text"
            ))
        })
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| INTERVAL_S.contains(seconds));
    let (least, most) = (INTERVAL_S.start(), INTERVAL_S.end());
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("give seconds from {least} to {most}, as in 0.5"))
}

/// Columns of a frame as text.
fn width() -> u16 {
    let terminal = stdout().is_terminal().then(|| ratatui::crossterm::terminal::size().ok()).flatten();
    let columns = || std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    terminal.map(|(columns, _)| columns).filter(|columns| *columns > 0).or_else(columns).unwrap_or(WIDTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_have_bounds() {
        assert_eq!(interval("1"), Ok(Duration::from_secs(1)));
        assert_eq!(interval("0.25"), Ok(Duration::from_millis(250)));
        for bad in ["0", "-1", "0.01", "1e9", "NaN", "inf", "", "soon"] {
            assert!(interval(bad).is_err_and(|why| why.contains("0.1 to 3600")), "{bad}");
        }
    }
}
