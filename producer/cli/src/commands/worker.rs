//! `turnmill worker`: list workers, tell one to drain, and forget one that is gone.

use std::io::{Write, stdout};

use clap::{Args, Subcommand};
use serde::Serialize;
use turnmill_client::operate::worker::WorkerView;

use crate::cli::Global;
use crate::exit::Exit;
use crate::print::json_line;
use crate::table::print_table;
use crate::text::{age, for_stdout};

#[derive(Debug, Subcommand)]
pub enum Worker {
    /// List the queue's workers.
    Ls(Ls),
    /// Tell a worker to take no more turns, finish what it runs, and stop.
    Drain(Named),
    /// Take a worker that is gone off the list. A worker that lives enters itself again within seconds.
    Forget(Named),
}

#[derive(Debug, Args)]
pub struct Ls {
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Named {
    /// The worker's id, or its name, which stands for all workers of that name.
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

#[derive(Serialize)]
struct Forgotten {
    worker: String,
    forgotten: bool,
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
            Self::Drain(Named { worker, json }) => {
                let told = operator.drain_workers(&worker).await?;
                tell(told, json, "is told to drain", |worker| Told { worker, order: "drain" })
            }
            Self::Forget(Named { worker, json }) => {
                let forgotten = operator.forget_workers(&worker).await?;
                tell(forgotten, json, "is forgotten", |worker| Forgotten { worker, forgotten: true })
            }
        }
    }
}

/// A line for each worker: an object, or its id and what became of it.
fn tell<T: Serialize>(
    workers: Vec<String>,
    json: bool,
    what: &str,
    object: impl Fn(String) -> T,
) -> Result<(), Exit> {
    for worker in workers {
        if json {
            json_line(&object(worker))?;
        } else {
            writeln!(stdout(), "{} {what}", for_stdout(&worker))?;
        }
    }
    Ok(())
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
