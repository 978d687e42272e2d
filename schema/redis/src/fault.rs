//! What can go wrong between a program and the queue's Redis, and what to do about it: classified here and nowhere else.
//!
//! Source of the codes: the replies of Redis 7 and Valkey 8 (`src/server.c`, `src/script.c`, `src/replication.c`).

use redis::{ErrorKind, RedisError};

/// What a caller should do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// It may pass: try again after a pause.
    Retry,
    /// This turn or request is not possible: drop it and go on with the others.
    Reject,
    /// Nothing this program does can help: stop and tell the operator.
    Stop,
}

/// Errors of everything in this crate. No text holds a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The connection failed or timed out; the command may or may not have happened.
    #[error("cannot reach Redis at {address}: {reason}; check that it runs and that the URL is right")]
    Unreachable {
        /// Host and port, or the socket's path.
        address: String,
        /// The client's words.
        reason: String,
    },
    /// The server at the other end cannot carry the queue now: it is a replica, it loads its data, or it lost its disk.
    /// Every connection was dropped; the next call asks the address again.
    #[error(
        "Redis at {address} cannot serve the queue now: {reason}; its address is asked again until a primary answers"
    )]
    Stale {
        /// Host and port, or the socket's path.
        address: String,
        /// What the server said.
        reason: String,
    },
    /// Redis has no memory left for new work.
    #[error(
        "Redis is full and refused {step}: {reason}; try again when turns have ended, or raise maxmemory"
    )]
    Full {
        /// Which step of the protocol.
        step: &'static str,
        /// Redis's words.
        reason: String,
    },
    /// Redis refused the command: a wrong type under one of our keys, an argument, a busy script.
    #[error("Redis refused {step}: {reason}")]
    Refused {
        /// Which step of the protocol.
        step: &'static str,
        /// Whether it may be different the next time.
        passing: bool,
        /// Redis's words.
        reason: String,
    },
    /// The server, or the user we are there, cannot carry the queue.
    #[error("{0}")]
    Unsuitable(String),
    /// The answer is not one of the protocol: another version's, or somebody else's key.
    #[error("the answer to {step} cannot be read: {reason}; turnmill doctor tells which keys are not ours")]
    Unreadable {
        /// Which step of the protocol.
        step: &'static str,
        /// What is wrong with it. It quotes nothing that a turn says.
        reason: String,
    },
}

impl Fault {
    /// Retry, reject or stop.
    pub fn advice(&self) -> Advice {
        match self {
            Self::Unreachable { .. } | Self::Stale { .. } | Self::Full { .. } => Advice::Retry,
            Self::Refused { passing: true, .. } => Advice::Retry,
            Self::Refused { passing: false, .. } | Self::Unreadable { .. } => Advice::Reject,
            Self::Unsuitable(_) => Advice::Stop,
        }
    }

    /// Whether the queue cannot be served now, whatever is asked: readiness depends on it.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Stale { .. })
    }
}

/// What an error code of Redis means for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// The server is not the primary of our queue, or cannot be now.
    Stale,
    /// There is no memory for new work.
    Full,
    /// It passes by itself: a busy script, a resharding cluster, a group that is made again.
    Passing,
    /// The server does not accept the user or the password.
    Login,
    /// The server knows us and does not let us.
    Forbidden,
    /// Anything else.
    Refused,
}

/// The meaning of an error code, the first word of an error reply.
pub(crate) fn meaning(code: &str) -> Meaning {
    match code {
        "READONLY" | "MASTERDOWN" | "LOADING" | "MISCONF" | "UNBLOCKED" | "NOREPLICAS" => Meaning::Stale,
        "OOM" => Meaning::Full,
        "BUSY" | "TRYAGAIN" | "CLUSTERDOWN" | "MOVED" | "ASK" | "NOGROUP" | "NOSCRIPT" => Meaning::Passing,
        "NOAUTH" | "WRONGPASS" => Meaning::Login,
        "NOPERM" => Meaning::Forbidden,
        _ => Meaning::Refused,
    }
}

/// Whether the server does not know who asks. One that nobody logged in to refuses long commands as a protocol error.
fn is_login(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed
        || error.detail().is_some_and(|detail| detail.contains("unauthenticated"))
}

/// Our words for an error of `step` on the server at `address`.
pub(crate) fn classify(step: &'static str, address: &str, error: &RedisError) -> Fault {
    if is_login(error) {
        return worded(Meaning::Login, step, address, error.to_string());
    }
    match error.kind() {
        ErrorKind::Server(_) | ErrorKind::Extension => {
            let code = error.code().unwrap_or_default();
            // As the server wrote it: the client's own display puts other words around it.
            let reason =
                error.detail().map_or_else(|| error.to_string(), |detail| format!("{code} {detail}"));
            worded(meaning(code), step, address, reason)
        }
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => {
            Fault::Unreadable { step, reason: unquoted(&error.to_string()) }
        }
        _ => Fault::Unreachable { address: address.to_owned(), reason: error.to_string() },
    }
}

/// Our words for an error reply that a script passed on as text.
pub(crate) fn classify_text(step: &'static str, address: &str, reason: String) -> Fault {
    worded(meaning(reason.split(' ').next().unwrap_or_default()), step, address, reason)
}

fn worded(meaning: Meaning, step: &'static str, address: &str, reason: String) -> Fault {
    match meaning {
        Meaning::Stale => Fault::Stale { address: address.to_owned(), reason },
        Meaning::Full => Fault::Full { step, reason },
        Meaning::Passing => Fault::Refused { step, passing: true, reason },
        Meaning::Login => Fault::Unsuitable(format!(
            "Redis at {address} wants another user or password ({reason}); give them in the URL: \
             redis://user:password@host, with reserved characters percent-encoded"
        )),
        Meaning::Forbidden => Fault::Unsuitable(format!(
            "Redis at {address} does not let this user do it ({step}: {reason}); grant the commands and keys of \
             deploy/redis/users.acl"
        )),
        Meaning::Refused if reason.starts_with("WRONGTYPE") => {
            let reason = format!("{reason}; turnmill doctor tells which keys are not ours");
            Fault::Refused { step, passing: false, reason }
        }
        Meaning::Refused => Fault::Refused { step, passing: false, reason },
    }
}

/// A parser's error without the answer that the client quotes in it, and with that a turn's text.
pub(crate) fn unquoted(text: &str) -> String {
    text.split(" (response was").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_advice() {
        let advice = |text: &str| classify_text("step", "h:1", text.to_owned()).advice();
        for text in
            ["READONLY no", "LOADING data", "MISCONF disk", "MASTERDOWN x", "UNBLOCKED x", "NOREPLICAS x"]
        {
            let fault = classify_text("step", "h:1", text.to_owned());
            assert!(matches!(fault, Fault::Stale { .. }) && fault.is_outage(), "{text}: {fault:?}");
            assert_eq!(fault.advice(), Advice::Retry, "{text}");
        }
        for text in
            ["OOM full", "BUSY x", "TRYAGAIN x", "CLUSTERDOWN x", "NOGROUP x", "MOVED 1 h:2", "ASK 1 h:2"]
        {
            assert_eq!(advice(text), Advice::Retry, "{text}");
        }
        for text in ["NOAUTH x", "WRONGPASS x", "NOPERM x"] {
            assert_eq!(advice(text), Advice::Stop, "{text}");
        }
        for text in ["WRONGTYPE key", "ERR what", "", "no code at all"] {
            assert_eq!(advice(text), Advice::Reject, "{text}");
        }
    }

    #[test]
    fn an_answer_that_cannot_be_read_is_not_quoted() {
        let text = "Response type not convertible to u64 (response was bulk-string('\"secret\"'))";
        assert_eq!(unquoted(text), "Response type not convertible to u64");
    }
}
