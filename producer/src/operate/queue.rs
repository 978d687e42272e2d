//! The queue as a whole: pausing, resuming, and how it does.

use std::collections::BTreeMap;

use serde::Serialize;
use turnmill_redis::steps::Pause;
use turnmill_schema::{Outcome, StreamId};

use super::Operator;
use crate::error::ClientError;
use crate::lag::Lag;
use crate::passed_by::PassedBy;

/// The newest ends that tell how the queue does.
const NEWEST_ENDS: usize = 1000;

/// How a queue does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueueStats {
    /// Its name.
    pub queue: String,
    /// Its work.
    #[serde(flatten)]
    pub lag: Lag,
    /// Workers that were heard of lately.
    pub workers: u64,
    /// Turns that they run.
    pub running: u64,
    /// Turns that they may run at once.
    pub capacity: u64,
    /// How the newest turns ended, a thousand at most.
    pub ends: BTreeMap<&'static str, u64>,
    /// Over how many milliseconds, until now.
    pub ends_ms: Option<u64>,
}

impl Operator {
    /// No turn is leased any more until the queue is resumed; those that run go on. True: it was not paused before.
    pub async fn pause_queue(&self) -> Result<bool, ClientError> {
        self.set_paused(true).await
    }

    /// Turns are leased again. True: it was paused.
    pub async fn resume_queue(&self) -> Result<bool, ClientError> {
        self.set_paused(false).await
    }

    async fn set_paused(&self, paused: bool) -> Result<bool, ClientError> {
        let mut changed = false;
        for keys in self.client.queue.all_keys() {
            changed |= self.redis().run(&keys, &Pause { paused }).await?;
        }
        Ok(changed)
    }

    /// How the queue does.
    pub async fn queue_stats(&self) -> Result<QueueStats, ClientError> {
        let workers = self.workers().await?;
        let workers = workers.iter().filter(|worker| !worker.is_silent());
        let (workers, running, capacity) = workers.fold((0, 0, 0), |(count, running, capacity), worker| {
            (count + 1, running + worker.running, capacity + worker.capacity)
        });
        let queue = self.client.queue.name.to_string();
        let lag = self.client.lag().await?;
        let (ends, ends_ms) = self.count_newest_ends().await?;
        Ok(QueueStats { queue, lag, workers, running, capacity, ends, ends_ms })
    }

    async fn count_newest_ends(&self) -> Result<(BTreeMap<&'static str, u64>, Option<u64>), ClientError> {
        let now_ms = self.now_ms().await?;
        let all = Outcome::ALL;
        let mut ends: BTreeMap<_, u64> = all.map(|outcome| (outcome.as_str(), 0)).into();
        let (mut ends_ms, mut passed_by) = (None, PassedBy::of_events());
        for keys in self.client.queue.all_keys() {
            let newest =
                self.redis().ask(|server| server.newest_events(&keys, StreamId::START, NEWEST_ENDS)).await?;
            for (id, ended) in newest.into_iter().filter_map(|entry| passed_by.ours(entry)) {
                *ends.entry(ended.end.outcome.as_str()).or_default() += 1;
                ends_ms = ends_ms.max(Some(now_ms.saturating_sub(id.epoch)));
            }
        }
        Ok((ends, ends_ms))
    }
}
