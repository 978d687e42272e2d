//! `turnmill completions`: a completion script on stdout.

use std::io::{Write, stdout};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::exit::Exit;

#[derive(Debug, Args)]
pub struct Completions {
    /// The shell to write for.
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> Result<(), Exit> {
        // Written to memory first: the generator panics if its writer fails.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "turnmill", &mut script);
        Ok(stdout().write_all(&script)?)
    }
}
