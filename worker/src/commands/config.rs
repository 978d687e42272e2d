//! `turnmill-worker config`: the settings in force and where each came from.

use std::process::ExitCode;

use clap::{ArgMatches, Args};
use turnmill_worker::config::{Settings, SettingsArgs, report};

use super::CommandError;

/// Print the settings in force and where each came from; the output can be used as a configuration file.
///
/// Passwords are not printed. A URL that has one is left out of the file, which says so in a comment: give it again the way
/// it was given.
#[derive(Args)]
pub struct ConfigArgs {
    #[command(flatten)]
    _settings: SettingsArgs,
    /// Print a JSON array of {name, value, source}.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &ConfigArgs, matches: &ArgMatches) -> Result<ExitCode, CommandError> {
    let (_, effective) = Settings::load(matches)?;
    if args.json {
        println!("{}", report::to_json(&effective));
    } else {
        print!("{}", report::to_toml(&effective));
    }
    Ok(ExitCode::SUCCESS)
}
