//! The registry of workers: who is there, with what, and what an operator tells them.

use turnmill_schema::WorkerStatus;
use turnmill_schema::keys::ORDER_DRAIN;

use super::{BrokerError, Orders, RedisBroker};

/// A worker that was silent for so many leases is not listed any more.
const SILENT_LEASES: u64 = 3;

impl RedisBroker {
    pub(super) async fn enter(&self, status: &WorkerStatus) -> Result<Orders, BrokerError> {
        let keys = self.queue.keys(0);
        let id = &self.settings.worker;
        let silence_ms = self.settings.lease_ms.saturating_mul(SILENT_LEASES);
        let now_ms = self.held.clock().now_ms();
        let mut enter = redis::pipe();
        enter.cmd("GET").arg(keys.order(id));
        enter.cmd("HSET").arg(keys.worker(id)).arg(&status.to_fields()[..]).ignore();
        enter.cmd("PEXPIRE").arg(keys.worker(id)).arg(silence_ms).ignore();
        enter.cmd("ZADD").arg(keys.workers()).arg(now_ms).arg(id).ignore();
        enter.cmd("ZREMRANGEBYSCORE").arg(keys.workers()).arg("-inf");
        enter.arg(now_ms.saturating_sub(silence_ms as i64)).ignore();
        let mut connection = self.server.connection().await?;
        let (order,): (Option<String>,) =
            enter.query_async(&mut connection).await.map_err(|e| self.server.error("register", &e))?;
        Ok(Orders { drain: order.as_deref() == Some(ORDER_DRAIN) })
    }
}
