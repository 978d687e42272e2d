//! `turnmill-worker man`: manual pages in a folder, one a subcommand.
//!
//! They are of section 8, for daemons: in section 1, `turnmill worker`, another program's subcommand, has a page of this
//! program's name. Invariant: pages depend on the build alone, not on machine, environment or time, so that releases can be
//! reproduced.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command};
use clap_mangen::Man;

use super::CommandError;

/// The section of the manual.
const SECTION: &str = "8";

/// Write manual pages, one a command.
#[derive(Args)]
pub struct ManArgs {
    /// The folder to write them into; made where there is none.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Writes the pages of `command`.
pub fn run(args: &ManArgs, command: Command) -> Result<ExitCode, CommandError> {
    fs::create_dir_all(&args.out)?;
    let mut command = command.disable_help_subcommand(true);
    // Names the subcommands in full.
    command.build();
    write(&command, &args.out)?;
    Ok(ExitCode::SUCCESS)
}

/// The page of `command` and those of its subcommands.
fn write(command: &Command, folder: &Path) -> io::Result<()> {
    command.get_subcommands().try_for_each(|below| write(below, folder))?;
    Man::new(command.clone()).section(SECTION).generate_to(folder).map(|_| ())
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
