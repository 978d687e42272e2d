//! How much work there is, read as of one moment.
//!
//! Acknowledged tickets are always deleted, so what a ready stream holds beyond the pending ones is undelivered.
//! Redis's own lag goes null after restarts and deletions: it is a cross-check and may be absent.

use redis::{FromRedisValue, RedisError};
use serde::Serialize;
use turnmill_schema::Priority;
use turnmill_schema::scripts::{COUNTS, Call};

use crate::error::ProducerError;
use crate::producer::Producer;

/// A queue's work, over all its shards and tenants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lag {
    /// Agents by priority, most urgent first.
    pub priorities: Vec<PriorityLag>,
    /// Turns that have not ended, waiting or running.
    pub open_turns: u64,
    /// Milliseconds since the oldest turn that is next or running was enqueued; none where there is none.
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
    /// Milliseconds since the turn was enqueued that stands first in the ready stream; none where there is none.
    pub oldest_ms: Option<u64>,
    /// Redis's own count of the runnable; none where it does not know.
    pub lag: Option<u64>,
}

impl Producer {
    /// How much work there is.
    pub async fn lag(&self) -> Result<Lag, ProducerError> {
        let mut lag = Lag { priorities: Priority::ALL.map(PriorityLag::nothing).into(), ..Lag::default() };
        for keys in self.queue.all_keys() {
            let counts = self.connection.script("counting", COUNTS, &Call::new(&keys)).await?;
            let counts = Counts::from_redis_value(counts).map_err(RedisError::from);
            lag.add(counts.map_err(|error| self.connection.failure("counting", &error))?);
        }
        Ok(lag)
    }
}

/// What the script answers of one priority: runnable, leased, open turns, when the first was enqueued ('': none), Redis's own
/// count of the runnable ('': unknown).
type Row = (u64, u64, u64, String, String);
/// What the script answers; see `counts.lua`.
type Counts = (u64, Row, Row, String, u64, u64, u64, u64, u64, [u64; 4]);

impl Lag {
    /// Adds a shard.
    fn add(
        &mut self,
        (now_ms, interactive, batch, oldest, delayed, dead, bytes, paused, _enqueued, _ended): Counts,
    ) {
        let age_ms = |at: String| at.parse::<f64>().ok().map(|at| now_ms.saturating_sub(at as u64));
        for (row, (runnable, leased, open, oldest, lag)) in
            self.priorities.iter_mut().zip([interactive, batch])
        {
            row.runnable += runnable;
            row.leased += leased;
            row.queued += open.saturating_sub(leased);
            row.oldest_ms = row.oldest_ms.max(age_ms(oldest));
            row.lag = row.lag.zip(lag.parse().ok()).map(|(so_far, here): (u64, u64)| so_far + here);
            self.open_turns += open;
        }
        self.oldest_ms = self.oldest_ms.max(age_ms(oldest));
        self.delayed += delayed;
        self.dead += dead;
        self.retained_bytes += bytes;
        self.paused |= paused == 1;
    }
}

impl PriorityLag {
    fn nothing(priority: Priority) -> Self {
        Self { priority, runnable: 0, leased: 0, queued: 0, oldest_ms: None, lag: Some(0) }
    }
}
