//! What can be wrong with a configuration.

use std::path::PathBuf;

use turnmill_schema::environment::UnknownVariable;

/// Why the settings were refused. Nothing has been bound, opened or claimed when this is returned.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The configuration file cannot be read.
    #[error("cannot read the configuration file {path}: {source}; correct --config or {variable}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The variable that may have named it.
        variable: &'static str,
        /// The system's words.
        source: std::io::Error,
    },
    /// The configuration file is not TOML, has an unknown key or a value of the wrong kind.
    #[error("configuration file {path}, line {line}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Where in it, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A `TURNMILL_*` variable that no setting reads: most likely a misspelling.
    #[error(transparent)]
    UnknownVariable(#[from] UnknownVariable),
    /// Values outside their range or at odds with each other: one sentence each, all of them.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
    /// The arguments were not parsed by [`super::SettingsArgs`].
    #[error(transparent)]
    Arguments(#[from] clap::Error),
}
