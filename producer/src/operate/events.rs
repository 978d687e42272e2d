//! The turns of all agents, as they end: read plainly, or as a consumer group so that several readers share them and
//! none is missed while all are away.
//!
//! Invariants: a blocking read has a connection of its own; after any error a group's reader first reads what was delivered
//! to it and not handed out. Redis keeps about the newest ten thousand ends: who is away for longer misses some.

use std::collections::VecDeque;

use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId as RawEntry, StreamReadReply};
use redis::{RedisError, RedisResult};
use serde::Serialize;
use turnmill_schema::keys::{FIELD_AGENT, FIELD_EVENT};
use turnmill_schema::{AgentId, End, Event, Name, TurnId, envelope};

use super::Operator;
use crate::connection::{Connection, Patience, passing};
use crate::error::ProducerError;
use crate::stream_id::StreamId;

/// Entries in one reply at most.
const COUNT: usize = 100;

/// A turn that ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndedTurn {
    /// Its entry in the stream of events: Redis's clock in milliseconds, and a count.
    pub id: StreamId,
    /// The turn.
    pub turn: TurnId,
    /// Its tenant.
    pub tenant: String,
    /// Its agent; none for a turn that stood alone.
    pub agent: Option<Name>,
    /// Its terminal result.
    #[serde(flatten)]
    pub end: End,
}

/// A consumer of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The group; made where it does not exist.
    pub group: Name,
    /// The consumer's name in it.
    pub consumer: Name,
}

/// Reads ended turns one by one; see [`Operator::events`].
pub struct Events {
    connection: Connection,
    key: String,
    membership: Option<Membership>,
    /// Where to start; none: with what comes from now on. Of a group only when it is made.
    from: Option<StreamId>,
    /// The last entry handed out, or of which the reading started.
    last: Option<StreamId>,
    /// Whether entries that were delivered to this consumer before are still to be read.
    own: bool,
    redis: Option<MultiplexedConnection>,
    lost: Option<Patience>,
    ready: VecDeque<EndedTurn>,
}

impl Operator {
    /// Turns as they end, after entry `from`, or from now on. As a consumer group `from` counts only where the group is new;
    /// entries are handed out again until [`Events::acknowledge`] was called for them.
    pub fn events(&self, membership: Option<Membership>, from: Option<StreamId>) -> Events {
        Events {
            connection: self.producer.connection.clone(),
            key: self.producer.queue.keys(0).events(),
            own: membership.is_some(),
            membership,
            from,
            last: None,
            redis: None,
            lost: None,
            ready: VecDeque::new(),
        }
    }
}

impl Events {
    /// The next one, waiting for it. Fails where Redis is away for longer than
    /// [`crate::ProducerSettings::retry_for`], or holds something else.
    pub async fn next(&mut self) -> Result<EndedTurn, ProducerError> {
        loop {
            if let Some(ended) = self.ready.pop_front() {
                self.last = Some(ended.id);
                return Ok(ended);
            }
            match self.step().await {
                Ok(entries) => self.take(&entries).await?,
                Err(error) => self.lose(&error).await?,
            }
        }
    }

    /// Says that the entry was dealt with, so that its group does not hand it out again.
    pub async fn acknowledge(&self, id: StreamId) -> Result<(), ProducerError> {
        let Some(Membership { group, .. }) = &self.membership else { return Ok(()) };
        let mut command = redis::cmd("XACK");
        command.arg(&self.key).arg(group.as_str()).arg(id.to_string());
        let _known: u64 = self.connection.ask("acknowledging an event", &command).await?;
        Ok(())
    }

    async fn step(&mut self) -> RedisResult<Vec<RawEntry>> {
        if self.redis.is_none() {
            self.redis = Some(self.connection.blocking().await?);
            self.begin().await?;
        }
        let command = self.question();
        let Some(redis) = &mut self.redis else { return Ok(Vec::new()) };
        let reply: Option<StreamReadReply> = command.query_async(redis).await?;
        if self.lost.take().is_some() {
            tracing::info!("reached Redis again; reading on");
        }
        let entries: Vec<_> =
            reply.unwrap_or_default().keys.into_iter().flat_map(|stream| stream.ids).collect();
        if self.own && entries.is_empty() {
            self.own = false;
        }
        Ok(entries)
    }

    /// Makes the group, or finds out where "from now on" starts: asked once, so that nothing is missed between reads.
    async fn begin(&mut self) -> RedisResult<()> {
        let Some(redis) = &mut self.redis else { return Ok(()) };
        if let Some(Membership { group, .. }) = &self.membership {
            let mut create = redis::cmd("XGROUP");
            create.arg("CREATE").arg(&self.key).arg(group.as_str());
            create.arg(self.from.map_or_else(|| "$".to_owned(), |id| id.to_string())).arg("MKSTREAM");
            match create.query_async::<()>(redis).await {
                Err(error) if error.code() != Some("BUSYGROUP") => return Err(error),
                _ => self.own = true,
            }
        } else if self.last.is_none() {
            self.last = match self.from {
                Some(from) => Some(from),
                None => Some(newest(redis, &self.key).await?),
            };
        }
        Ok(())
    }

    fn question(&self) -> redis::Cmd {
        let last = self.last.unwrap_or(StreamId::START).to_string();
        let block_ms = self.connection.block().as_millis().max(1) as u64;
        let mut command;
        let after = match &self.membership {
            None => {
                command = redis::cmd("XREAD");
                last
            }
            Some(Membership { group, consumer }) => {
                command = redis::cmd("XREADGROUP");
                command.arg("GROUP").arg(group.as_str()).arg(consumer.as_str());
                if self.own { last } else { ">".to_owned() }
            }
        };
        command.arg("COUNT").arg(COUNT).arg("BLOCK").arg(block_ms);
        command.arg("STREAMS").arg(&self.key).arg(after);
        command
    }

    async fn take(&mut self, entries: &[RawEntry]) -> Result<(), ProducerError> {
        for entry in entries {
            match read_event(entry)? {
                Some(ended) => self.ready.push_back(ended),
                None => {
                    // Trimmed while it was pending: nobody can deal with it any more.
                    tracing::warn!(entry = %entry.id, "an end that was delivered before is trimmed; it is passed over");
                    self.acknowledge(entry_id(entry)?).await?;
                }
            }
        }
        Ok(())
    }

    /// Waits before the next try, or gives up.
    async fn lose(&mut self, error: &RedisError) -> Result<(), ProducerError> {
        let failure = self.connection.failure("reading events", error);
        let group_gone = error.code() == Some("NOGROUP");
        if !passing(error) && !group_gone {
            return Err(failure);
        }
        self.redis = None;
        let patience = self.lost.get_or_insert_with(|| {
            tracing::warn!("{failure}; trying again");
            self.connection.patience()
        });
        if patience.pause().await { Ok(()) } else { Err(failure) }
    }
}

/// The id of the newest entry.
async fn newest(redis: &mut MultiplexedConnection, key: &str) -> RedisResult<StreamId> {
    let mut command = redis::cmd("XREVRANGE");
    command.arg(key).arg("+").arg("-").arg("COUNT").arg(1);
    let newest: redis::streams::StreamRangeReply = command.query_async(redis).await?;
    Ok(newest.ids.first().and_then(|entry| entry.id.parse().ok()).unwrap_or(StreamId::START))
}

/// An entry of ours; none where it is trimmed and only its id is left.
pub(super) fn read_event(entry: &RawEntry) -> Result<Option<EndedTurn>, ProducerError> {
    if entry.map.is_empty() {
        return Ok(None);
    }
    let unreadable =
        |reason: String| ProducerError::Unreadable { what: format!("event {}", entry.id), reason };
    let missing = |name: &str| unreadable(format!("it has no {name}"));
    let turn: String = entry.get("turn").ok_or_else(|| missing("turn"))?;
    let turn = turn.parse().map_err(|error| unreadable(format!("{error}")))?;
    let agent: String = entry.get(FIELD_AGENT).ok_or_else(|| missing(FIELD_AGENT))?;
    let agent = AgentId::from_wire(agent);
    let event: Vec<u8> = entry.get(FIELD_EVENT).ok_or_else(|| missing(FIELD_EVENT))?;
    let end = match envelope::decode(&event).map_err(|error| unreadable(error.to_string()))? {
        Event::End(end) => end,
        _ => return Err(unreadable("it is not an End".into())),
    };
    let (tenant, agent) = (agent.tenant().to_owned(), agent.agent());
    Ok(Some(EndedTurn { id: entry_id(entry)?, turn, tenant, agent, end }))
}

fn entry_id(entry: &RawEntry) -> Result<StreamId, ProducerError> {
    let unreadable =
        |error| ProducerError::Unreadable { what: "an event's id".into(), reason: format!("{error}") };
    entry.id.parse().map_err(unreadable)
}
