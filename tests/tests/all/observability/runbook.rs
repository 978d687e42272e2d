//! What the runbook's entries name: metrics, commands and flags.

use std::collections::BTreeMap;
use std::process::Stdio;

use turnmill_tests::command;
use turnmill_tests::observability::rules::Rules;
use turnmill_tests::observability::runbook;

use super::{catalogue, none};

#[test]
fn the_runbook_names_metrics_that_exist() {
    let catalogue = catalogue(&Rules::load());
    let text = runbook::load();
    let metrics = runbook::metrics(&text);
    assert!(metrics.len() > 10, "{metrics:?}");
    none(
        metrics
            .into_iter()
            .filter(|name| !catalogue.knows(name))
            .map(|name| format!("there is no {name}"))
            .collect(),
    );
}

#[test]
fn the_runbook_names_commands_and_flags_that_exist() {
    let text = runbook::load();
    let commands = runbook::commands(&text);
    assert!(commands.len() > 30, "{} commands", commands.len());
    let mut faults = Vec::new();
    let mut helps: BTreeMap<Vec<String>, Option<String>> = BTreeMap::new();
    for runbook::Command { program: name, words, flags } in commands {
        let key = [vec![name.clone()], words.clone()].concat();
        let help = helps.entry(key).or_insert_with(|| help(&name, &words));
        let spelled = format!("{name} {}", words.join(" "));
        match help {
            None => faults.push(format!("there is no command {spelled}")),
            Some(help) => {
                let has = |flag: &String| {
                    help.split(|c: char| c.is_whitespace() || c == ',').any(|word| word == flag)
                };
                let missing = flags.iter().filter(|flag| !has(flag));
                faults.extend(missing.map(|flag| format!("{spelled} has no flag {flag}")));
            }
        }
    }
    none(faults);
}

/// What a command says of itself; none where it does not exist.
fn help(name: &str, words: &[String]) -> Option<String> {
    let output =
        command(name).args(words).arg("--help").stdin(Stdio::null()).output().expect("it can be run");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
