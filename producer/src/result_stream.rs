//! Reading a turn's keys: its result stream and its hash.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId as RawEntry, StreamRangeReply, StreamReadReply};
use redis::{FromRedisValue, RedisResult};
use turnmill_schema::keys::{FIELD_AGENT, FIELD_END, FIELD_EVENT, FIELD_REPLY};
use turnmill_schema::{Event, envelope};

use crate::connection::Connection;
use crate::error::ProducerError;
use crate::stream_id::StreamId;

/// Field of a turn's hash: see [`TurnState::epoch`].
const FIELD_EPOCH: &str = "epoch";
/// Entries in one reply at most.
const COUNT: usize = 256;

/// The entries after `last`; waits up to `block` where there are none yet.
pub(crate) async fn read_after(
    redis: &mut MultiplexedConnection,
    key: &str,
    last: StreamId,
    block: Duration,
) -> RedisResult<Vec<RawEntry>> {
    let mut command = redis::cmd("XREAD");
    command.arg("COUNT").arg(COUNT).arg("BLOCK").arg(block.as_millis().max(1) as u64);
    command.arg("STREAMS").arg(key).arg(last.to_string());
    let reply: Option<StreamReadReply> = command.query_async(redis).await?;
    Ok(reply.unwrap_or_default().keys.into_iter().flat_map(|stream| stream.ids).collect())
}

/// What is there of a turn.
#[derive(Debug)]
pub(crate) struct TurnState {
    /// The id of its agent; none where the turn's hash is gone.
    pub agent: Option<String>,
    /// Its stored [`Event::End`], once it ended.
    pub end: Option<Vec<u8>>,
    /// The epoch of its newest lease; of its end, once it ended.
    pub epoch: Option<u64>,
    /// Its whole reply as one stored [`turnmill_schema::Delta`], where it ended and the reply is short.
    pub reply: Option<Vec<u8>>,
    /// The newest entry of its result stream; none where the stream is not there.
    pub top: Option<RawEntry>,
}

/// What [`TurnState`] has of the turn's hash.
const FIELDS: [&str; 4] = [FIELD_AGENT, FIELD_END, FIELD_EPOCH, FIELD_REPLY];
type Fields = (Option<String>, Option<Vec<u8>>, Option<u64>, Option<Vec<u8>>);

impl TurnState {
    fn new((agent, end, epoch, reply): Fields, top: Option<RawEntry>) -> Self {
        let reply = reply.filter(|reply| !reply.is_empty());
        Self { agent, end, epoch, reply, top }
    }
}

/// Reads the hashes of many turns, without the tops of their streams.
pub(crate) async fn turn_states(
    connection: &Connection,
    turn_keys: impl Iterator<Item = &String>,
) -> Result<Vec<TurnState>, ProducerError> {
    let mut pipeline = redis::pipe();
    turn_keys.for_each(|key| {
        pipeline.cmd("HMGET").arg(key).arg(&FIELDS);
    });
    if pipeline.is_empty() {
        return Ok(Vec::new());
    }
    let states: Vec<Fields> = connection.ask_all("reading turns", &pipeline).await?;
    Ok(states.into_iter().map(|fields| TurnState::new(fields, None)).collect())
}

/// Reads the hash and the stream's top as of one moment.
pub(crate) async fn turn_state(
    redis: &mut MultiplexedConnection,
    turn_key: &str,
    result_key: &str,
) -> RedisResult<TurnState> {
    let mut pipeline = redis::pipe();
    pipeline.atomic();
    pipeline.cmd("HMGET").arg(turn_key).arg(&FIELDS);
    pipeline.cmd("XREVRANGE").arg(result_key).arg("+").arg("-").arg("COUNT").arg(1);
    let (fields, top): (Fields, StreamRangeReply) = pipeline.query_async(redis).await?;
    Ok(TurnState::new(fields, top.ids.into_iter().next()))
}

/// An entry of ours in a raw one.
pub(crate) fn decode(entry: &RawEntry) -> Result<(StreamId, Event), ProducerError> {
    let unreadable = |reason: String| ProducerError::Unreadable {
        what: format!("entry {} of the result stream", entry.id),
        reason,
    };
    let id = entry.id.parse().map_err(|error| unreadable(format!("{error}")))?;
    let field = entry.map.get(FIELD_EVENT).cloned();
    let field = field.ok_or_else(|| unreadable(format!("the field {FIELD_EVENT} is missing")))?;
    let bytes = Vec::<u8>::from_redis_value(field).map_err(|error| unreadable(error.to_string()))?;
    Ok((id, envelope::decode(&bytes).map_err(|error| unreadable(error.to_string()))?))
}
