//! What can go wrong between a client and the queue, and what to do about it.

use std::time::Duration;

use turnmill_redis::{Advice, Fault};
use turnmill_schema::agent_file::AgentFileError;
use turnmill_schema::envelope::{EnvelopeError, MAX_INLINE_BYTES};
use turnmill_schema::{IdempotencyKey, InvalidTurn, TurnId};

/// What became of a turn in a call of many that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is in the queue, under this id.
    Enqueued(TurnId),
    /// Redis did not say. Enqueueing the prepared turn again, with the same id, is safe.
    Unknown,
    /// It is not in the queue.
    NotEnqueued,
}

impl Fate {
    /// The id in the queue, if the turn is there.
    pub fn enqueued(&self) -> Option<TurnId> {
        match self {
            Self::Enqueued(id) => Some(*id),
            Self::Unknown | Self::NotEnqueued => None,
        }
    }
}

/// Errors of [`crate::Client`].
#[derive(Debug, thiserror::Error)]
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
        /// Its place among the turns of the call, from 0. Those before it have no such conflict.
        place: usize,
        /// The turn whose key it is.
        first: TurnId,
    },
    /// Some turns of a call are in the queue, or may be, and others are not.
    #[error("{}: {source}", partly(fates))]
    Partly {
        /// What became of each turn, in the order given.
        fates: Vec<Fate>,
        /// Why not all of them are in the queue.
        source: Box<ClientError>,
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
    /// A store is named, and the crate cannot open any.
    #[error(
        "a store is named, and turnmill-client was built without one: enable its feature `store`, or name no store"
    )]
    StoreNotBuilt,
    /// The turn is too large for Redis, and there is no other place for it.
    #[cfg_attr(
        feature = "store",
        error(
            "the turn has {bytes} bytes; with more than {MAX_INLINE_BYTES} it goes through an object store, and none is \
             named: give --store or set TURNMILL_STORE, or send less text"
        )
    )]
    #[cfg_attr(
        not(feature = "store"),
        error(
            "the turn has {bytes} bytes; with more than {MAX_INLINE_BYTES} it goes through an object store, which \
             turnmill-client was built without: enable its feature `store` and name a store, or send less text"
        )
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
        /// The words of the store's client.
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

/// How many turns had which fate.
fn partly(fates: &[Fate]) -> String {
    let count = |of: fn(&Fate) -> bool| fates.iter().filter(|fate| of(fate)).count();
    let enqueued = count(|fate| matches!(fate, Fate::Enqueued(_)));
    let unknown = match count(|fate| *fate == Fate::Unknown) {
        0 => String::new(),
        unknown => format!(", {unknown} may be"),
    };
    let others = match count(|fate| *fate == Fate::NotEnqueued) {
        0 => "",
        _ => "; the others are not",
    };
    format!("{enqueued} of {} turns are in the queue{unknown}{others}", fates.len())
}

/// Whether a step that ended with this fault may have been taken: it may have arrived, and only its answer is missing.
pub(crate) fn may_be_done(fault: &Fault) -> bool {
    matches!(fault, Fault::Unreachable { .. } | Fault::Unreadable { .. })
}

fn whose(queue: &str, tenant: Option<&str>) -> String {
    match tenant {
        Some(tenant) => format!("tenant {tenant} of queue {queue}"),
        None => format!("queue {queue}"),
    }
}

impl ClientError {
    /// What became of the turns of a call that ended with this error; `turns` is how many it had.
    pub fn fates(&self, turns: usize) -> Vec<Fate> {
        match self {
            Self::Partly { fates, .. } => fates.clone(),
            Self::Queue(fault) if may_be_done(fault) => vec![Fate::Unknown; turns],
            Self::Unreadable { .. } => vec![Fate::Unknown; turns],
            _ => vec![Fate::NotEnqueued; turns],
        }
    }

    /// This error, of a call in which turns had these fates.
    pub(crate) fn after(self, fates: Vec<Fate>) -> Self {
        if fates == self.fates(fates.len()) { self } else { Self::Partly { fates, source: Box::new(self) } }
    }

    /// Whether Redis is away, or is not the queue's now: whoever asks it anything is told the same.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Partly { source, .. } => source.is_outage(),
            Self::Queue(fault) => fault.is_outage(),
            _ => false,
        }
    }

    /// Retry, reject or stop. Enqueueing again needs an idempotency key, or prepared turns, to be safe.
    pub fn advice(&self) -> Advice {
        match self {
            Self::Partly { source, .. } => source.advice(),
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
            Self::KeyTaken { .. } => Advice::Reject,
        }
    }
}
