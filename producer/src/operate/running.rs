//! Turns that workers run just now, and how far each got.

use serde::Serialize;
use turnmill_redis::RunningRecord;
use turnmill_schema::{AgentName, Priority, TurnId};

use super::Operator;
use crate::error::ClientError;

/// A turn that a worker runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunningTurn {
    /// The turn.
    pub turn: TurnId,
    /// Its tenant.
    pub tenant: String,
    /// Its agent; none for a turn that stands alone.
    pub agent: Option<AgentName>,
    /// Its priority.
    pub priority: Priority,
    /// The consumer id of its worker.
    pub worker: Option<String>,
    /// Milliseconds since it was enqueued.
    pub age_ms: u64,
    /// Leases that count as attempts, this one included; none if that cannot be read.
    pub attempts: Option<u64>,
    /// Tokens of its reply that are published; none if that cannot be read.
    pub published: Option<u64>,
}

/// Turns that workers run, as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Running {
    /// The moment, in Unix milliseconds by the server's clock.
    pub read_ms: u64,
    /// The turns: interactive ones first, and of each priority those whose agent was made runnable first.
    pub turns: Vec<RunningTurn>,
}

impl Operator {
    /// Turns of all tenants that workers run, at most `limit` of them.
    pub async fn running(&self, limit: usize) -> Result<Running, ClientError> {
        let mut found = Vec::new();
        for keys in self.client.queue.all_keys() {
            found.extend(self.redis().ask(|server| server.running(&keys, limit)).await?);
        }
        found.truncate(limit);
        let read_ms = self.now_ms().await?;
        Ok(Running { read_ms, turns: found.into_iter().map(|record| view(record, read_ms)).collect() })
    }
}

fn view(record: RunningRecord, read_ms: u64) -> RunningTurn {
    let RunningRecord { agent, entry, worker, attempts, published } = record;
    RunningTurn {
        turn: entry.turn,
        tenant: agent.tenant().to_owned(),
        agent: agent.agent(),
        priority: entry.priority,
        worker,
        age_ms: read_ms.saturating_sub(entry.enqueued_ms),
        attempts,
        published,
    }
}
