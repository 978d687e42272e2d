//! The registry of workers, as it is read.

use std::collections::HashMap;

use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::WorkerStatus;
use turnmill_schema::keys::Keys;

use crate::fault::Fault;
use crate::server::{Server, unreadable};

/// What errors call this.
const STEP: &str = "listing workers";

/// A worker of the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerRecord {
    /// Its consumer id.
    pub id: String,
    /// When it was last heard of, in Unix milliseconds by the server's clock.
    pub heard_at_ms: u64,
    /// What it says of itself; none if it was silent for long.
    pub status: Option<WorkerStatus>,
    /// What it is told to do.
    pub order: Option<String>,
}

impl Server {
    /// The workers, those silent for longest in front. `keys` are those of shard 0.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn workers(&self, keys: &Keys) -> Result<Vec<WorkerRecord>, Fault> {
        let mut list = redis::cmd("ZRANGE");
        list.arg(keys.workers()).arg(0).arg(-1).arg("WITHSCORES");
        let list: Vec<(String, f64)> = self.ask(STEP, &list).await?;
        if list.is_empty() {
            return Ok(Vec::new());
        }
        let mut look = redis::pipe();
        for (id, _) in &list {
            look.cmd("HGETALL").arg(keys.worker(id)).cmd("GET").arg(keys.order(id));
        }
        let mut answers = self.ask_all::<Vec<Value>>(STEP, &look).await?.into_iter();
        let mut next = || answers.next().unwrap_or(Value::Nil);
        let mut record = |(id, heard_at_ms): (String, f64)| {
            let fields = HashMap::from_redis_value(next())?;
            let status = (!fields.is_empty()).then(|| WorkerStatus::from_fields(&fields));
            let order = Option::from_redis_value(next())?;
            Ok(WorkerRecord { id, heard_at_ms: heard_at_ms as u64, status, order })
        };
        let records: Result<_, ParsingError> = list.into_iter().map(&mut record).collect();
        records.map_err(|error| unreadable(STEP, &error.into()))
    }
}
