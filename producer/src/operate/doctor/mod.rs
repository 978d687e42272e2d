//! What is wrong with the server or the queue, and what to do about it.
//!
//! * `server`: what the server says of itself; judged without asking anything else.
//! * `queue`: what lies under the queue's keys.
//!
//! Invariant: a check that cannot be made warns that it could not, and never passes.

mod queue;
mod server;

use std::time::Duration;

use serde::Serialize;
use turnmill_redis::Fault;

use super::Operator;
use crate::builder::ClientBuilder;
use crate::client::Client;
use crate::error::ClientError;

/// How long a check goes on trying: a person waits for the report, and a server that does not answer is what it reports.
const RETRY_FOR: Duration = Duration::from_secs(1);

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, with a risk that somebody should know of; or it could not be found out.
    Warn,
    /// Turns are lost, stuck or refused.
    Fail,
}

impl Verdict {
    /// The name shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at; a name that stays.
    pub check: &'static str,
    /// How it went.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; none where nothing is to be done.
    pub advice: Option<String>,
}

impl Check {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    fn warn(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    fn fail(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, ..Self::warn(check, found, advice) }
    }

    /// A check that could not be made.
    fn unknown(check: &'static str, error: &ClientError) -> Self {
        Self::warn(check, format!("unknown: {error}"), advice(error))
    }
}

/// What to do if a check cannot be made.
fn advice(error: &ClientError) -> &'static str {
    match error {
        ClientError::Queue(Fault::Unsuitable(_)) => "let this user run the command, or ask who may",
        error if error.is_outage() => "run turnmill doctor again once the server serves the queue",
        _ => "see the reason; if it names a key, the check of types tells what is wrong with it",
    }
}

impl Operator {
    /// Connects to a server whatever state it is in: what makes it unsuitable is for [`Operator::examine`] to tell.
    /// It retries for at most a second, whatever the settings say.
    pub async fn reach(builder: ClientBuilder) -> Result<Self, ClientError> {
        let retry_for = builder.settings.retry_for.min(RETRY_FOR);
        Ok(Client::reach(builder.retry_for(retry_for)).await?.operate())
    }

    /// Every check, in a fixed order. `lease_ms` is what the workers' leases are set to.
    pub async fn examine(&self, lease_ms: u64) -> Vec<Check> {
        let mut checks = self.examine_server().await;
        checks.extend(self.examine_queue(lease_ms).await);
        checks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_user_without_the_right_is_told_to_ask_for_it() {
        let (address, reason) = (String::new, String::new);
        for (fault, asks) in [
            (Fault::Unsuitable("NOPERM".to_owned()), true),
            (Fault::Unreachable { address: address(), reason: reason() }, false),
            (Fault::Stale { address: address(), reason: "LOADING".to_owned() }, false),
            (Fault::Refused { step: "step", passing: true, reason: "BUSY".to_owned() }, false),
            (Fault::Refused { step: "step", passing: false, reason: "WRONGTYPE".to_owned() }, false),
            (Fault::Unreadable { step: "step", reason: reason() }, false),
        ] {
            let check = Check::unknown("types", &fault.into());
            assert_eq!(check.verdict, Verdict::Warn, "a check that cannot be made never passes");
            let advice = check.advice.expect("there is always something to do");
            assert_eq!(advice.contains("let this user"), asks, "{}: {advice}", check.found);
        }
    }
}
