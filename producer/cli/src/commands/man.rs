//! `turnmill man`: manual pages in a folder, one a subcommand.
//!
//! Invariant: what is written depends on the build and the day alone, and with SOURCE_DATE_EPOCH on the build alone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_mangen::Man;
use jiff::Timestamp;

use crate::cli::Cli;
use crate::exit::Exit;

#[derive(Debug, Args)]
pub struct Manual {
    /// The folder to write them into; it is made if it does not exist.
    #[arg(long, value_name = "DIR", allow_hyphen_values = true)]
    out: PathBuf,
}

impl Manual {
    pub fn run(self) -> Result<(), Exit> {
        let mut command = Cli::command().disable_help_subcommand(true);
        // Names the subcommands in full.
        command.build();
        let written = fs::create_dir_all(&self.out).and_then(|()| write(&command, &date(), &self.out));
        written.map_err(|error| {
            Exit::bad_input(format!("no manual pages can be written to {}: {error}", self.out.display()))
        })
    }
}

/// The page of `command` and those of its subcommands.
fn write(command: &Command, date: &str, folder: &Path) -> io::Result<()> {
    command.get_subcommands().try_for_each(|below| write(below, date, folder))?;
    let source = concat!("turnmill ", env!("CARGO_PKG_VERSION"));
    Man::new(command.clone()).date(date).source(source).manual("Turnmill").generate_to(folder).map(|_| ())
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

    use super::*;

    /// The page of `command` and those of its subcommands.
    fn pages(prefix: &str, command: &Command) -> BTreeSet<String> {
        let name = format!("{prefix}{}", command.get_name());
        let below = command.get_subcommands().flat_map(|below| pages(&format!("{name}-"), below));
        below.chain([format!("{name}.1")]).collect()
    }

    #[test]
    fn every_subcommand_has_a_page() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let out = folder.path().join("new/man");
        Manual { out: out.clone() }.run().expect("pages are written");
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(&out).expect("the folder is there") {
            let entry = entry.expect("it can be read");
            let page = fs::read_to_string(entry.path()).expect("a page is text");
            let name = entry.file_name().into_string().expect("a name is text");
            let title = name.trim_end_matches(".1");
            let is_whole = page.contains(&format!(".TH {title} 1 ")) && page.contains("TURNMILL_REDIS_URL");
            assert!(is_whole && page.contains(".SH OPTIONS"), "{name}: {page}");
            found.insert(name);
        }
        let expected = pages("", &Cli::command());
        assert!(expected.len() > 30 && expected.contains("turnmill-agent-ls.1"), "{expected:?}");
        assert_eq!(found, expected);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let out = file.path().join("man");
        let refused = Manual { out: out.clone() }.run().expect_err("a file is in the way");
        let path = out.display().to_string();
        assert!(matches!(&refused, Exit::BadInput(said) if said.contains(&path)), "{refused:?}");
    }
}
