//! The `turnmill` command.

// The macros panic if nobody reads stdout or stderr any more, and send text from outside to the terminal as it is: see `text`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod changes;
mod cli;
mod commands;
mod confirm;
#[cfg(test)]
mod dashes;
mod environment;
mod exit;
mod input;
mod moment;
mod print;
mod reply;
mod sampling;
mod spoken;
mod table;
mod text;
mod top;
mod traces;
mod words;

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = cli::Cli::read();
    if !(cli.takes_over() && std::io::stderr().is_terminal()) {
        log_to_stderr();
    }
    // Connections are attended to on a thread of their own: printing stops this one if nobody reads for a while.
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = match builder.worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::Exit::Output(error).report(),
    };
    let done = runtime.block_on(cli.run());
    // A read of stdin cannot be cancelled: do not wait for it.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => exit.report(),
    }
}

/// Warnings, such as a lost connection, unless RUST_LOG says otherwise. A filter is a prefix: this one lets through those of
/// turnmill-client and turnmill-redis too.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("turnmill=warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time();
    // Its own way of saying that stderr is closed panics.
    log.log_internal_errors(false).init();
}
