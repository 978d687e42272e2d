//! What can go wrong between a client and the queue, and what to do about it.

use std::time::Duration;

use turnmill_redis::{Advice, Fault};
use turnmill_schema::agent_file::AgentFileError;
use turnmill_schema::envelope::{EnvelopeError, MAX_INLINE_BYTES};
use turnmill_schema::{IdempotencyKey, InvalidTurn, TurnId};

use crate::batch::{BatchError, Fate};

/// Errors of [`crate::Client`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// A time in the settings is out of bounds.
    #[error("{name} is {value:?}; it must be from {least:?} to {most:?} (ten years)")]
    InvalidSetting {
        /// Its field in [`crate::ClientBuilder`].
        name: &'static str,
        /// What was given.
        value: Duration,
        /// The least that is allowed.
        least: Duration,
        /// The most.
        most: Duration,
    },
    /// The address is not one of a Redis, or the file of authorities is of no use.
    #[error("{0}")]
    InvalidUrl(String),
    /// Redis cannot be reached (for longer than [`crate::ClientBuilder::retry_for`], if it was reached before), cannot carry
    /// the queue, refused a command or gave an answer that is none.
    #[error(transparent)]
    Queue(#[from] Fault),
    /// The queue, or the tenant's share of it, holds as many turns as it may.
    #[error(
        "queue full; retry after {} ms: {} has {open} open turns of at most {limit}",
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
    /// A turn that asks for something else was enqueued under the idempotency key before, or stands before this turn in the call.
    #[error(
        "idempotency key {key} of turn {turn} is that of turn {first}, which asks for something else; give another key, or ask \
         the same"
    )]
    KeyTaken {
        /// The key.
        key: IdempotencyKey,
        /// The turn that is not in the queue.
        turn: TurnId,
        /// The turn whose key it is.
        first: TurnId,
    },
    /// The turn would follow another turn of its agent than the one it names.
    #[error(
        "turn {turn} was to follow turn {after}, but {}; look at what the agent said since, and name that turn",
        newest(*head)
    )]
    StaleHead {
        /// The turn that is not in the queue.
        turn: TurnId,
        /// The turn that it names.
        after: TurnId,
        /// The newest turn of its agent: the last one that has not ended, else the last one that completed.
        head: Option<TurnId>,
    },
    /// A turn names the turn that it follows, and follows none, because it has no agent.
    #[error(
        "turn {turn} is to follow turn {after}, but has no agent, so it follows none; name the agent of turn {after}"
    )]
    FollowsAlone {
        /// The turn that is not in the queue.
        turn: TurnId,
        /// The turn that it names.
        after: TurnId,
    },
    /// Redis did not say whether it took the turn. Enqueueing it again is safe if it has an idempotency key.
    #[error("turn {turn} may be in the queue: {source}")]
    Unsure {
        /// The id that it has if it is there.
        turn: TurnId,
        /// Why that is not known.
        source: Box<ClientError>,
    },
    /// Not all turns of a call are in the queue.
    #[error(transparent)]
    Batch(#[from] BatchError),
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
    /// A store is named, and the crate cannot open any.
    #[error(
        "a store is named, and turnmill-client was built without one: enable its feature `store`, or name no store"
    )]
    StoreNotBuilt,
    /// The turn is too large for Redis, and there is no other place for it.
    #[error(
        "the turn has {bytes} bytes; with more than {MAX_INLINE_BYTES} it goes through an object store, {NO_STORE}, or send less text"
    )]
    NoStore {
        /// The turn.
        turn: TurnId,
        /// Its size.
        bytes: u64,
    },
    /// The object store did not take a turn.
    #[error(
        "cannot write to the object store {url}: {reason}; check that the store runs and can be reached, then try again"
    )]
    Store {
        /// Where, without the password.
        url: String,
        /// The words of the store's client.
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
    #[error(
        "the file holds an agent of tenant {found}, not of {tenant}; connect as tenant {found} to read it"
    )]
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
        /// The words of the store's client.
        reason: String,
    },
    /// There is no such worker.
    #[error("no worker has the id or name {worker}; look it up among the workers of the queue")]
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

/// What to do about a turn that is too large for Redis.
const NO_STORE: &str = match cfg!(feature = "store") {
    true => "and none is named: name one when you connect",
    false => {
        "which turnmill-client was built without: enable its feature `store`, and name one when you connect"
    }
};

/// Whether a step that ended with this fault may have been taken: it may have arrived, and only its answer is missing.
pub(crate) fn may_be_done(fault: &Fault) -> bool {
    matches!(fault, Fault::Unreachable { .. } | Fault::Unreadable { .. })
}

fn newest(head: Option<TurnId>) -> String {
    match head {
        Some(head) => format!("the newest turn of its agent is {head}"),
        None => "its agent has no turn".to_owned(),
    }
}

fn whose(queue: &str, tenant: Option<&str>) -> String {
    match tenant {
        Some(tenant) => format!("tenant {tenant} of queue {queue}"),
        None => format!("queue {queue}"),
    }
}

impl ClientError {
    /// What this says of turns that were in the call that failed with it, and in no earlier one.
    pub(crate) fn fate(&self) -> Fate {
        match self {
            Self::Queue(fault) if may_be_done(fault) => Fate::Unknown,
            Self::Unreadable { .. } => Fate::Unknown,
            _ => Fate::NotEnqueued,
        }
    }

    /// Whether Redis is away, or is not the queue's now: every call is told the same.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Unsure { source, .. } => source.is_outage(),
            Self::Batch(error) => error.is_outage(),
            Self::Queue(fault) => fault.is_outage(),
            _ => false,
        }
    }

    /// Retry, reject or stop. Enqueueing again needs an idempotency key, or prepared turns, to be safe.
    pub fn advice(&self) -> Advice {
        match self {
            Self::Unsure { source, .. } => source.advice(),
            Self::Batch(error) => error.advice(),
            Self::Queue(fault) => fault.advice(),
            Self::QueueFull { .. } => Advice::Retry,
            Self::Store { .. } | Self::KvStore { .. } => Advice::Retry,
            Self::InvalidTurn(_) | Self::Envelope(_) | Self::NoStore { .. } => Advice::Reject,
            Self::InvalidStore { .. } | Self::StoreNotBuilt => Advice::Stop,
            Self::UnknownTurn { .. } | Self::UnknownAgent { .. } | Self::UnknownWorker { .. } => {
                Advice::Reject
            }
            Self::Gap { .. } | Self::NotInHistory { .. } | Self::AgentTaken { .. } => Advice::Reject,
            Self::OtherTenant { .. } | Self::AgentFile(_) => Advice::Reject,
            Self::File(_) => Advice::Stop,
            Self::AgentBusy { .. } | Self::HistoryChanged { .. } => Advice::Retry,
            Self::InvalidUrl(_) | Self::InvalidSetting { .. } | Self::Unreadable { .. } => Advice::Stop,
            Self::KeyTaken { .. } | Self::StaleHead { .. } | Self::FollowsAlone { .. } => Advice::Reject,
        }
    }
}
