//! Taking over tickets that are pending: our own whose reply was lost, and those of silent workers.

use redis::streams::{StreamClaimReply, StreamPendingCountReply};
use turnmill_schema::keys::GROUP;

use super::read::Delivered;
use super::{BrokerError, ReadyStream, RedisBroker, Ticket};

/// Which pending tickets.
#[derive(Clone, Copy)]
pub(super) enum Whose {
    /// Those delivered to this worker.
    Ours,
    /// Anybody's that were idle for a whole lease.
    Silent,
}

impl RedisBroker {
    pub(super) async fn reclaim_tickets(&self, room: usize) -> Result<Vec<Ticket>, BrokerError> {
        // Idle time counts a server's downtime: the first worker back would take everybody's live leases.
        // The connection comes first, because making it is what notices a restart.
        drop(self.server.connection().await?);
        if self.server.steady_for().as_millis() < u128::from(self.settings.lease_ms) {
            return Ok(Vec::new());
        }
        let tickets = self.claim_pending(Whose::Silent, room).await?;
        Ok(self.held.take(tickets))
    }

    /// Claims at most `room` pending tickets that this worker does not hold. Held ones are left alone even
    /// when idle: a worker whose engine hangs stops its renewals in order to lose them.
    pub(super) async fn claim_pending(
        &self,
        whose: Whose,
        room: usize,
    ) -> Result<Vec<Delivered>, BrokerError> {
        let mut tickets = Vec::new();
        for stream in &self.streams {
            if tickets.len() < room {
                tickets.extend(self.claim_from(stream, whose, room - tickets.len()).await?);
            }
        }
        Ok(tickets)
    }

    async fn claim_from(
        &self,
        stream: &ReadyStream,
        whose: Whose,
        room: usize,
    ) -> Result<Vec<Delivered>, BrokerError> {
        let error = |e| self.server.error("reclaim", &e);
        let mut connection = self.server.connection().await?;
        let idle_ms = match whose {
            Whose::Ours => 0,
            Whose::Silent => self.settings.lease_ms,
        };
        let mut list = redis::cmd("XPENDING");
        list.arg(&stream.key).arg(GROUP).arg("IDLE").arg(idle_ms).arg("-").arg("+");
        list.arg(room + self.held.len());
        if matches!(whose, Whose::Ours) {
            list.arg(&self.settings.worker);
        }
        let pending: StreamPendingCountReply = list.query_async(&mut connection).await.map_err(error)?;
        let held = self.held.entries(stream.shard, stream.priority);
        let free = pending.ids.into_iter().map(|entry| entry.id).filter(|id| !held.contains(id));
        let free: Vec<String> = free.take(room).collect();
        if free.is_empty() {
            return Ok(Vec::new());
        }
        let mut claim = redis::cmd("XCLAIM");
        claim.arg(&stream.key).arg(GROUP).arg(&self.settings.worker).arg(idle_ms).arg(&free);
        // Whoever else claims them first resets their idle time, and ours then claims nothing.
        let claimed: StreamClaimReply = claim.query_async(&mut connection).await.map_err(error)?;
        drop(connection);
        self.tickets(stream, claimed.ids).await
    }
}
