//! Publishing tokens: one XADD for each delta, with an explicit id `<epoch>-<tokens published after it>`.
//!
//! Redis refuses ids at or below a stream's top, so the next attempt's Begin fences this one for free, and
//! the top id is the resume point. What a lost reply leaves open is settled by reading the top id before the
//! next append: otherwise a delta could land over one that did not.

use deadpool_redis::Connection;
use turnmill_schema::envelope::{EnvelopeError, encode};
use turnmill_schema::keys::{FIELD_AT, FIELD_EVENT};
use turnmill_schema::{Delta, Event};

use super::{BrokerError, Lease, RedisBroker};

impl RedisBroker {
    pub(super) async fn append_delta(&self, lease: &Lease, delta: &Delta) -> Result<(), BrokerError> {
        if delta.tokens.is_empty() {
            let reason = "a delta without tokens has no id of its own; publish its text with a token";
            return Err(EnvelopeError::Encode(reason.into()).into());
        }
        let event = encode(&Event::Delta(delta.clone()))?;
        let mut connection = self.server.connection().await?;
        // Read after the connection was had: making it is what notices that the server restarted.
        let generation = self.server.generation();
        let known = self.held.forget_top(lease.turn, generation);
        if !known && self.has_landed(&mut connection, lease, delta).await? {
            self.held.know_top(lease.turn, generation);
            return Ok(());
        }
        match self.add(&mut connection, lease, delta, &event).await? {
            Added::Landed => {}
            Added::Refused if self.has_landed(&mut connection, lease, delta).await? => {}
            Added::Refused | Added::NoStream => return Err(self.fenced(lease)),
        }
        self.held.know_top(lease.turn, generation);
        Ok(())
    }

    async fn add(
        &self,
        connection: &mut Connection,
        lease: &Lease,
        delta: &Delta,
        event: &[u8],
    ) -> Result<Added, BrokerError> {
        let mut add = redis::cmd("XADD");
        add.arg(self.keys(&lease.token).result(lease.turn)).arg("NOMKSTREAM");
        add.arg(format!("{}-{}", lease.epoch, delta.published()));
        add.arg(FIELD_EVENT).arg(event).arg(FIELD_AT).arg(self.held.clock().now_ms());
        match add.query_async::<Option<String>>(connection).await {
            Ok(Some(_)) => Ok(Added::Landed),
            Ok(None) => Ok(Added::NoStream),
            Err(e) if e.to_string().contains("equal or smaller") => Ok(Added::Refused),
            Err(e) => Err(self.server.error("append", &e)),
        }
    }

    /// Whether the stream holds the delta already; an error where it cannot follow the stream's top.
    async fn has_landed(
        &self,
        connection: &mut Connection,
        lease: &Lease,
        delta: &Delta,
    ) -> Result<bool, BrokerError> {
        let mut last = redis::cmd("XREVRANGE");
        last.arg(self.keys(&lease.token).result(lease.turn)).arg("+").arg("-").arg("COUNT").arg(1);
        let entries: Vec<(String, redis::Value)> =
            last.query_async(connection).await.map_err(|e| self.server.error("append", &e))?;
        let top = entries.first().and_then(|(id, _)| {
            let (epoch, published) = id.split_once('-')?;
            Some((epoch.parse::<u64>().ok()?, published.parse::<u32>().ok()?))
        });
        match top {
            Some((epoch, found)) if epoch == lease.epoch => {
                if found < delta.index {
                    return Err(BrokerError::Gap { turn: lease.turn, expected: delta.index, found });
                }
                Ok(found >= delta.published())
            }
            _ => Err(self.fenced(lease)),
        }
    }
}

/// What became of an XADD.
enum Added {
    Landed,
    /// Its id is not above the stream's top.
    Refused,
    /// There is no stream: the turn ended long ago, or somebody deleted it.
    NoStream,
}
