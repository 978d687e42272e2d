//! `turnmill worker`: list workers, and tell one to drain.

use std::io::{Write, stdout};

use clap::{Args, Subcommand};
use serde::Serialize;
use turnmill::operate::worker::WorkerView;

use super::print::json_line;
use super::table::{age, print_table};
use super::terminal::for_stdout;
use super::{Exit, Global};

#[derive(Debug, Subcommand)]
pub enum Worker {
    /// List the queue's workers.
    Ls(Ls),
    /// Tell a worker to take no more turns, finish what it runs, and stop.
    Drain(Drain),
}

#[derive(Debug, Args)]
pub struct Ls {
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Drain {
    /// Its id, or its name: then all workers of that name.
    #[arg(allow_hyphen_values = true)]
    worker: String,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Told {
    worker: String,
    order: &'static str,
}

impl Worker {
    pub async fn run(self, global: &Global) -> Result<(), Exit> {
        let operator = global.operator().await?;
        match self {
            Self::Ls(Ls { json: true }) => operator.workers().await?.iter().try_for_each(json_line),
            Self::Ls(Ls { json: false }) => {
                let header = ["NAME", "STATE", "RUNNING", "HEADROOM", "MODEL", "VERSION", "HEARD", "ID"];
                print_table(&header, operator.workers().await?.iter().map(row))
            }
            Self::Drain(drain) => {
                for worker in operator.drain_workers(&drain.worker).await? {
                    if drain.json {
                        json_line(&Told { worker, order: "drain" })?;
                    } else {
                        writeln!(stdout(), "{} is told to drain", for_stdout(&worker))?;
                    }
                }
                Ok(())
            }
        }
    }
}

fn row(worker: &WorkerView) -> Vec<String> {
    let told = if worker.told_to_drain && worker.state != "draining" { ", told to drain" } else { "" };
    vec![
        worker.name.clone(),
        format!("{}{told}", worker.state),
        format!("{}/{}", worker.running, worker.capacity),
        format!("{} %", worker.headroom_percent),
        worker.model.clone(),
        worker.version.clone(),
        format!("{} ago", age(worker.heard_ms)),
        worker.id.clone(),
    ]
}
