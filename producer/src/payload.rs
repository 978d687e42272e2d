//! Turns too large for Redis: their objects in the store, and the references that are enqueued in their place.
//!
//! Invariant: an object is written, for good, before its reference is enqueued, so that a crash in between leaves an
//! object without a reference and never a reference without its object.

use futures_util::{StreamExt, stream};
use turnmill_redis::Fault;
use turnmill_schema::keys::FIELD_ENVELOPE;
use turnmill_schema::{PayloadReference, StoredTurn, Turn, TurnId};

use crate::client::Client;
use crate::connection::unless_passing;
use crate::error::ClientError;

/// Objects written at once.
pub(crate) const PUTS_AT_ONCE: usize = 8;

/// A reference is shorter in Redis; what is longer is a turn.
const MAX_REFERENCE_BYTES: u64 = 1024;

impl Client {
    /// The turn that `stored` is or refers to.
    pub(crate) async fn load(&self, stored: StoredTurn) -> Result<Turn, ClientError> {
        match stored {
            StoredTurn::Inline(turn) => Ok(*turn),
            StoredTurn::Reference(reference) => {
                let none = ClientError::NoStore { turn: reference.turn, bytes: reference.bytes };
                self.payloads.as_ref().ok_or(none)?.get(&reference).await
            }
        }
    }

    /// Writes the object of a large turn.
    pub(crate) async fn put_object(
        &self,
        reference: &PayloadReference,
        object: Vec<u8>,
    ) -> Result<(), ClientError> {
        let none = || ClientError::NoStore { turn: reference.turn, bytes: reference.bytes };
        self.payloads.as_ref().ok_or_else(none)?.put(reference, object).await
    }

    /// Removes objects that no turn needs any more. Without a store they stay, until `kv gc` collects them.
    pub(crate) async fn remove_objects(&self, references: &[PayloadReference]) {
        let Some(store) = &self.payloads else { return };
        stream::iter(references).for_each_concurrent(PUTS_AT_ONCE, |reference| store.remove(reference)).await;
    }

    /// The objects of those turns that went by reference, for when they end without a worker; none without a store.
    pub(crate) async fn objects_of(&self, turns: &[TurnId]) -> Result<Vec<PayloadReference>, ClientError> {
        if self.payloads.is_none() || turns.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<String> = turns.iter().map(|turn| self.keys_of(*turn).turn(*turn)).collect();
        let bytes = self
            .connection
            .ask(async |server| {
                unless_passing(server.fields_of::<u64>("HSTRLEN", &keys, FIELD_ENVELOPE).await?)
            })
            .await?;
        // One that cannot be read is left to `kv gc`, as without a store.
        let is_short = |(_, bytes): &(String, Result<u64, Fault>)| {
            bytes.as_ref().is_ok_and(|bytes| (1..=MAX_REFERENCE_BYTES).contains(bytes))
        };
        let short: Vec<String> = keys.into_iter().zip(bytes).filter(is_short).map(|(key, _)| key).collect();
        let stored = self
            .connection
            .ask(async |server| {
                unless_passing(server.fields_of::<Option<Vec<u8>>>("HGET", &short, FIELD_ENVELOPE).await?)
            })
            .await?;
        let stored: Vec<Vec<u8>> = stored.into_iter().filter_map(|stored| stored.ok().flatten()).collect();
        Ok(stored.iter().filter_map(|stored| reference(stored)).collect())
    }
}

fn reference(stored: &[u8]) -> Option<PayloadReference> {
    match StoredTurn::decode(stored).ok()? {
        StoredTurn::Reference(reference) => Some(reference),
        StoredTurn::Inline(_) => None,
    }
}
