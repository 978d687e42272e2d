//! `turnmill-tests`: what tests run in processes of their own, for people too.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use turnmill_tests::scripted_worker::{self, ScriptedWorkerArgs};
use turnmill_worker::config::without_empty_variables;

/// Programs for tests of what stands around a worker.
#[derive(Parser)]
#[command(name = "turnmill-tests", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    ScriptedWorker(ScriptedWorkerArgs),
}

fn main() -> ExitCode {
    let matches = without_empty_variables(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    // Settings ask the matches where each value came from.
    let own = matches.subcommand().map(|(_, own)| own.clone()).unwrap_or_default();
    match cli.command {
        Command::ScriptedWorker(args) => scripted_worker::run(&args, &own),
    }
}
