//! Names and texts may begin with a dash, and numbers may be negative. Every flag that takes one takes it with its dash. An
//! argument without a flag stands after `--`, so that no misspelt flag is taken for a name.

use std::any::TypeId;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command, CommandFactory};
use turnmill_client::StreamId;
use turnmill_client::schema::{TraceParent, TraceState, TurnId};

use crate::cli::Cli;
use crate::moment::{Moment, Seconds};
use crate::reply::{TemplateArguments, Thinking};
use crate::sampling::Bias;

/// Values of `arg` that begin with a dash. There are none if it is a switch, one of some words, a number that is never
/// negative, a time, an id or JSON. Any type that is not listed is taken for text, so that a new one is not forgotten.
fn dashed(arg: &Arg) -> &'static [&'static str] {
    let without = [
        TypeId::of::<u8>(),
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<usize>(),
        TypeId::of::<Bias>(),
        TypeId::of::<Thinking>(),
        TypeId::of::<TemplateArguments>(),
        TypeId::of::<Duration>(),
        TypeId::of::<Seconds>(),
        TypeId::of::<Moment>(),
        TypeId::of::<TurnId>(),
        TypeId::of::<StreamId>(),
        TypeId::of::<TraceParent>(),
        TypeId::of::<TraceState>(),
    ];
    let id = arg.get_value_parser().type_id();
    let is_switch = !arg.get_action().takes_values() || !arg.get_possible_values().is_empty();
    if is_switch || without.iter().any(|without| id == *without) {
        &[]
    } else if id == TypeId::of::<f32>() {
        &["-1", "-1.5"]
    } else {
        &["-x", "-5", "--", "--json"]
    }
}

/// What the command line has for `arg` of the command at `path`, whatever else is wrong with it.
fn read(path: &[&str], arg: &Arg, value: &str) -> Option<String> {
    let before = match (arg.get_index(), arg.get_long()) {
        (Some(index), _) => {
            let mut before = vec!["a".to_owned(); index - 1];
            before.push("--".to_owned());
            before
        }
        (None, Some(long)) => vec![format!("--{long}")],
        (None, None) => panic!("{arg} has neither a place nor a long name"),
    };
    let line = ["turnmill"].iter().chain(path).map(ToString::to_string);
    let line = line.chain(before).chain([value.to_owned()]);
    let matches = Cli::command().ignore_errors(true).try_get_matches_from(line).expect("errors are ignored");
    let below = |matches: ArgMatches, name: &&str| matches.subcommand_matches(name).cloned();
    let matches = path.iter().try_fold(matches, below)?;
    matches.get_raw(arg.get_id().as_str())?.next().and_then(OsStr::to_str).map(str::to_owned)
}

/// Every argument with the path of its command.
fn arguments<'a>(command: &'a Command, path: &[&'a str], found: &mut Vec<(Vec<&'a str>, &'a Arg)>) {
    found.extend(command.get_arguments().map(|arg| (path.to_vec(), arg)));
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        arguments(below, &[path, &[below.get_name()]].concat(), found);
    }
}

#[test]
fn every_name_text_and_signed_number_may_begin_with_a_dash() {
    let mut command = Cli::command();
    // Gives positional arguments their places.
    command.build();
    let mut found = Vec::new();
    arguments(&command, &[], &mut found);
    // Global flags stand in every command; once is enough.
    found.retain(|(path, arg)| path.is_empty() || !arg.is_global_set());
    let mut tried = BTreeSet::new();
    for (path, arg) in found {
        for value in dashed(arg) {
            assert_eq!(read(&path, arg, value).as_deref(), Some(*value), "{path:?} {arg}");
            tried.insert((path.join(" "), arg.get_id().to_string()));
        }
    }
    let number = ("submit".to_owned(), "presence_penalty".to_owned());
    assert!(tried.len() > 25 && tried.contains(&number), "the tree has them: {tried:?}");
}
