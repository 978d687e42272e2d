//! Workers: who is there with what, and telling one to drain.

use std::collections::HashMap;

use redis::Value;
use serde::Serialize;
use turnmill_schema::WorkerStatus;
use turnmill_schema::keys::{Keys, ORDER_DRAIN};

use super::Operator;
use crate::error::ProducerError;

/// How long an order stands: a worker that is away for longer has other troubles.
const ORDER_TTL_S: u64 = 3600;

/// A worker as the registry shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerView {
    /// Its consumer id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `starting`, `ready`, `draining`, `stopped`, or `silent` where it said nothing for long.
    pub state: String,
    /// Its model.
    pub model: String,
    /// Its version.
    pub version: String,
    /// Turns that it runs.
    pub running: u64,
    /// Turns that it may run at once.
    pub capacity: u64,
    /// Free share of its block pool, in percent.
    pub headroom_percent: u64,
    /// When it started, in Unix milliseconds by its own clock.
    pub started_ms: u64,
    /// Milliseconds since it was last heard of, by the server's clock.
    pub heard_ms: u64,
    /// It was told to finish what runs and stop.
    pub told_to_drain: bool,
}

impl Operator {
    /// The queue's workers, by name.
    pub async fn workers(&self) -> Result<Vec<WorkerView>, ProducerError> {
        let keys = self.producer.queue.keys(0);
        let now_ms = self.now_ms().await?;
        let mut list = redis::cmd("ZRANGE");
        list.arg(keys.workers()).arg(0).arg(-1).arg("WITHSCORES");
        let list: Vec<(String, f64)> = self.producer.connection.ask("listing workers", &list).await?;
        if list.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for (id, _) in &list {
            pipeline.cmd("HGETALL").arg(keys.worker(id)).cmd("GET").arg(keys.order(id));
        }
        let answers: Vec<Value> = self.producer.connection.ask_all("listing workers", &pipeline).await?;
        let mut answers = answers.into_iter();
        let mut found = Vec::new();
        for (id, heard_at_ms) in list {
            let fields =
                self.producer.connection.read("listing workers", answers.next().unwrap_or(Value::Nil))?;
            let order =
                self.producer.connection.read("listing workers", answers.next().unwrap_or(Value::Nil))?;
            found.push(view(id, now_ms.saturating_sub(heard_at_ms as u64), &fields, order));
        }
        found.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Ok(found)
    }

    /// Tells the workers of that id or name to finish what they run and stop; their ids.
    pub async fn drain_workers(&self, id_or_name: &str) -> Result<Vec<String>, ProducerError> {
        let keys = self.producer.queue.keys(0);
        let all = self.workers().await?;
        let named = |worker: &&WorkerView| worker.id == id_or_name || worker.name == id_or_name;
        let ids: Vec<String> = all.iter().filter(named).map(|worker| worker.id.clone()).collect();
        if ids.is_empty() {
            return Err(ProducerError::UnknownWorker { worker: id_or_name.to_owned() });
        }
        for id in &ids {
            self.order_drain(&keys, id).await?;
        }
        Ok(ids)
    }

    async fn order_drain(&self, keys: &Keys, id: &str) -> Result<(), ProducerError> {
        let mut order = redis::cmd("SET");
        order.arg(keys.order(id)).arg(ORDER_DRAIN).arg("EX").arg(ORDER_TTL_S);
        self.producer.connection.ask("drain", &order).await
    }
}

fn view(id: String, heard_ms: u64, fields: &HashMap<String, String>, order: Option<String>) -> WorkerView {
    let silent = fields.is_empty();
    let WorkerStatus { name, state, model, version, started_ms, running, capacity, headroom_percent } =
        WorkerStatus::from_fields(fields);
    WorkerView {
        name: if silent { id.clone() } else { name },
        state: if silent { "silent".to_owned() } else { state },
        told_to_drain: order.as_deref() == Some(ORDER_DRAIN),
        id,
        model,
        version,
        running,
        capacity,
        headroom_percent,
        started_ms,
        heard_ms,
    }
}
