//! Counting the work of a shard, at one moment.

use redis::{ParsingError, Value};
use turnmill_schema::keys::Keys;

use super::script;
use crate::call::{Call, Step};
use crate::reply::Parts;

/// Counts the work; see `counts.lua`.
#[derive(Clone, Copy, Debug)]
pub struct CountWork;

/// Agents and turns of one priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PriorityCounts {
    /// Agents with a ticket that no worker has.
    pub runnable: u64,
    /// Agents that workers have, dead workers included until their leases are reclaimed.
    pub leased: u64,
    /// Turns that have not ended, those waiting behind others of their agent included.
    pub open: u64,
    /// When the turn was enqueued that stands first in the ready stream, in Unix milliseconds.
    pub oldest_enqueued_ms: Option<u64>,
    /// Redis's own count of the runnable, a cross-check; none if it does not know.
    pub lag: Option<u64>,
}

/// How much work there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The moment, in Unix milliseconds by the server's clock.
    pub now_ms: u64,
    /// By priority, in the order of [`turnmill_schema::Priority::ALL`].
    pub priorities: [PriorityCounts; 2],
    /// When the oldest head of all (waiting or running) was enqueued, in Unix milliseconds.
    pub oldest_enqueued_ms: Option<u64>,
    /// Agents that wait for a retry or a scheduled turn.
    pub delayed: u64,
    /// Dead letters.
    pub dead: u64,
    /// What ended turns take, in bytes.
    pub retained_bytes: u64,
    /// What dead letters take, in bytes.
    pub dead_bytes: u64,
    /// No turn is leased until somebody resumes the queue.
    pub paused: bool,
    /// Turns ever enqueued.
    pub enqueued: u64,
    /// Turns ever ended, by outcome, in the order of [`turnmill_schema::Outcome::ALL`].
    pub ended: [u64; 4],
}

impl Step for CountWork {
    const NAME: &'static str = "counts";
    const SCRIPT: &'static str = script!(" flags=no-writes" "info.lua" "counts.lua");
    type Reply = Counts;

    fn call(&self, keys: &Keys) -> Call {
        Call::new(keys)
    }

    fn read(reply: Value) -> Result<Counts, ParsingError> {
        let mut parts = Parts::of(reply)?;
        Ok(Counts {
            now_ms: parts.next()?,
            priorities: [read_priority(parts.next()?)?, read_priority(parts.next()?)?],
            // A score is a floating-point number as text.
            oldest_enqueued_ms: parts.text()?.and_then(|score| score.parse::<f64>().ok()).map(|ms| ms as u64),
            delayed: parts.next()?,
            dead: parts.next()?,
            retained_bytes: parts.next()?,
            dead_bytes: parts.next()?,
            paused: parts.next()?,
            enqueued: parts.next()?,
            ended: parts.next()?,
        })
    }
}

fn read_priority(row: Value) -> Result<PriorityCounts, ParsingError> {
    let mut parts = Parts::of(row)?;
    Ok(PriorityCounts {
        runnable: parts.next()?,
        leased: parts.next()?,
        open: parts.next()?,
        oldest_enqueued_ms: parts.text()?.and_then(|ms| ms.parse().ok()),
        lag: parts.text()?.and_then(|lag| lag.parse().ok()),
    })
}
