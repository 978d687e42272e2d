//! `turnmill-worker serve`: the worker itself.

use std::process::ExitCode;

use clap::{ArgMatches, Args};
use turnmill_worker::app;
use turnmill_worker::config::{Settings, SettingsArgs};

use super::threads::with_threads;
use super::{CommandError, progress_bar, runtime};

/// Claim turns and compute them until a signal ends it.
#[derive(Args)]
pub struct ServeArgs {
    #[command(flatten)]
    _settings: SettingsArgs,
}

/// Runs the command.
pub fn run(matches: &ArgMatches) -> Result<ExitCode, CommandError> {
    let (settings, _) = Settings::load(matches)?;
    settings.model_path()?;
    with_threads(settings.threads)?;
    let bar = progress_bar("loading", "layers");
    let progress = move |done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        if done == all {
            bar.finish_and_clear();
        }
    };
    let runtime = runtime()?;
    let outcome = runtime.block_on(app::serve(settings, progress));
    // A model that is still being loaded when a signal comes is not waited for.
    runtime.shutdown_background();
    outcome?;
    Ok(ExitCode::SUCCESS)
}
