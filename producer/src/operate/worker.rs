//! Workers: who is there with what, telling one to drain, and forgetting one that is gone.

use serde::Serialize;
use turnmill_redis::WorkerRecord;
use turnmill_redis::steps::{Leave, Order};
use turnmill_schema::WorkerStatus;
use turnmill_schema::keys::ORDER_DRAIN;

use super::Operator;
use crate::error::ClientError;

/// The state of a worker that is not heard of.
const SILENT: &str = "silent";
/// How long an order stands: a worker that is away for longer has other troubles.
const ORDER_TTL_MS: u64 = 3_600_000;

/// A worker as the registry shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerView {
    /// Its consumer id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `starting`, `ready`, `failing`, `draining`, `stopped`, or `silent`: it missed two beats, so it died, hangs or cannot reach Redis.
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

impl WorkerView {
    /// Whether it missed two beats, so that nobody knows whether it lives.
    pub fn is_silent(&self) -> bool {
        self.state == SILENT
    }
}

impl Operator {
    /// The queue's workers, by name.
    pub async fn workers(&self) -> Result<Vec<WorkerView>, ClientError> {
        let keys = self.client.queue.keys(0);
        let now_ms = self.now_ms().await?;
        let found = self.redis().ask(|server| server.workers(&keys)).await?;
        let mut found: Vec<WorkerView> = found.into_iter().map(|record| view(record, now_ms)).collect();
        found.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Ok(found)
    }

    /// Tells the workers of that id or name to finish what they run and stop; their ids.
    pub async fn drain_workers(&self, id_or_name: &str) -> Result<Vec<String>, ClientError> {
        let keys = self.client.queue.keys(0);
        let ids = self.workers_named(id_or_name).await?;
        for id in &ids {
            let step = Order { worker: id, order: ORDER_DRAIN, for_ms: ORDER_TTL_MS };
            self.redis().run(&keys, &step).await?;
        }
        Ok(ids)
    }

    /// Takes the workers of that id or name out of the registry; their ids. One that lives enters itself again with its next
    /// beat, and what it runs goes on.
    pub async fn forget_workers(&self, id_or_name: &str) -> Result<Vec<String>, ClientError> {
        let keys = self.client.queue.keys(0);
        let ids = self.workers_named(id_or_name).await?;
        for id in &ids {
            self.redis().run(&keys, &Leave { worker: id }).await?;
        }
        Ok(ids)
    }

    /// Ids of the workers of that id or name: at least one.
    async fn workers_named(&self, id_or_name: &str) -> Result<Vec<String>, ClientError> {
        let all = self.workers().await?;
        let named = |worker: &WorkerView| worker.id == id_or_name || worker.name == id_or_name;
        let ids: Vec<String> = all.into_iter().filter(named).map(|worker| worker.id).collect();
        if ids.is_empty() {
            return Err(ClientError::UnknownWorker { worker: id_or_name.to_owned() });
        }
        Ok(ids)
    }
}

fn view(WorkerRecord { id, heard_at_ms, status, order }: WorkerRecord, now_ms: u64) -> WorkerView {
    let silent = || WorkerStatus { name: id.clone(), state: SILENT.to_owned(), ..WorkerStatus::default() };
    let heard_ms = now_ms.saturating_sub(heard_at_ms);
    let status = status.unwrap_or_else(silent);
    let is_silent = status.is_silent(heard_ms);
    let WorkerStatus { name, state, model, version, started_ms, running, capacity, headroom_percent, .. } =
        status;
    WorkerView {
        id,
        name,
        state: if is_silent { SILENT.to_owned() } else { state },
        model,
        version,
        running,
        capacity,
        headroom_percent,
        started_ms,
        heard_ms,
        told_to_drain: order.as_deref() == Some(ORDER_DRAIN),
    }
}
