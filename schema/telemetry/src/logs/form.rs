//! How log lines look, and which are written.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which log lines are written, in the language of `tracing_subscriber`'s `EnvFilter`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct LogFilter(String);

/// A part of the text is not a directive of a filter.
#[derive(Debug, thiserror::Error)]
#[error("{directive:?} is no directive of a log filter ({reason}); write levels, as in info,turnmill=debug")]
pub struct InvalidFilter {
    directive: String,
    reason: String,
}

impl LogFilter {
    /// The filter itself. Its syntax was checked when the setting was read.
    pub(super) fn to_filter(&self) -> EnvFilter {
        EnvFilter::builder().parse_lossy(&self.0)
    }

    /// The filter as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LogFilter {
    type Err = InvalidFilter;
    fn from_str(s: &str) -> Result<Self, InvalidFilter> {
        // Each alone, as the filter itself cuts them: its own error does not say which one is wrong.
        for directive in s.split(',').filter(|directive| !directive.is_empty()) {
            if let Err(error) = directive.parse::<Directive>() {
                let directive = directive.chars().take(64).collect();
                return Err(InvalidFilter { directive, reason: error.to_string() });
            }
        }
        Ok(Self(s.to_owned()))
    }
}

impl TryFrom<String> for LogFilter {
    type Error = InvalidFilter;
    fn try_from(s: String) -> Result<Self, InvalidFilter> {
        s.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_none_is_refused_by_its_directive() {
        assert!("info,turnmill=debug".parse::<LogFilter>().is_ok());
        let error = "info,turnmill=loud,hyper=warn".parse::<LogFilter>().expect_err("no such level");
        assert!(error.to_string().starts_with("\"turnmill=loud\" is no directive"), "{error}");
    }
}
