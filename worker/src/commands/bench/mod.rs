//! `turnmill-worker bench`: how fast this machine is, and what codecs of K and V cost in words.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

mod drift;
mod engine;
mod queue;
mod restore;
mod speculation;
mod stall;

use super::{CommandError, print_json};

/// Measure a part of the worker.
#[derive(Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Drift(drift::DriftArgs),
    Engine(engine::EngineArgs),
    Queue(queue::QueueArgs),
    Restore(restore::RestoreArgs),
    Speculation(speculation::SpeculationArgs),
    Stall(stall::StallArgs),
}

/// Runs the command.
pub fn run(args: BenchArgs) -> Result<ExitCode, CommandError> {
    match args.what {
        What::Drift(args) => drift::run(args),
        What::Engine(args) => engine::run(args),
        What::Queue(args) => queue::run(args),
        What::Restore(args) => restore::run(args),
        What::Speculation(args) => speculation::run(args),
        What::Stall(args) => stall::run(&args),
    }
}

/// What was measured: as JSON, or as people read it.
fn print_figures<T: Serialize + ?Sized>(
    json: bool,
    figures: &T,
    print_table: impl FnOnce(&T),
) -> Result<ExitCode, CommandError> {
    if json {
        print_json(figures)?;
    } else {
        print_table(figures);
    }
    Ok(ExitCode::SUCCESS)
}
