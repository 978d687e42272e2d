//! `turnmill-worker serve`: the worker itself.

use std::process::ExitCode;

use clap::{ArgMatches, Args};
use turnmill_worker::app;
use turnmill_worker::config::{Settings, SettingsArgs};

use super::loading::LoadingBar;
use super::threads::with_threads;
use super::{CommandError, runtime};

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
    let bar = LoadingBar::new();
    let runtime = runtime()?;
    let outcome = runtime.block_on(app::serve(settings, move |loading| bar.show(loading)));
    // A model that is still being loaded when a signal comes is not waited for.
    runtime.shutdown_background();
    outcome?;
    Ok(ExitCode::SUCCESS)
}
