//! The newest ends of turns, each read once: for who wants to count them, and may miss some.
//!
//! Who must not miss any follows [`crate::events`] as a group.

use turnmill_schema::StreamId;
use turnmill_schema::keys::Keys;

use super::Operator;
use crate::error::ClientError;
use crate::events::EndedTurn;
use crate::passed_by::PassedBy;

/// Reads ends; see [`Operator::newest_ends`].
#[derive(Debug)]
pub struct NewestEnds {
    operator: Operator,
    limit: usize,
    /// The newest entry read of each shard; none before the first read.
    last: Option<Vec<StreamId>>,
    passed_by: PassedBy,
}

/// What a read found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndsRead {
    /// The server's clock, in Unix milliseconds.
    pub read_ms: u64,
    /// Ends since the read before, oldest first. Those that cannot be read are left out, with a warning.
    pub ended: Vec<EndedTurn>,
    /// There is no other end since the read before; of the first read: no older one.
    pub whole: bool,
    /// This is the first read.
    pub first: bool,
}

impl Operator {
    /// Reads the newest ends of turns of all tenants: the first time the newest `limit`, then those that came since, again at
    /// most `limit`. Nothing waits.
    pub fn newest_ends(&self, limit: usize) -> NewestEnds {
        NewestEnds { operator: self.clone(), limit, last: None, passed_by: PassedBy::of_events() }
    }
}

impl NewestEnds {
    /// What is new. After an error the same is read again.
    pub async fn read(&mut self) -> Result<EndsRead, ClientError> {
        let read_ms = self.operator.now_ms().await?;
        let shards: Vec<Keys> = self.operator.client.queue.all_keys().collect();
        let first = self.last.is_none();
        let mut last = self.last.clone().unwrap_or_else(|| vec![StreamId::START; shards.len()]);
        let mut read = EndsRead { read_ms, first, whole: true, ..EndsRead::default() };
        for (keys, last) in shards.iter().zip(&mut last) {
            let (after, limit) = (*last, self.limit);
            let newest = self.operator.redis().ask(|server| server.newest_events(keys, after, limit)).await?;
            read.whole &= newest.len() < limit;
            *last = newest.first().map_or(after, |entry| entry.id);
            let ours = newest.into_iter().filter_map(|entry| self.passed_by.ours(entry));
            read.ended.extend(ours.map(|(id, record)| EndedTurn::of(id, record)));
        }
        read.ended.sort_by_key(|ended| ended.id);
        self.last = Some(last);
        Ok(read)
    }
}
