//! `turnmill queue`: pause, resume, and statistics.

use std::io::{Write, stdout};

use clap::{Args, Subcommand};
use serde::Serialize;
use turnmill_client::operate::queue::QueueStats;

use crate::cli::Global;
use crate::exit::Exit;
use crate::print::json_line;
use crate::table::print_fields;
use crate::text::age;

#[derive(Debug, Subcommand)]
pub enum Queue {
    /// Lease no more turns. Turns that run go on, and enqueueing works.
    Pause(Output),
    /// Lease turns again.
    Resume(Output),
    /// Show how much work there is, the workers, and how the newest turns ended.
    Stats(Output),
}

#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Done<'a> {
    queue: &'a str,
    paused: bool,
    /// It was not so before.
    changed: bool,
}

impl Queue {
    pub async fn run(self, global: &Global) -> Result<(), Exit> {
        let operator = global.operator().await?;
        let queue = global.queue.as_str();
        match self {
            Self::Pause(output) => {
                output.done(&Done { queue, paused: true, changed: operator.pause_queue().await? })
            }
            Self::Resume(output) => {
                output.done(&Done { queue, paused: false, changed: operator.resume_queue().await? })
            }
            Self::Stats(Output { json: true }) => json_line(&operator.queue_stats().await?),
            Self::Stats(Output { json: false }) => show(&operator.queue_stats().await?),
        }
    }
}

impl Output {
    fn done(self, done: &Done) -> Result<(), Exit> {
        if self.json {
            return json_line(done);
        }
        let before = if done.changed { "" } else { ", as before" };
        let state = if done.paused { "is paused" } else { "is not paused" };
        Ok(writeln!(stdout(), "queue {} {state}{before}", done.queue)?)
    }
}

fn show(stats: &QueueStats) -> Result<(), Exit> {
    let QueueStats { lag, ends, .. } = stats;
    let sum =
        |of: fn(&turnmill_client::PriorityLag) -> u64| lag.priorities.iter().map(of).sum::<u64>().to_string();
    let ends: Vec<String> = ends.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
    let over = stats.ends_ms.map(|ms| format!(" in the last {}", age(ms))).unwrap_or_default();
    print_fields([
        ("queue", Some(stats.queue.clone())),
        ("paused", Some(if lag.paused { "yes" } else { "no" }.to_owned())),
        ("turns", Some(format!("{} waiting or running", lag.open_turns))),
        ("oldest", lag.oldest_ms.map(|ms| format!("enqueued {} ago", age(ms)))),
        ("runnable agents", Some(sum(|row| row.runnable))),
        ("leased agents", Some(sum(|row| row.leased))),
        ("delayed agents", Some(lag.delayed.to_string())),
        ("dead letters", Some(lag.dead.to_string())),
        (
            "workers",
            Some(format!("{}, running {} of {} turns", stats.workers, stats.running, stats.capacity)),
        ),
        ("newest ends", Some(format!("{}{over}", ends.join(", ")))),
        ("kept of ended turns", Some(format!("{:.1} MiB", lag.retained_bytes as f64 / f64::from(1 << 20)))),
    ])
}
