//! What a queue refers to in the object store: the port that collecting garbage reads.
//!
//! Invariant every adapter keeps: what the queue referred to all the time that a call took is in its answer.

use std::collections::{HashMap, HashSet};
use std::future::Future;

use turnmill_schema::{Digest, TurnId};

use super::BrokerError;

/// The manifests of all agents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifests {
    /// How many agents there are, whatever is stored of them.
    pub agents: u64,
    /// How many agents' manifests name this namespace and this last segment.
    pub roots: HashMap<Root, u64>,
    /// How many agents' manifests cannot be read: another release wrote them.
    pub unreadable: u64,
}

/// The last segment of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Root {
    /// The namespace of all its segments.
    pub namespace: Digest,
    /// The hash of the last one.
    pub last: Digest,
}

/// The payloads of turns that somebody may still read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PayloadsInUse {
    /// Their paths: what turns refer to, those of dead letters and of replays of others among them.
    pub paths: HashSet<String>,
    /// Turns of which it cannot be read what they refer to: all that was written for them is in use.
    pub turns: HashSet<TurnId>,
}

/// Reads what a queue refers to.
pub trait References: Send + Sync {
    /// All agents' manifests.
    fn manifests(&self) -> impl Future<Output = Result<Manifests, BrokerError>> + Send;

    /// The payloads that turns refer to.
    fn payloads(&self) -> impl Future<Output = Result<PayloadsInUse, BrokerError>> + Send;
}
