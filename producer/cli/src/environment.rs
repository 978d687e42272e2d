//! The environment as the command line takes it: an empty variable counts as unset, and a misspelt one is refused.

use std::env;
use std::ffi::{OsStr, OsString};

use clap::Command;
use turnmill_client::schema::environment;

use crate::exit::Exit;

/// The command, without reading variables that are empty.
pub fn without_empty(command: Command) -> Command {
    let is_empty = |name: &OsStr| env::var_os(name).is_some_and(|value| value.is_empty());
    let command = command.mut_args(|arg| {
        let unset = arg.get_env().is_some_and(is_empty);
        if unset { arg.env(None::<&str>) } else { arg }
    });
    command.mut_subcommands(without_empty)
}

/// Refuses a variable that begins like ours and that nothing reads: the command would work on another queue than was meant.
pub fn check() -> Result<(), Exit> {
    // A variable that is not Unicode is nobody's setting; lossy names keep the check total.
    let lossy = |(name, value): (OsString, OsString)| {
        (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
    };
    environment::refuse_unknown(env::vars_os().map(lossy)).map_err(Exit::bad_input)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;

    fn read_by(command: &Command, found: &mut BTreeSet<OsString>) {
        found.extend(command.get_arguments().filter_map(|arg| arg.get_env()).map(ToOwned::to_owned));
        command.get_subcommands().for_each(|command| read_by(command, found));
    }

    #[test]
    fn the_list_of_variables_has_those_that_are_read() {
        let mut found = BTreeSet::new();
        read_by(&crate::cli::Cli::command(), &mut found);
        assert!(found.iter().eq(environment::PRODUCER.iter()), "{found:?}");
    }
}
