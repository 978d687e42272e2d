//! What can go wrong between a worker and its queue, and what to do about it.

use turnmill_schema::TurnId;
use turnmill_schema::envelope::EnvelopeError;

/// What a caller should do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// It may pass: try again after a pause.
    Retry,
    /// This turn or ticket is not ours or not possible: drop it and go on with the others.
    Reject,
    /// Nothing this worker does can help: stop and tell the operator.
    Stop,
}

/// Errors of the [`super::Broker`] port.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BrokerError {
    /// The connection failed or timed out; the command may or may not have happened.
    #[error("cannot reach Redis at {url}: {reason}; check that it runs and that redis_url is right")]
    Unreachable {
        /// Where, without the password.
        url: String,
        /// The client's words.
        reason: String,
    },
    /// Another worker has the turn, or it has ended.
    #[error("turn {turn} is leased by another worker or has ended; nothing was written")]
    Fenced {
        /// The turn.
        turn: TurnId,
    },
    /// The result stream lacks tokens that `finish` says were published.
    #[error("turn {turn} has {found} published tokens, not {expected}; append the missing ones first")]
    Gap {
        /// The turn.
        turn: TurnId,
        /// Tokens the caller counted.
        expected: u32,
        /// Tokens in the result stream.
        found: u32,
    },
    /// Redis refused the command: full, read-only, wrong type under one of our keys, no permission.
    #[error("Redis refused {step}: {reason}")]
    Refused {
        /// Which step of the protocol.
        step: &'static str,
        /// Whether it may be different the next time: full, loading, failing over.
        passing: bool,
        /// Redis's words.
        reason: String,
    },
    /// The server cannot carry the queue safely.
    #[error("{0}")]
    Unsuitable(String),
    /// Something of ours cannot be encoded or decoded.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
}

impl BrokerError {
    /// Its words for the log, which must not quote what turns say: a decoder's may.
    pub fn without_content(&self) -> String {
        match self {
            Self::Envelope(EnvelopeError::Malformed { .. }) => {
                "what a turn, its history or its result holds cannot be read".to_owned()
            }
            other => other.to_string(),
        }
    }

    /// Retry, reject or stop.
    pub fn advice(&self) -> Advice {
        match self {
            Self::Unreachable { .. } | Self::Refused { passing: true, .. } => Advice::Retry,
            // The stream lost entries: whoever leases the turn next goes on from what it holds.
            Self::Gap { .. } => Advice::Reject,
            Self::Refused { passing: false, .. } | Self::Fenced { .. } | Self::Envelope(_) => Advice::Reject,
            Self::Unsuitable(_) => Advice::Stop,
        }
    }
}
