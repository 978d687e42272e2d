//! What can go wrong between a worker and its queue, and what to do about it.

use turnmill_redis::Fault;
use turnmill_schema::TurnId;
use turnmill_schema::envelope::EnvelopeError;

pub use turnmill_redis::Advice;

/// Errors of the [`super::Broker`] port.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BrokerError {
    /// The queue's server, or the way to it.
    #[error(transparent)]
    Queue(#[from] Fault),
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
            Self::Queue(fault) => fault.advice(),
            // After a gap the stream has lost entries: the next worker to lease the turn goes on from what it holds.
            Self::Gap { .. } | Self::Fenced { .. } | Self::Envelope(_) => Advice::Reject,
        }
    }

    /// Whether the queue cannot be served now, whatever is asked.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Queue(fault) if fault.is_outage())
    }
}
