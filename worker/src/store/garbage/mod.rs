//! Collecting garbage: removing what no agent and no turn refers to any more.
//!
//! Marked is every segment that can be walked to from an agent's manifest, from parent to parent. Garbage is a segment that is
//! not marked and was written longer than `retention` ago, a damaged segment set aside as long ago, and a payload as old that
//! no turn refers to: its turn has ended, or was never enqueued. In a folder a segment is as old as its last use.
//!
//! Invariants:
//! * nothing that was written within `retention` is removed, so what a turn has stored and not committed yet stays;
//! * nothing is removed on the word of a Redis that does not know the queue, or of manifests that cannot be read;
//! * manifests are read again before anything is removed, and again whenever the last reading is older than a minute;
//! * one collector a queue at a time; that is the caller's to see to.
//!
//! A race remains. A segment that is garbage may be wanted anew: a worker computes the same tokens again, the store says that
//! their segment is there already, and a manifest names it. If that manifest is committed between the last reading and
//! the removal, the segment is gone and the manifest names it all the same. That is harmless: everything a manifest names is
//! verified when it is loaded, so the segment is a miss, the turn computes its tokens, and stores them again.
//!
//! Payloads are data and not a cache: for them there is no such race. A path holds its turn's id, so an old payload that
//! no turn refers to is referred to again only by a replay, and a replay starts from a dead letter, which refers to it
//! too. Turns are read twice, one reading after the other, since a replay may move the reference from a turn that a
//! reading has not come to yet to one that it has passed.

#![allow(clippy::disallowed_methods, reason = "an operator's command; not simulated")]

mod mark;
mod sweep;

use std::time::Duration;

use serde::Serialize;

use super::StoreError;
use super::inventory::Inventory;
use crate::broker::{BrokerError, References};
use crate::config::StoreUrl;
use mark::Marks;
use sweep::Sweep;
use turnmill_schema::Name;

/// Payloads younger than this are never removed, whatever the retention: their turn may not be enqueued yet.
const LEAST_PAYLOAD_RETENTION: Duration = Duration::from_secs(3600);

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether garbage is removed, or only counted.
    pub delete: bool,
    /// Younger objects stay.
    pub retention: Duration,
    /// Headers read at once.
    pub parallel: usize,
    /// What time it is, in Unix milliseconds.
    pub now_ms: u64,
}

/// Why garbage was not collected.
#[derive(Debug, thiserror::Error)]
pub enum GarbageError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The queue cannot be read.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// Everything would be garbage.
    #[error(
        "Redis knows no agent of queue {queue}, and {url} has objects of that queue: nothing was removed; is it the Redis of this queue?"
    )]
    NoAgents {
        /// The queue.
        queue: Name,
        /// The store.
        url: StoreUrl,
    },
    /// What they name would be garbage.
    #[error(
        "the manifests of {0} agents cannot be read, so nothing was removed; collect garbage with the newest release that serves this queue, or reset those agents"
    )]
    UnreadableManifests(u64),
}

/// Objects of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Objects that stay.
    pub kept: u64,
    /// Garbage.
    pub garbage: u64,
    /// What that takes.
    pub garbage_bytes: u64,
    /// Garbage that was removed.
    pub deleted: u64,
    /// What that took.
    pub deleted_bytes: u64,
    /// Garbage that could not be removed.
    pub failed: u64,
}

/// What was found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Agents that the queue has.
    pub agents: u64,
    /// Different segments that manifests name as their last.
    pub roots: u64,
    /// Chains that end at a segment that is missing or damaged.
    pub broken: u64,
    /// Segments that manifests reach.
    pub marked: u64,
    /// Objects among the queue's that are named as nothing of its is; they stay.
    pub foreign: u64,
    /// Segments.
    pub segments: Found,
    /// Damaged segments that were set aside.
    pub damaged: Found,
    /// Turns too large for Redis.
    pub payloads: Found,
    /// Why something could not be removed: one of the reasons.
    pub failure: Option<String>,
}

/// Looks for the queue's garbage, and removes it if told to. `progress` is told how far it is.
pub async fn collect(
    inventory: &Inventory,
    references: &impl References,
    options: Options,
    progress: impl Fn(&Collected),
) -> Result<Collected, GarbageError> {
    let marks = Marks::default();
    let found = mark(inventory, references, &marks, options.parallel).await?;
    if found.agents == 0 && !inventory.is_empty().await? {
        return Err(GarbageError::NoAgents {
            queue: inventory.queue().clone(),
            url: inventory.url().clone(),
        });
    }
    let mut sweep = Sweep::new(inventory, references, options, &marks, progress);
    sweep.collected.agents = found.agents;
    sweep.collected.roots = found.roots;
    sweep.segments().await?;
    sweep.damaged().await?;
    sweep.payloads().await?;
    let mut collected = sweep.collected;
    (collected.broken, collected.marked) = (marks.broken(), marks.len());
    Ok(collected)
}

/// What a reading of the manifests gave.
struct Reading {
    agents: u64,
    roots: u64,
}

/// Reads the manifests and marks what they reach.
async fn mark(
    inventory: &Inventory,
    references: &impl References,
    marks: &Marks,
    parallel: usize,
) -> Result<Reading, GarbageError> {
    let manifests = references.manifests().await?;
    if manifests.unreadable > 0 {
        return Err(GarbageError::UnreadableManifests(manifests.unreadable));
    }
    let reading = Reading { agents: manifests.agents, roots: manifests.roots.len() as u64 };
    marks.add(inventory, manifests.roots.into_keys(), parallel).await?;
    Ok(reading)
}

#[cfg(test)]
mod tests;
