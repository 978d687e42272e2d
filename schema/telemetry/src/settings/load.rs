//! Flags over environment over file over defaults, with the source of every value.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, FromArgMatches as _};
use serde::Serialize;
use serde_json::Value;
use turnmill_schema::environment::refuse_unknown;
use turnmill_schema::masked::MASK;

use super::{Problems, SettingsError, Table};
use crate::logs::LogFormat;

/// The arguments of every command that needs settings; flatten it into the command's own.
#[derive(Clone, Debug, clap::Args)]
pub struct SettingsArgs<T: Table> {
    /// A TOML file with settings; its keys are the flags' names with underscores.
    #[arg(long, env = T::CONFIG, value_name = "FILE", hide_env_values = true)]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: T,
}

/// Where a setting's value came from, strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The command line.
    Flag,
    /// A `TURNMILL_*` variable.
    Environment,
    /// The TOML file.
    File,
    /// Nobody said anything.
    Default,
}

/// A setting in force. Passwords are masked, and names that were made up for this process are told as they were given.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Effective {
    /// Its name, which is also its key in the file.
    pub name: &'static str,
    /// The variable that gives it.
    #[serde(skip)]
    pub variable: &'static str,
    /// Its value; null if it has none.
    pub value: Value,
    /// Where that came from.
    pub source: Source,
    /// Why the value cannot be written into a configuration file, if so.
    #[serde(skip)]
    pub(super) left_out: Option<&'static str>,
}

impl Effective {
    /// A setting in force, from the table that [`crate::settings!`] makes.
    pub fn new(name: &'static str, variable: &'static str, value: &impl Serialize, source: Source) -> Self {
        // Only a path that is not Unicode cannot be written as JSON.
        let Ok(value) = serde_json::to_value(value) else {
            return Self { name, variable, value: Value::Null, source, left_out: Some("it is not Unicode") };
        };
        let hides = |text: &str| text.contains("://") && text.contains(MASK);
        let left_out = value.as_str().is_some_and(hides).then_some("passwords are not printed");
        Self { name, variable, value, source, left_out }
    }
}

/// Reads the file that `matches` names, if any, and the environment; merges and validates.
///
/// `matches` come from the (sub)command into which [`SettingsArgs`] was flattened.
///
/// # Errors
/// What is unknown, unreadable, of the wrong kind or against a rule, in one sentence; rules that are broken, all at once.
pub fn load<T: Table>(matches: &ArgMatches) -> Result<(T, Vec<Effective>), SettingsError> {
    // A variable that is not Unicode is nobody's setting; lossy names keep the check total.
    let lossy = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
    };
    refuse_unknown(std::env::vars_os().map(lossy))?;
    let SettingsArgs { config, mut settings } = SettingsArgs::<T>::from_arg_matches(matches)?;
    let file = config.as_deref().map(read_file::<T>).transpose()?.unwrap_or_default();
    let effective = settings.merge(file, |name| source(matches, name));
    Problems::of(&settings)?;
    Ok((settings, effective))
}

/// The command of a program that takes settings, without reading variables that are empty: they count as unset.
pub fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let command = command.mut_args(|arg| {
        let unset = arg.get_env().is_some_and(is_empty);
        if unset { arg.env(None::<&str>) } else { arg }
    });
    command.mut_subcommands(without_empty_variables)
}

/// How log lines look, as far as it can be told although the settings may be wrong: errors of a service belong into its log.
/// The setting is called `log_format`.
pub fn log_format(matches: &ArgMatches) -> LogFormat {
    /// The one key that counts here, whatever else stands in the file.
    #[derive(serde::Deserialize)]
    struct File {
        log_format: Option<LogFormat>,
    }
    let given = matches.try_get_one("log_format").ok().flatten().copied();
    let given = given.filter(|_| source(matches, "log_format") != Source::Default);
    given.unwrap_or_else(|| {
        let path = matches.try_get_one::<PathBuf>("config").ok().flatten();
        let text = path.and_then(|path| std::fs::read_to_string(path).ok());
        let file: Option<File> = text.and_then(|text| toml::from_str(&text).ok());
        file.and_then(|file| file.log_format).unwrap_or(LogFormat::Auto)
    })
}

fn source(matches: &ArgMatches, name: &str) -> Source {
    match matches.value_source(name) {
        Some(ValueSource::CommandLine) => Source::Flag,
        Some(ValueSource::EnvVariable) => Source::Environment,
        _ => Source::Default,
    }
}

fn read_file<T: Table>(path: &Path) -> Result<T::File, SettingsError> {
    let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Unreadable {
        path: path.to_owned(),
        variable: T::CONFIG,
        source,
    })?;
    toml::from_str(&text).map_err(|error| {
        // The error's own text quotes the line, and with it a password that may stand there.
        let start = error.span().map_or(0, |span| span.start);
        let line = 1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count();
        SettingsError::File { path: path.to_owned(), line, reason: error.message().to_owned() }
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    use clap::{CommandFactory as _, Parser};

    use super::super::sample::Sample;
    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        _args: SettingsArgs<Sample>,
    }

    /// Not a test: what [`load`] runs. The environment belongs to a whole process and tests share theirs, so
    /// each case gets a process of its own: this test binary again, told to run only this.
    #[test]
    #[ignore = "the other tests run it in a process of its own"]
    fn load_in_child() {
        let flags = std::env::var("TEST_FLAGS").unwrap_or_default();
        let flags = flags.split_whitespace();
        let matches = Cli::command().get_matches_from(std::iter::once("test").chain(flags));
        match super::load::<Sample>(&matches) {
            Ok((_, effective)) => println!("\n{}", serde_json::json!(effective)),
            Err(error) => println!("\nrefused: {error}"),
        }
    }

    fn load(flags: &str, variables: &[(&str, &str)]) -> Output {
        let mut child = Command::new(std::env::current_exe().expect("the test binary"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TURNMILL_") {
                child.env_remove(name);
            }
        }
        child.args(["--exact", "settings::load::tests::load_in_child", "--ignored", "--nocapture"]);
        child.env("TEST_FLAGS", flags).envs(variables.iter().copied());
        child.output().expect("the test binary runs")
    }

    /// `(value, source)` of a setting.
    fn effective(output: &Output, name: &str) -> (String, String) {
        let text = String::from_utf8_lossy(&output.stdout);
        let line =
            text.lines().find(|line| line.starts_with('[')).unwrap_or_else(|| panic!("no JSON: {text}"));
        let all: Vec<serde_json::Value> = serde_json::from_str(line).expect("JSON");
        let found = all.iter().find(|setting| setting["name"] == name).expect("a known setting");
        (found["value"].to_string(), found["source"].as_str().expect("text").to_owned())
    }

    fn refusal(output: &Output) -> String {
        let text = String::from_utf8_lossy(&output.stdout);
        let refused = text.lines().find_map(|line| line.strip_prefix("refused: "));
        refused.unwrap_or_else(|| panic!("not refused: {text}")).to_owned()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(&file, text).expect("written");
        file
    }

    fn is(value: &str, source: &str) -> (String, String) {
        (value.to_owned(), source.to_owned())
    }

    #[test]
    fn flag_beats_environment_beats_file_beats_default() {
        let file = file("shards = 2\nlease_ms = 2000\nflush_ms = 2\npool_bytes = \"2MiB\"\n");
        let config = format!("--config {}", file.path().display());
        let variables = [("TURNMILL_SHARDS", "3"), ("TURNMILL_LEASE_MS", "3000")];
        let output = load(&format!("{config} --shards 4"), &variables);
        assert_eq!(effective(&output, "shards"), is("4", "flag"));
        assert_eq!(effective(&output, "lease_ms"), is("3000", "environment"));
        assert_eq!(effective(&output, "flush_ms"), is("2", "file"));
        assert_eq!(effective(&output, "pool_bytes"), is("2097152", "file"));
        assert_eq!(effective(&output, "block_tokens"), is("16", "default"));
        assert_eq!(effective(&output, "model"), is("null", "default"));
    }

    #[test]
    fn a_flag_that_repeats_the_default_still_beats_the_file() {
        let file = file("shards = 2\n");
        let output = load("--shards 1", &[("TURNMILL_CONFIG", &file.path().to_string_lossy())]);
        assert_eq!(effective(&output, "shards"), is("1", "flag"));
    }

    #[test]
    fn optional_settings_come_from_anywhere_too() {
        let file = file("model = \"/file.gguf\"\n");
        let config = format!("--config {}", file.path().display());
        assert_eq!(effective(&load(&config, &[]), "model"), is("\"/file.gguf\"", "file"));
        let output = load(&config, &[("TURNMILL_MODEL", "/env.gguf")]);
        assert_eq!(effective(&output, "model"), is("\"/env.gguf\"", "environment"));
    }

    #[test]
    fn unknown_keys_wrong_kinds_and_missing_files_are_refused_by_name_and_line() {
        let cases = [
            ("lease_ms = 2000\nleas_ms = 1\n", "line 2: unknown field `leas_ms`"),
            ("shards = \"many\"\n", "line 1: invalid type: string \"many\""),
            ("shards = 0\n", "line 1: invalid value: integer `0`, expected a nonzero u16"),
            ("\n\npool_bytes = -1\n", "line 3: "),
            ("log_format = \"yaml\"\n", "line 1: unknown variant `yaml`"),
            ("log = \"a=loud\"\n", "is no directive"),
            ("shards 1\n", "line 1: "),
        ];
        for (text, part) in cases {
            let file = file(text);
            let refused = refusal(&load(&format!("--config {}", file.path().display()), &[]));
            assert!(refused.contains(part) && refused.contains("configuration file"), "{text:?}: {refused}");
        }
        let refused = refusal(&load("--config /nowhere/turnmill.toml", &[]));
        assert!(
            refused.contains("/nowhere/turnmill.toml") && refused.contains("TURNMILL_CONFIG"),
            "{refused}"
        );
    }

    #[test]
    fn a_misspelt_variable_and_an_invalid_value_are_refused() {
        assert!(refusal(&load("", &[("TURNMILL_SHARD", "1")])).contains("did you mean TURNMILL_SHARDS?"));
        let file = file("block_tokens = 24\n");
        let refused = refusal(&load(&format!("--config {}", file.path().display()), &[]));
        assert_eq!(refused, "block_tokens is 24; it must be a power of two from 8 to 256");
    }

    #[test]
    fn no_password_is_printed() {
        let secret = [("TURNMILL_OTLP_ENDPOINT", "http://u:s3cret@h")];
        let output = load("", &secret);
        assert_eq!(effective(&output, "otlp_endpoint"), is("\"http://u:***@h\"", "environment"));
        for flags in ["--help", "--shards many"] {
            let output = load(flags, &secret);
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            assert!(said.contains("--shards") && !said.contains("s3cret"), "{said}");
        }
        let file = file("otlp_endpoint = [\"http://u:s3cret@h\"]\n");
        assert!(!refusal(&load(&format!("--config {}", file.path().display()), &[])).contains("s3cret"));
    }

    #[test]
    fn the_logs_format_is_known_although_the_settings_are_wrong() {
        let read = |flags: &[&str]| {
            let command = Cli::command().mut_args(|arg| arg.env(None::<&str>));
            log_format(&command.try_get_matches_from([&["test"], flags].concat()).expect("flags parse"))
        };
        let file = file("log_format = \"json\"\nleas_ms = 1\n");
        let config = format!("--config={}", file.path().display());
        assert_eq!((read(&[]), read(&[&config])), (LogFormat::Auto, LogFormat::Json));
        assert_eq!(read(&[&config, "--log-format=text"]), LogFormat::Text);
    }
}
