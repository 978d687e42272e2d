//! `turnmill-worker`: serves a queue of agent turns.

#![allow(clippy::disallowed_methods, reason = "commands run on a machine")]

#[macro_use]
mod output;
mod commands;

use std::process::ExitCode;

use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use turnmill_worker::config::{log_format, without_empty_variables};
use turnmill_worker::observe::logs;

use commands::{CommandError, bench, check, config, kv, man, serve, verify};

/// A worker of Turnmill's queue: claims agent turns, computes them together, publishes their tokens.
#[derive(Parser)]
#[command(name = "turnmill-worker", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::ServeArgs),
    Check(check::CheckArgs),
    Config(config::ConfigArgs),
    Bench(bench::BenchArgs),
    Verify(verify::VerifyArgs),
    Kv(kv::KvArgs),
    /// Print every metric with its kind, labels and meaning, as Markdown.
    Metrics,
    /// Print the version.
    Version,
    /// Print a completion script for a shell.
    Completions(Completions),
    Man(man::ManArgs),
}

#[derive(Args)]
struct Completions {
    /// Which shell.
    shell: Shell,
}

fn main() -> ExitCode {
    let command = without_empty_variables(Cli::command());
    let matches = command.clone().try_get_matches().unwrap_or_else(|error| misused(command, &error));
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    // Settings ask the matches where each value came from.
    let own = matches.subcommand().map(|(_, own)| own.clone()).unwrap_or_default();
    run(cli.command, &own).unwrap_or_else(|error| {
        if logs_json(&matches) {
            logs::fatal(&error);
        } else {
            eprintln!("turnmill-worker: {error}");
        }
        ExitCode::FAILURE
    })
}

/// Ends the process as clap does, unless what is wrong belongs into a log.
fn misused(command: clap::Command, error: &clap::Error) -> ! {
    let read = command.ignore_errors(true).try_get_matches();
    if error.use_stderr() && read.is_ok_and(|matches| logs_json(&matches)) {
        let text = error.to_string();
        let sentence = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
        logs::fatal(&sentence.split_whitespace().collect::<Vec<_>>().join(" "));
        std::process::exit(error.exit_code());
    }
    error.exit()
}

/// Whether what ends this process is to be a line of a log in JSON.
fn logs_json(matches: &ArgMatches) -> bool {
    matches.subcommand().is_some_and(|(name, own)| name == "serve" && logs::writes_json(log_format(own)))
}

fn run(command: Command, matches: &ArgMatches) -> Result<ExitCode, CommandError> {
    match command {
        Command::Serve(_) => serve::run(matches),
        Command::Check(args) => check::run(&args, matches),
        Command::Config(args) => config::run(&args, matches),
        Command::Bench(args) => bench::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Kv(args) => kv::run(&args, matches),
        Command::Metrics => {
            print!("{}", turnmill_worker::observe::CATALOGUE.document());
            Ok(ExitCode::SUCCESS)
        }
        Command::Version => {
            println!("turnmill-worker {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions(Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "turnmill-worker", &mut script);
            print!("{}", String::from_utf8_lossy(&script));
            Ok(ExitCode::SUCCESS)
        }
        Command::Man(args) => man::run(&args, Cli::command()),
    }
}
