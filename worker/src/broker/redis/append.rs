//! Publishing tokens. What a lost reply leaves open is settled by reading the stream's top before the next append: otherwise a
//! delta could land over one that did not.

use turnmill_redis::{AppendLink, Appended};
use turnmill_schema::envelope::{EnvelopeError, encode};
use turnmill_schema::{Delta, Event};

use super::{BrokerError, Lease, RedisBroker};

impl RedisBroker {
    pub(super) async fn publish(&self, lease: &Lease, delta: &Delta) -> Result<(), BrokerError> {
        if delta.tokens.is_empty() {
            let reason = "a delta without tokens has no id of its own; publish its text with a token";
            return Err(EnvelopeError::Encode(reason.into()).into());
        }
        let event = encode(&Event::Delta(delta.clone()))?;
        let link = self.server.append_link().await?;
        let known = lease.forget_top(link.generation());
        if !known && self.has_landed(&link, lease, delta).await? {
            lease.know_top(link.generation());
            return Ok(());
        }
        let id = (lease.epoch, delta.published());
        match self.server.append(&link, &self.keys_of(lease), lease.turn, id, &event).await? {
            Appended::Landed => {}
            Appended::Refused if self.has_landed(&link, lease, delta).await? => {}
            Appended::Refused | Appended::NoStream => return Err(fenced(lease)),
        }
        lease.know_top(link.generation());
        Ok(())
    }

    /// Whether the stream holds the delta already; an error if it cannot follow the stream's top.
    async fn has_landed(&self, link: &AppendLink, lease: &Lease, delta: &Delta) -> Result<bool, BrokerError> {
        let top = self.server.result_top(link, &self.keys_of(lease), lease.turn).await?;
        let Some(top) = top.filter(|top| top.epoch == lease.epoch) else { return Err(fenced(lease)) };
        if top.published < delta.index {
            let (expected, found) = (delta.index, top.published);
            return Err(BrokerError::Gap { turn: lease.turn, expected, found });
        }
        Ok(top.published >= delta.published())
    }
}

/// The lease is not this worker's any more.
pub(super) fn fenced(lease: &Lease) -> BrokerError {
    lease.lose();
    BrokerError::Fenced { turn: lease.turn }
}
