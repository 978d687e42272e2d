//! Asking before something is lost.

use std::io::{IsTerminal, Write, stderr, stdin};

use clap::Args;

use crate::exit::Exit;

#[derive(Clone, Copy, Debug, Args)]
pub struct Confirm {
    /// Do it without asking; needed if there is no terminal to ask on.
    #[arg(long, short)]
    yes: bool,
}

impl Confirm {
    /// Asks whether to do `what`; an error unless somebody says yes.
    pub fn ask(self, what: &str) -> Result<(), Exit> {
        if self.yes {
            return Ok(());
        }
        if !stdin().is_terminal() || !stderr().is_terminal() {
            return Err(Exit::bad_input(format!("nobody to ask whether to {what}: add --yes to do it")));
        }
        write!(stderr(), "{what}? [y/N] ")?;
        let mut answer = String::new();
        stdin().read_line(&mut answer)?;
        match answer.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(Exit::Declined),
        }
    }
}
