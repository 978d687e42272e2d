//! Publishing tokens: one XADD for each delta, with an explicit id `<epoch>-<tokens published after it>`.
//!
//! No script: this is the commonest write. Redis refuses ids at or below a stream's top, so the next attempt's Begin
//! fences this one for free, and the top id is the resume point. A full Redis refuses XADD and takes a script that may
//! go over its limit, because what runs must come to its end for memory to get free. What a lost reply leaves open is settled by reading the top id before the
//! next append: otherwise a delta could land over one that did not.

use redis::Value;
use turnmill_schema::envelope::{EnvelopeError, encode};
use turnmill_schema::keys::{FIELD_AT, FIELD_EVENT};
use turnmill_schema::scripts::Call;
use turnmill_schema::{Delta, Event};

use super::connect::Shared;
use super::{BrokerError, Lease, RedisBroker};

impl RedisBroker {
    pub(super) async fn append_delta(&self, lease: &Lease, delta: &Delta) -> Result<(), BrokerError> {
        if delta.tokens.is_empty() {
            let reason = "a delta without tokens has no id of its own; publish its text with a token";
            return Err(EnvelopeError::Encode(reason.into()).into());
        }
        let event = encode(&Event::Delta(delta.clone()))?;
        let shared = self.server.shared().await?;
        let known = self.held.forget_top(lease.turn, shared.generation);
        if !known && self.has_landed(&shared, lease, delta).await? {
            self.held.know_top(lease.turn, shared.generation);
            return Ok(());
        }
        match self.add(&shared, lease, delta, &event).await? {
            Added::Landed => {}
            Added::Refused if self.has_landed(&shared, lease, delta).await? => {}
            Added::Refused | Added::NoStream => return Err(self.fenced(lease)),
        }
        self.held.know_top(lease.turn, shared.generation);
        Ok(())
    }

    async fn add(
        &self,
        shared: &Shared,
        lease: &Lease,
        delta: &Delta,
        event: &[u8],
    ) -> Result<Added, BrokerError> {
        let result = self.keys(&lease.ticket).result(lease.turn);
        let id = format!("{}-{}", lease.epoch, delta.published());
        let at = self.held.clock().now_ms();
        let mut add = redis::cmd("XADD");
        add.arg(&result).arg("NOMKSTREAM").arg(&id).arg(FIELD_EVENT).arg(event).arg(FIELD_AT).arg(at);
        let connection = &mut shared.connection.clone();
        let mut added = add.query_async::<Option<Value>>(connection).await;
        if added.as_ref().is_err_and(|e| e.code() == Some("OOM")) {
            let mut call = Call { keys: vec![result], args: Vec::new() };
            call.text(id).arg(event).text(at);
            added = self.steps.append.invocation(&call).invoke_async(connection).await;
        }
        match added {
            Ok(Some(_)) => Ok(Added::Landed),
            Ok(None) => Ok(Added::NoStream),
            Err(e) if e.to_string().contains("equal or smaller") => Ok(Added::Refused),
            Err(e) => Err(self.server.shared_error(shared, "append", &e).await),
        }
    }

    /// Whether the stream holds the delta already; an error where it cannot follow the stream's top.
    async fn has_landed(&self, shared: &Shared, lease: &Lease, delta: &Delta) -> Result<bool, BrokerError> {
        let mut last = redis::cmd("XREVRANGE");
        last.arg(self.keys(&lease.ticket).result(lease.turn)).arg("+").arg("-").arg("COUNT").arg(1);
        let entries = last.query_async::<Vec<(String, Value)>>(&mut shared.connection.clone()).await;
        let entries = match entries {
            Ok(entries) => entries,
            Err(e) => return Err(self.server.shared_error(shared, "append", &e).await),
        };
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
