//! The newest ends of turns, each read once: for who wants to count them, and may miss some.
//!
//! Who must not miss any follows [`super::events`] as a group.

use redis::streams::StreamRangeReply;
use turnmill_schema::keys::Keys;

use super::Operator;
use super::events::{EndedTurn, read_event};
use crate::error::ProducerError;
use crate::stream_id::StreamId;

/// Reads ends; see [`Operator::newest_ends`].
#[derive(Debug)]
pub struct NewestEnds {
    operator: Operator,
    limit: usize,
    /// The newest entry read of each shard; none before the first read.
    last: Option<Vec<StreamId>>,
}

/// What a read found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndsRead {
    /// The server's clock, in Unix milliseconds.
    pub read_ms: u64,
    /// Ends since the read before, oldest first. Those that cannot be read are left out.
    pub ended: Vec<EndedTurn>,
    /// There is no other end since the read before; of the first read: no older one.
    pub whole: bool,
    /// This is the first read.
    pub first: bool,
}

impl Operator {
    /// Reads the newest ends of turns of all tenants: the first time the newest `limit`, then those that came since, again at
    /// most so many. Nothing waits.
    pub fn newest_ends(&self, limit: usize) -> NewestEnds {
        NewestEnds { operator: self.clone(), limit, last: None }
    }
}

impl NewestEnds {
    /// What is new. After an error the same is read again.
    pub async fn read(&mut self) -> Result<EndsRead, ProducerError> {
        let read_ms = self.operator.now_ms().await?;
        let shards: Vec<Keys> = self.operator.producer.queue.all_keys().collect();
        let first = self.last.is_none();
        let mut last = self.last.clone().unwrap_or_else(|| vec![StreamId::START; shards.len()]);
        let mut read = EndsRead { read_ms, first, whole: true, ..EndsRead::default() };
        for (keys, last) in shards.iter().zip(&mut last) {
            let newest = self.after(keys, *last).await?;
            read.whole &= newest.ids.len() < self.limit;
            if let Some(id) = newest.ids.first().and_then(|entry| entry.id.parse().ok()) {
                *last = id;
            }
            read.ended.extend(newest.ids.iter().filter_map(|entry| read_event(entry).ok().flatten()));
        }
        read.ended.sort_by_key(|ended| ended.id);
        self.last = Some(last);
        Ok(read)
    }

    /// Entries after `last`, newest first.
    async fn after(&self, keys: &Keys, last: StreamId) -> Result<StreamRangeReply, ProducerError> {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(keys.events()).arg("+").arg(format!("({last}")).arg("COUNT").arg(self.limit);
        self.operator.producer.connection.ask("reading events", &command).await
    }
}
