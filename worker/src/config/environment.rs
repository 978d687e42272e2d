//! Variables that look like ours and are not: a misspelt setting must not pass in silence.

use clap::{Args as _, Command};

use super::{ConfigError, SettingsArgs};

const PREFIX: &str = "TURNMILL_";

/// Variables of the set-up scripts, the tests and the producer. People may export them in the shell a worker starts from.
const OTHERS: [&str; 5] = [
    "TURNMILL_CACHE",
    "TURNMILL_TENANT",
    "TURNMILL_TEST_MODEL",
    "TURNMILL_TEST_GEMMA",
    "TURNMILL_TEST_REFERENCE",
];

/// Refuses the first variable, in alphabetical order, that starts like ours and that no setting reads.
pub(super) fn refuse_unknown(variables: impl Iterator<Item = (String, String)>) -> Result<(), ConfigError> {
    let known = known_variables();
    let stranger = |(name, value): &(String, String)| {
        name.starts_with(PREFIX)
            && !known.contains(name)
            && !OTHERS.contains(&name.as_str())
            && !is_service_link(name, value)
    };
    match variables.filter(stranger).min() {
        Some((name, _)) => Err(ConfigError::UnknownVariable { nearest: nearest(&name, known), name }),
        None => Ok(()),
    }
}

/// Every variable that a setting reads.
pub(super) fn known_variables() -> Vec<String> {
    let command = SettingsArgs::augment_args(Command::new("settings"));
    let variables = command.get_arguments().filter_map(|arg| arg.get_env());
    variables.map(|name| name.to_string_lossy().into_owned()).collect()
}

/// The most similar name, where one is similar at all (clap's measure and bound for flags).
fn nearest(name: &str, known: Vec<String>) -> Option<String> {
    let tail = |name: &str| name.trim_start_matches(PREFIX).to_owned();
    let similarity = |other: &String| strsim::jaro(&tail(name), &tail(other));
    let best = known.into_iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    (similarity(&best) > 0.7).then_some(best)
}

/// Kubernetes gives every container variables for each service of its namespace: a service `turnmill` makes
/// `TURNMILL_SERVICE_HOST` and `TURNMILL_PORT=tcp://…`. They are nobody's misspelling.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_endpoint = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let is_part =
        name.contains("_PORT_") && ["_PROTO", "_PORT", "_ADDR"].iter().any(|end| name.ends_with(end));
    name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || is_endpoint || is_part
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(variables: &[(&str, &str)]) -> Option<String> {
        let variables = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        refuse_unknown(variables).err().map(|error| error.to_string())
    }

    #[test]
    fn a_misspelt_variable_is_refused_with_the_name_that_was_meant() {
        let refused = refusal(&[("PATH", "/bin"), ("TURNMILL_REDIS_ULR", "x")]).expect("refused");
        assert_eq!(
            refused,
            "no setting reads the variable TURNMILL_REDIS_ULR \
             (did you mean TURNMILL_REDIS_URL?); correct it or unset it"
        );
        let refused = refusal(&[("TURNMILL_XYZZY", "x")]).expect("refused");
        assert!(!refused.contains("did you mean"), "{refused}");
    }

    #[test]
    fn known_foreign_and_service_link_variables_pass() {
        let passing = [
            ("TURNMILL_CONFIG", "a"),
            ("TURNMILL_LEASE_MS", "1"),
            ("TURNMILL_CACHE", "/c"),
            ("TURNMILLER", "x"),
            ("TURNMILL_SERVICE_HOST", "10.0.0.1"),
            ("TURNMILL_SERVICE_PORT_HTTP", "9470"),
            ("TURNMILL_PORT", "tcp://10.0.0.1:9470"),
            ("TURNMILL_PORT_9470_TCP", "tcp://10.0.0.1:9470"),
            ("TURNMILL_PORT_9470_TCP_PROTO", "tcp"),
            ("TURNMILL_PORT_9470_TCP_ADDR", "10.0.0.1"),
        ];
        assert_eq!(refusal(&passing), None);
    }
}
