//! How much work there is, read as of one moment.
//!
//! Acknowledged tokens are always deleted, so what a ready stream holds beyond the pending ones is undelivered.
//! Redis's own lag goes null after restarts and deletions: it is a cross-check and may be absent.

use redis::streams::StreamInfoGroupsReply;
use redis::{FromRedisValue, RedisError, RedisResult, Value};
use serde::Serialize;
use turnmill_schema::Priority;
use turnmill_schema::keys::{GROUP, Keys};

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
}

/// Agents of one priority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PriorityLag {
    /// Which.
    pub priority: Priority,
    /// Agents that a worker could take now.
    pub runnable: u64,
    /// Agents that workers hold, dead workers included until their leases are reclaimed.
    pub leased: u64,
    /// Redis's own count of the runnable; none where it does not know, or where no worker ever came.
    pub undelivered: Option<u64>,
}

impl Producer {
    /// How much work there is.
    pub async fn lag(&self) -> Result<Lag, ProducerError> {
        let nothing = |priority| PriorityLag { priority, runnable: 0, leased: 0, undelivered: Some(0) };
        let mut lag = Lag { priorities: Priority::ALL.map(nothing).into(), ..Lag::default() };
        for keys in self.queue.all_keys() {
            let pipeline = &questions(&keys);
            let answers: Vec<RedisResult<Value>> = self
                .connection
                .call("counting", |mut redis| async move { pipeline.query_async(&mut redis).await })
                .await?;
            lag.add(answers).map_err(|error| self.connection.failure("counting", &error))?;
        }
        Ok(lag)
    }
}

/// One transaction: two questions for each priority, then three for the shard.
fn questions(keys: &Keys) -> redis::Pipeline {
    let mut pipeline = redis::pipe();
    // A stream that does not exist yet is an error of one command, not of the count.
    pipeline.atomic().ignore_errors();
    for priority in Priority::ALL {
        let key = keys.ready(priority);
        pipeline.cmd("XLEN").arg(&key).cmd("XINFO").arg("GROUPS").arg(key);
    }
    pipeline.cmd("GET").arg(keys.depth());
    pipeline.cmd("ZRANGE").arg(keys.open()).arg(0).arg(0).arg("WITHSCORES");
    pipeline.cmd("TIME");
    pipeline
}

impl Lag {
    /// Adds a shard's answers.
    fn add(&mut self, answers: Vec<RedisResult<Value>>) -> RedisResult<()> {
        let mut answers = answers.into_iter();
        let mut next = || answers.next().unwrap_or(Ok(Value::Nil));
        for priority in &mut self.priorities {
            priority.add(read(next()?)?, next())?;
        }
        let depth: Option<u64> = read(next()?)?;
        let oldest: Vec<(String, f64)> = read(next()?)?;
        let (seconds, micros): (u64, u64) = read(next()?)?;
        let now_ms = seconds * 1000 + micros / 1000;
        let age_ms = oldest.first().map(|(_, enqueued_ms)| now_ms.saturating_sub(*enqueued_ms as u64));
        self.open_turns += depth.unwrap_or(0);
        self.oldest_ms = self.oldest_ms.max(age_ms);
        Ok(())
    }
}

impl PriorityLag {
    fn add(&mut self, entries: u64, groups: RedisResult<Value>) -> RedisResult<()> {
        let groups = match groups {
            Ok(groups) => read::<StreamInfoGroupsReply>(groups)?.groups,
            // XINFO of a stream that is not there yet.
            Err(_) if entries == 0 => return Ok(()),
            Err(error) => return Err(error),
        };
        let group = groups.into_iter().find(|group| group.name == GROUP);
        let pending = group.as_ref().map_or(0, |group| group.pending as u64);
        let undelivered = group.and_then(|group| group.lag).map(|lag| lag as u64);
        self.leased += pending;
        self.runnable += entries.saturating_sub(pending);
        self.undelivered = self.undelivered.zip(undelivered).map(|(so_far, here)| so_far + here);
        Ok(())
    }
}

fn read<T: FromRedisValue>(value: Value) -> RedisResult<T> {
    T::from_redis_value(value).map_err(RedisError::from)
}
