//! What can go wrong between a producer and the queue, and what to do about it.

use std::time::Duration;

use turnmill_schema::agent_file::AgentFileError;
use turnmill_schema::envelope::{EnvelopeError, MAX_INLINE_BYTES};
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
    /// The queue, or the tenant's share of it, holds as many turns as it may.
    #[error(
        "queue full; retry after {} ms: {} has {open} open turns of at most {limit}; nothing was written",
        retry_after.as_millis(), whose(queue, tenant.as_deref())
    )]
    QueueFull {
        /// Its name.
        queue: String,
        /// The tenant whose own limit it was; none: everybody's.
        tenant: Option<String>,
        /// How many turns wait or run.
        open: u64,
        /// How many may.
        limit: u64,
        /// When there should be room, at the pace at which turns ended lately.
        retry_after: Duration,
    },
    /// The turn can never run.
    #[error(transparent)]
    InvalidTurn(#[from] InvalidTurn),
    /// Something cannot be encoded or decoded.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The address is not one of an object store.
    #[error(
        "the object store cannot be opened: {reason}; its URL looks like file:///var/lib/turnmill, s3://bucket/prefix, \
         gs://bucket/prefix or az://container/prefix"
    )]
    InvalidStore {
        /// What is wrong with it.
        reason: String,
    },
    /// The turn is too large for Redis, and there is no other place for it.
    #[error(
        "turn {turn} has {bytes} bytes; with more than {MAX_INLINE_BYTES} it goes through an object store, and none is \
         named: give --store or set TURNMILL_STORE, or send less text"
    )]
    NoStore {
        /// The turn.
        turn: TurnId,
        /// Its size.
        bytes: u64,
    },
    /// The object store did not take a turn.
    #[error(
        "cannot write to the object store {url}: {reason}; nothing was enqueued; check that the store runs and can be \
         reached, then try again"
    )]
    Store {
        /// Where, without the password.
        url: String,
        /// The client's words.
        reason: String,
    },
    /// No trace of the turn is left.
    #[error("turn {turn} is not in queue {queue}: it was never enqueued there or its result has expired")]
    UnknownTurn {
        /// The turn.
        turn: TurnId,
        /// Where it was looked for.
        queue: String,
    },
    /// There is no such agent.
    #[error("agent {agent} of tenant {tenant} is not in queue {queue}: it never had a turn there")]
    UnknownAgent {
        /// The agent.
        agent: String,
        /// Its tenant.
        tenant: String,
        /// Where it was looked for.
        queue: String,
    },
    /// The agent's turn that runs would undo it; one that waits after it published tokens would go on after another
    /// history.
    #[error("agent {agent} has a turn that runs, or began, with its history; wait for its end or cancel it")]
    AgentBusy {
        /// The agent.
        agent: String,
    },
    /// The agent's history is another one than a moment before.
    #[error("the history of agent {agent} changed meanwhile; nothing was done, look again and repeat it")]
    HistoryChanged {
        /// The agent.
        agent: String,
    },
    /// There is no such turn to go back to.
    #[error("turn {turn} is not in the history of agent {agent}, which is {}", shown(history))]
    NotInHistory {
        /// What was asked for.
        turn: TurnId,
        /// The agent.
        agent: String,
        /// The turns that are, oldest first.
        history: Vec<TurnId>,
    },
    /// Another history would be lost, or turns would run on one they were not meant for.
    #[error(
        "agent {agent} has {entries} turns in its history and {open} that have not ended; give another name, or cancel \
         its turns and reset it"
    )]
    AgentTaken {
        /// The agent.
        agent: String,
        /// Turns in its history.
        entries: u64,
        /// Turns that have not ended.
        open: u64,
    },
    /// The file is of another tenant.
    #[error("the file holds an agent of tenant {found}, not of {tenant}; give --tenant {found}")]
    OtherTenant {
        /// Whose it is.
        found: String,
        /// Who reads it.
        tenant: String,
    },
    /// The file is not an exported agent, or not a whole one.
    #[error(transparent)]
    AgentFile(#[from] AgentFileError),
    /// The file cannot be written or read.
    #[error("the file cannot be written or read: {0}")]
    File(#[from] std::io::Error),
    /// The object store did not give or take K and V.
    #[error(
        "the object store {url} failed: {reason}; no agent was changed; check that the store runs and can be reached, \
         then try again"
    )]
    KvStore {
        /// Where, without the password.
        url: String,
        /// The client's words.
        reason: String,
    },
    /// There is no such worker.
    #[error("no worker has the id or name {worker}; see turnmill worker ls")]
    UnknownWorker {
        /// What was asked for.
        worker: String,
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

/// The newest turns of a history; a long one has more than anybody reads.
fn shown(history: &[TurnId]) -> String {
    const MOST: usize = 20;
    let newest = &history[history.len().saturating_sub(MOST)..];
    let newest: Vec<String> = newest.iter().map(TurnId::to_string).collect();
    match history.len() {
        0 => "empty".to_owned(),
        turns if turns > MOST => format!("{} older turns, {}", turns - MOST, newest.join(", ")),
        _ => newest.join(", "),
    }
}

fn whose(queue: &str, tenant: Option<&str>) -> String {
    match tenant {
        Some(tenant) => format!("tenant {tenant} of queue {queue}"),
        None => format!("queue {queue}"),
    }
}

impl ProducerError {
    /// Retry, reject or stop.
    pub fn advice(&self) -> Advice {
        match self {
            Self::Unreachable { .. } | Self::Refused { .. } | Self::QueueFull { .. } => Advice::Retry,
            Self::Store { .. } | Self::KvStore { .. } => Advice::Retry,
            Self::InvalidTurn(_) | Self::Envelope(_) | Self::NoStore { .. } => Advice::Reject,
            Self::InvalidStore { .. } => Advice::Stop,
            Self::UnknownTurn { .. } | Self::UnknownAgent { .. } | Self::UnknownWorker { .. } => {
                Advice::Reject
            }
            Self::Gap { .. } | Self::NotInHistory { .. } | Self::AgentTaken { .. } => Advice::Reject,
            Self::OtherTenant { .. } | Self::AgentFile(_) => Advice::Reject,
            Self::File(_) => Advice::Stop,
            Self::AgentBusy { .. } | Self::HistoryChanged { .. } => Advice::Retry,
            Self::InvalidUrl { .. } | Self::Unsuitable(_) | Self::Unreadable { .. } => Advice::Stop,
        }
    }
}
