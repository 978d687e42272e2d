//! `turnmill-worker`: serves a queue of agent turns.

mod commands;

use std::process::ExitCode;

use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

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
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    // Settings ask the matches where each value came from.
    let own = matches.subcommand().map(|(_, own)| own.clone()).unwrap_or_default();
    run(cli.command, &own).unwrap_or_else(|error| {
        eprintln!("turnmill-worker: {error}");
        ExitCode::FAILURE
    })
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
            print!("{}", turnmill_worker::observe::document());
            Ok(ExitCode::SUCCESS)
        }
        Command::Version => {
            println!("turnmill-worker {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions(Completions { shell }) => {
            clap_complete::generate(shell, &mut Cli::command(), "turnmill-worker", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man(args) => man::run(&args, Cli::command()),
    }
}
