//! `turnmill-worker man`: manual pages in a folder, one a subcommand.
//!
//! They are of section 8, for daemons: in section 1, `turnmill worker`, another program's subcommand, has a page of this
//! program's name. Invariant: what is written depends on the build and the day alone, and with SOURCE_DATE_EPOCH on
//! the build alone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command};
use clap_mangen::Man;
use jiff::Timestamp;

use super::CommandError;

/// The section of the manual.
const SECTION: &str = "8";

/// Write manual pages, one a command.
#[derive(Args)]
pub struct ManArgs {
    /// The folder to write them into; made if there is none.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Writes the pages of `command`.
pub fn run(args: &ManArgs, command: Command) -> Result<ExitCode, CommandError> {
    fs::create_dir_all(&args.out)?;
    let mut command = command.disable_help_subcommand(true);
    // Names the subcommands in full.
    command.build();
    write(&command, &date(), &args.out)?;
    Ok(ExitCode::SUCCESS)
}

/// The page of `command` and those of its subcommands.
fn write(command: &Command, date: &str, folder: &Path) -> io::Result<()> {
    command.get_subcommands().try_for_each(|below| write(below, date, folder))?;
    let page = Man::new(command.clone()).section(SECTION).date(date).manual("Turnmill");
    page.source(concat!("turnmill ", env!("CARGO_PKG_VERSION"))).generate_to(folder).map(|_| ())
}

/// What pages are dated: today, or what reproducible builds say.
fn date() -> String {
    let said = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok());
    let at = said.and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or_else(Timestamp::now);
    at.strftime("%Y-%m-%d").to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory as _;

    use super::*;

    fn pages(prefix: &str, command: &Command) -> BTreeSet<String> {
        let name = format!("{prefix}{}", command.get_name());
        let below = command.get_subcommands().flat_map(|below| pages(&format!("{name}-"), below));
        below.chain([format!("{name}.{SECTION}")]).collect()
    }

    #[test]
    fn every_subcommand_has_a_page() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let out = folder.path().join("new/man");
        run(&ManArgs { out: out.clone() }, crate::Cli::command()).expect("pages are written");
        let entries = fs::read_dir(&out).expect("the folder is there");
        let name = |entry: io::Result<fs::DirEntry>| entry.expect("it can be read").file_name();
        let found: BTreeSet<String> =
            entries.map(|entry| name(entry).into_string().expect("a name is text")).collect();
        let expected = pages("", &crate::Cli::command());
        assert!(expected.len() > 10 && expected.contains("turnmill-worker-kv-gc.8"), "{expected:?}");
        assert_eq!(found, expected);
    }
}
