//! What can go wrong between a producer and the queue, and what to do about it.

use turnmill_schema::envelope::EnvelopeError;
use turnmill_schema::{InvalidTurn, TurnId};

/// What a caller should do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// It may pass: try again after a pause. Enqueueing again needs an idempotency key to be safe.
    Retry,
    /// This turn is not possible: drop it and go on with the others.
    Reject,
    /// Nothing this program does can help: stop and tell the operator.
    Stop,
}

/// Errors of [`crate::Producer`].
#[derive(Debug, thiserror::Error)]
pub enum ProducerError {
    /// The address is not one of a Redis.
    #[error("the Redis URL is not usable: {reason}; one looks like redis://:password@127.0.0.1:6379/0")]
    InvalidUrl {
        /// What is wrong with it; never the URL, which may hold a password.
        reason: String,
    },
    /// The connection failed or timed out for longer than [`crate::ProducerSettings::retry_for`].
    #[error("cannot reach Redis at {address}: {reason}; check that it runs and that the URL is right")]
    Unreachable {
        /// Host and port, or the socket's path.
        address: String,
        /// The client's words.
        reason: String,
    },
    /// Redis refused a command: full, read-only, no permission, another type under one of our keys.
    #[error("Redis refused {step}: {reason}")]
    Refused {
        /// Which step of the protocol.
        step: &'static str,
        /// Redis's words.
        reason: String,
    },
    /// The server cannot carry the queue safely.
    #[error("{0}")]
    Unsuitable(String),
    /// The queue holds as many turns as it may.
    #[error("the queue {queue} is full ({depth} turns wait); nothing was written, try again later")]
    QueueFull {
        /// Its name.
        queue: String,
        /// How many turns wait in it.
        depth: u64,
    },
    /// The turn can never run.
    #[error(transparent)]
    InvalidTurn(#[from] InvalidTurn),
    /// Something cannot be encoded or decoded.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// No trace of the turn is left.
    #[error("turn {turn} is not in queue {queue}: it was never enqueued there or its result has expired")]
    UnknownTurn {
        /// The turn.
        turn: TurnId,
        /// Where it was looked for.
        queue: String,
    },
    /// The result stream lacks tokens.
    #[error(
        "the result of turn {turn} lacks tokens {expected} to {}: Redis lost or trimmed them",
        found.saturating_sub(1)
    )]
    Gap {
        /// The turn.
        turn: TurnId,
        /// First missing token.
        expected: u32,
        /// First token there is.
        found: u32,
    },
    /// What Redis holds or answers is not what this version writes.
    #[error("{what} is not in the form this version reads: {reason}; are all parts of one version?")]
    Unreadable {
        /// Which key or reply.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ProducerError {
    /// Retry, reject or stop.
    pub fn advice(&self) -> Advice {
        match self {
            Self::Unreachable { .. } | Self::Refused { .. } | Self::QueueFull { .. } => Advice::Retry,
            Self::InvalidTurn(_) | Self::Envelope(_) => Advice::Reject,
            Self::UnknownTurn { .. } | Self::Gap { .. } => Advice::Reject,
            Self::InvalidUrl { .. } | Self::Unsuitable(_) | Self::Unreadable { .. } => Advice::Stop,
        }
    }
}
