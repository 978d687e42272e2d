//! The stream of events: one entry for each ended turn, read plainly or as a consumer group.

use std::time::Duration;

use redis::Cmd;
use redis::streams::{StreamAutoClaimReply, StreamReadReply};
use turnmill_schema::keys::{FIELD_AGENT, FIELD_EVENT, Keys};
use turnmill_schema::{AgentId, End, Event, Name, StreamId, TurnId, envelope};

use crate::blocking::Blocking;
use crate::entries::{Entry, Fields, Found, Side};
use crate::fault::Fault;
use crate::server::Server;

/// What errors call this.
const STEP: &str = "reading events";

/// A turn that ended.
#[derive(Clone, Debug, PartialEq)]
pub struct EndedRecord {
    /// The turn.
    pub turn: TurnId,
    /// Whose it was.
    pub agent: AgentId,
    /// Its terminal result.
    pub end: End,
}

/// A consumer of a group.
#[derive(Clone, Copy, Debug)]
pub struct Consumer<'a> {
    /// The group: see [`turnmill_schema::keys::events_group`].
    pub group: &'a str,
    /// The consumer's name in it.
    pub consumer: &'a Name,
}

/// What a consumer took over from others of its group.
#[derive(Clone, Debug, PartialEq)]
pub struct Claimed {
    /// Ends that are the consumer's now. Those that are trimmed belong to nobody any more.
    pub ends: Vec<Entry<EndedRecord>>,
    /// Where to go on; [`StreamId::START`]: everything was looked at.
    pub next: StreamId,
}

impl Server {
    /// The newest ends after `after`, newest first, at most `count`.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn newest_events(
        &self,
        keys: &Keys,
        after: StreamId,
        count: usize,
    ) -> Result<Vec<Entry<EndedRecord>>, Fault> {
        let found = self.entries(STEP, keys.events(), (Side::Newest, after), count).await?;
        Ok(Entry::read_all(found, read_end))
    }

    /// The id of the newest end; [`StreamId::START`] if there is none.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn newest_event(&self, keys: &Keys) -> Result<StreamId, Fault> {
        let newest = self.newest_events(keys, StreamId::START, 1).await?;
        Ok(newest.first().map_or(StreamId::START, |entry| entry.id))
    }

    /// Says that ends were dealt with, so that their group does not hand them out again.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn acknowledge_events(&self, keys: &Keys, group: &str, ids: &[StreamId]) -> Result<(), Fault> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut acknowledge = redis::cmd("XACK");
        acknowledge.arg(keys.events()).arg(group);
        ids.iter().for_each(|id| {
            acknowledge.arg(id.to_string());
        });
        let _known: u64 = self.ask("acknowledging events", &acknowledge).await?;
        Ok(())
    }
}

impl Server {
    /// Makes ends the consumer's that were delivered to one of its group at least `idle` ago and are not acknowledged, from `from`
    /// on, at most `count`. The consumer's own are among them.
    ///
    /// # Errors
    /// See [`Fault`]. After an error ends may have been claimed.
    pub async fn claim_events(
        &self,
        keys: &Keys,
        Consumer { group, consumer }: Consumer<'_>,
        idle: Duration,
        from: StreamId,
        count: usize,
    ) -> Result<Claimed, Fault> {
        let mut claim = redis::cmd("XAUTOCLAIM");
        claim.arg(keys.events()).arg(group).arg(consumer.as_str()).arg(idle.as_millis() as u64);
        claim.arg(from.to_string()).arg("COUNT").arg(count);
        read_claimed(self.ask("claiming events", &claim).await?)
    }
}

impl Blocking {
    /// Ends after `after`, oldest first, at most `count`; waits up to `block` for the next one.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn events_after(
        &mut self,
        keys: &Keys,
        after: StreamId,
        count: usize,
        block: Duration,
    ) -> Result<Vec<Entry<EndedRecord>>, Fault> {
        self.read_events(redis::cmd("XREAD"), keys, after.to_string(), count, block).await
    }

    /// Ends that nobody of the group has yet, at most `count`; waits up to `block` for the next one.
    ///
    /// # Errors
    /// See [`Fault`]. After an error ends may have been delivered.
    pub async fn new_events(
        &mut self,
        keys: &Keys,
        consumer: Consumer<'_>,
        count: usize,
        block: Duration,
    ) -> Result<Vec<Entry<EndedRecord>>, Fault> {
        self.read_events(as_consumer(consumer), keys, ">".to_owned(), count, block).await
    }

    /// Ends that were delivered to the consumer before and are not acknowledged, those after `after`, at most `count`.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn delivered_events(
        &mut self,
        keys: &Keys,
        consumer: Consumer<'_>,
        after: StreamId,
        count: usize,
    ) -> Result<Vec<Entry<EndedRecord>>, Fault> {
        // What is delivered is read at once, whatever the time to wait.
        self.read_events(as_consumer(consumer), keys, after.to_string(), count, Duration::ZERO).await
    }

    async fn read_events(
        &mut self,
        mut command: Cmd,
        keys: &Keys,
        after: String,
        count: usize,
        block: Duration,
    ) -> Result<Vec<Entry<EndedRecord>>, Fault> {
        // 0 would wait for ever.
        command.arg("COUNT").arg(count).arg("BLOCK").arg((block.as_millis() as u64).max(1));
        command.arg("STREAMS").arg(keys.events()).arg(after);
        let reply: Option<StreamReadReply> = self.ask(STEP, &command).await?;
        let streams = reply.map(|reply| reply.keys).unwrap_or_default();
        Ok(Entry::read_all(streams.into_iter().flat_map(|stream| stream.ids).collect(), read_end))
    }
}

fn as_consumer(Consumer { group, consumer }: Consumer<'_>) -> Cmd {
    let mut command = redis::cmd("XREADGROUP");
    command.arg("GROUP").arg(group).arg(consumer.as_str());
    command
}

fn read_claimed(reply: StreamAutoClaimReply) -> Result<Claimed, Fault> {
    let next = reply.next_stream_id.parse().map_err(|error| Fault::Unreadable {
        step: "claiming events",
        reason: format!("where to go on: {error}"),
    })?;
    let mut ends = Entry::read_all(reply.claimed, read_end);
    // Redis 7 has forgotten them with this answer.
    let trimmed = reply.deleted_ids.iter().filter_map(|id| id.parse().ok());
    ends.extend(trimmed.map(|id| Entry { id, found: Found::Trimmed }));
    Ok(Claimed { ends, next })
}

fn read_end(fields: &Fields<'_>) -> Result<EndedRecord, String> {
    let turn = fields.get::<String>("turn")?.parse().map_err(|error| format!("{error}"))?;
    let agent = AgentId::from_wire(fields.get(FIELD_AGENT)?);
    let event: Vec<u8> = fields.get(FIELD_EVENT)?;
    match envelope::decode(&event).map_err(|error| error.to_string())? {
        Event::End(end) => Ok(EndedRecord { turn, agent, end }),
        _ => Err("it is not an End".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use redis::{FromRedisValue, Value};

    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn what_is_claimed_is_told_from_what_is_trimmed() {
        let entry = |id| Value::Array(vec![text(id), Value::Array(vec![text("whose"), text("not ours")])]);
        let reply = |next, parts: Vec<Value>| {
            let reply = Value::Array([vec![text(next)], parts].concat());
            read_claimed(StreamAutoClaimReply::from_redis_value(reply).expect("an answer of XAUTOCLAIM"))
        };
        let claimed = reply("7-0", vec![Value::Array(vec![entry("5-1")]), Value::Array(vec![text("6-0")])]);
        let claimed = claimed.expect("it can be read");
        assert_eq!(claimed.next, StreamId { epoch: 7, sequence: 0 });
        let found: Vec<_> = claimed.ends.iter().map(|end| (end.id.epoch, &end.found)).collect();
        assert!(matches!(found[..], [(5, Found::Foreign(_)), (6, Found::Trimmed)]), "{found:?}");

        let nothing = reply("0-0", vec![Value::Array(vec![]), Value::Array(vec![])]);
        assert_eq!(nothing, Ok(Claimed { ends: Vec::new(), next: StreamId::START }));
        assert!(reply("nonsense", vec![Value::Array(vec![])]).is_err());
    }
}
