//! How much work there is, read as of one moment.
//!
//! Acknowledged tickets are always deleted, so what a ready stream holds beyond the pending ones is undelivered.
//! Redis's own lag goes null after restarts and deletions: it is a cross-check and may be absent.

use serde::Serialize;
use turnmill_redis::steps::{CountWork, Counts, PriorityCounts};
use turnmill_schema::Priority;

use crate::client::Client;
use crate::error::ClientError;

/// A queue's work, over all its shards and tenants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lag {
    /// Agents by priority, most urgent first.
    pub priorities: Vec<PriorityLag>,
    /// Turns that have not ended, waiting or running.
    pub open_turns: u64,
    /// Milliseconds since the oldest turn that is next or running was enqueued; none if no turn is.
    pub oldest_ms: Option<u64>,
    /// Agents whose next turn is not due yet: a retry or a scheduled one.
    pub delayed: u64,
    /// Dead letters.
    pub dead: u64,
    /// What ended turns take, roughly, in bytes.
    pub retained_bytes: u64,
    /// No turn is leased until somebody resumes the queue.
    pub paused: bool,
}

/// The work of one priority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PriorityLag {
    /// Which.
    pub priority: Priority,
    /// Agents that a worker could take now.
    pub runnable: u64,
    /// Agents that workers hold, dead workers included until their leases are reclaimed.
    pub leased: u64,
    /// Turns that wait: those that have not ended, less one for each leased agent.
    pub queued: u64,
    /// Milliseconds since the first turn in the ready stream was enqueued; none if the stream is empty.
    pub oldest_ms: Option<u64>,
    /// Redis's own count of the runnable; none where it does not know.
    pub lag: Option<u64>,
}

impl Client {
    /// How much work there is.
    pub async fn lag(&self) -> Result<Lag, ClientError> {
        let mut lag = Lag { priorities: Priority::ALL.map(PriorityLag::nothing).into(), ..Lag::default() };
        for keys in self.queue.all_keys() {
            lag.add(&self.connection.run(&keys, &CountWork).await?);
        }
        Ok(lag)
    }
}

impl Lag {
    /// Adds a shard.
    fn add(&mut self, counts: &Counts) {
        let age_ms = |at_ms: u64| counts.now_ms.saturating_sub(at_ms);
        for (row, found) in self.priorities.iter_mut().zip(&counts.priorities) {
            let PriorityCounts { runnable, leased, open, oldest_enqueued_ms, lag } = *found;
            row.runnable += runnable;
            row.leased += leased;
            row.queued += open.saturating_sub(leased);
            row.oldest_ms = row.oldest_ms.max(oldest_enqueued_ms.map(age_ms));
            row.lag = row.lag.zip(lag).map(|(so_far, here)| so_far + here);
            self.open_turns += open;
        }
        self.oldest_ms = self.oldest_ms.max(counts.oldest_enqueued_ms.map(age_ms));
        self.delayed += counts.delayed;
        self.dead += counts.dead;
        self.retained_bytes += counts.retained_bytes;
        self.paused |= counts.paused;
    }
}

impl PriorityLag {
    fn nothing(priority: Priority) -> Self {
        Self { priority, runnable: 0, leased: 0, queued: 0, oldest_ms: None, lag: Some(0) }
    }
}
