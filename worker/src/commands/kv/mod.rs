//! `turnmill-worker kv`: what is stored of agents' K and V: counting, checking and removing it.

mod duration;
mod gc;
mod ls;
mod verify;

use std::process::ExitCode;

use clap::{ArgMatches, Args, Subcommand};
use comfy_table::{Table, presets};
use turnmill_worker::config::Settings;
use turnmill_worker::store::inventory::Inventory;

use super::CommandError;

/// Look after the K and V that the queue has in the object store.
#[derive(Args)]
pub struct KvArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Ls(ls::LsArgs),
    Verify(verify::VerifyArgs),
    Gc(gc::GcArgs),
}

/// Runs the command.
pub fn run(args: &KvArgs, matches: &ArgMatches) -> Result<ExitCode, CommandError> {
    // Settings ask the matches of the command that has them where each value came from.
    let own = matches.subcommand().map(|(_, own)| own.clone()).unwrap_or_default();
    let (settings, _) = Settings::load(&own)?;
    let url = settings.store.for_kv().ok_or(CommandError::NoStore)?;
    let inventory = Inventory::open(&url, &settings.queue)?;
    let runtime = super::runtime()?;
    runtime.block_on(async {
        match &args.what {
            What::Ls(args) => ls::run(args, &settings, &inventory).await,
            What::Verify(args) => verify::run(args, &settings, &inventory).await,
            What::Gc(args) => gc::run(args, &settings, &inventory).await,
        }
    })
}

/// Prints rows under a header.
fn print_table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    rows.into_iter().for_each(|row| {
        table.add_row(row);
    });
    println!("{}", table.trim_fmt());
}
