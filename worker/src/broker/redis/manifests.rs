//! What the agents and turns of a queue refer to in the object store.
//!
//! Invariants: agents and turns of all shards are read, also of shards this process was not told of, since what is not
//! seen here may be removed; one that cannot be read is counted or kept, never passed over.

use std::collections::HashSet;
use std::sync::Arc;

use turnmill_redis::{Endpoint, Fault, RESPONSE_TIMEOUT, Server};
use turnmill_schema::envelope::decode;
use turnmill_schema::keys::{
    FIELD_ENVELOPE, FIELD_MANIFEST, Queue, agent_shard, agents_pattern, turn_of, turns_pattern,
};
use turnmill_schema::{Manifest, Name, StoredTurn};

use super::BrokerError;
use super::collector::Collector;
use crate::broker::{Manifests, PayloadsInUse, References, Root};

/// References are shorter than this, so that the turns that stand in Redis need not be read.
const MOST_REFERENCE_BYTES: usize = 1024;

/// The [`References`] of one queue in Redis.
#[derive(Debug)]
pub struct RedisReferences {
    server: Arc<Server>,
    queue: Name,
}

impl RedisReferences {
    /// Connects, and checks the server.
    pub async fn connect(redis: &Endpoint, queue: &Name) -> Result<Self, BrokerError> {
        let server = Server::new(redis, RESPONSE_TIMEOUT)?;
        server.check().await?;
        Ok(Self { server, queue: queue.clone() })
    }

    /// The right to remove garbage of this queue.
    pub fn collector(&self) -> Collector {
        let keys = Queue::single(self.queue.clone()).keys(0);
        Collector::new(Arc::clone(&self.server), keys)
    }

    /// Adds what the turns with these hashes refer to.
    async fn note_payloads(&self, keys: Vec<String>, found: &mut PayloadsInUse) -> Result<(), BrokerError> {
        let sizes = self.server.fields_of::<usize>("HSTRLEN", &keys, FIELD_ENVELOPE).await?;
        let (mut small, mut turns) = (Vec::new(), Vec::new());
        for (key, size) in keys.into_iter().zip(sizes) {
            let Some(turn) = turn_of(&self.queue, &key) else { continue };
            match size {
                Ok(1..=MOST_REFERENCE_BYTES) => {
                    small.push(key);
                    turns.push(turn);
                }
                Ok(_) => {}
                Err(_) => drop(found.turns.insert(turn)),
            }
        }
        let envelopes = self.server.fields_of::<Option<Vec<u8>>>("HGET", &small, FIELD_ENVELOPE).await?;
        for (turn, envelope) in turns.into_iter().zip(envelopes) {
            // Nothing: it ended in between.
            let stored = envelope.map(|envelope| envelope.filter(|bytes| !bytes.is_empty()));
            match stored.map(|stored| stored.map(|bytes| StoredTurn::decode(&bytes)).transpose()) {
                Ok(Ok(Some(StoredTurn::Reference(reference)))) => {
                    found.paths.insert(reference.path(&self.queue));
                }
                Ok(Ok(Some(StoredTurn::Inline(_)) | None)) => {}
                Ok(Err(_)) | Err(_) => drop(found.turns.insert(turn)),
            }
        }
        Ok(())
    }
}

impl References for RedisReferences {
    async fn manifests(&self) -> Result<Manifests, BrokerError> {
        let (mut found, mut seen) = (Manifests::default(), HashSet::new());
        let mut scan = self.server.scan(agents_pattern(&self.queue));
        while let Some(mut keys) = scan.next().await? {
            // A scan may give a key twice.
            let mut is_new = |key: &str| seen.insert(blake3::hash(key.as_bytes()));
            keys.retain(|key| agent_shard(&self.queue, key).is_some() && is_new(key));
            for answer in self.server.fields_of::<Option<Vec<u8>>>("HGET", &keys, FIELD_MANIFEST).await? {
                note(&mut found, answer);
            }
        }
        Ok(found)
    }

    async fn payloads(&self) -> Result<PayloadsInUse, BrokerError> {
        let mut found = PayloadsInUse::default();
        let mut scan = self.server.scan(turns_pattern(&self.queue));
        while let Some(keys) = scan.next().await? {
            self.note_payloads(keys, &mut found).await?;
        }
        Ok(found)
    }
}

/// Counts one agent and what its hash answered.
fn note(found: &mut Manifests, answer: Result<Option<Vec<u8>>, Fault>) {
    found.agents += 1;
    let manifest = answer.map(|bytes| bytes.filter(|bytes| !bytes.is_empty()));
    match manifest.map(|manifest| manifest.map(|bytes| decode::<Manifest>(&bytes)).transpose()) {
        Ok(Ok(Some(Manifest { namespace, last, .. }))) => {
            *found.roots.entry(Root { namespace, last }).or_default() += 1;
        }
        Ok(Ok(None)) => {}
        Ok(Err(_)) | Err(_) => found.unreadable += 1,
    }
}
