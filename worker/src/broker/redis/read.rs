//! Reading tokens.
//!
//! A lost reply may still have delivered: whenever a read did not come to its end (an error, or its future was
//! dropped), the next one starts on a new connection by claiming what is pending to this worker and not in its
//! hands.

use std::time::Duration;

use redis::Cmd;
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId, StreamReadReply};
use turnmill_schema::AgentId;
use turnmill_schema::keys::{FIELD_AGENT, GROUP};

use super::claim::Whose;
use super::connect::BLOCK;
use super::{BrokerError, ReadyStream, ReadyToken, RedisBroker};

/// The state of the blocking read.
#[derive(Default)]
pub(super) struct Reader {
    /// Absent before the first read and while one is under way.
    connection: Option<MultiplexedConnection>,
    /// Tokens whose reply was lost may be pending to us.
    recovering: bool,
    /// Which shard is asked first; goes round, so that no shard starves.
    first_shard: usize,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("recovering", &self.recovering).finish_non_exhaustive()
    }
}

impl RedisBroker {
    pub(super) async fn read_tokens(&self, room: usize) -> Result<Vec<ReadyToken>, BrokerError> {
        if room == 0 {
            return Ok(Vec::new());
        }
        let mut reader = self.reader.lock().await;
        let mut connection = match reader.connection.take() {
            Some(connection) => connection,
            None => {
                reader.recovering = true;
                let connection = self.server.reader().await?;
                // A server that comes back may have forgotten the groups, and recovering asks for them first.
                self.create_groups().await?;
                connection
            }
        };
        let tokens = self.read_on(&mut connection, &mut reader, room).await?;
        reader.connection = Some(connection);
        Ok(tokens)
    }

    async fn read_on(
        &self,
        connection: &mut MultiplexedConnection,
        reader: &mut Reader,
        room: usize,
    ) -> Result<Vec<ReadyToken>, BrokerError> {
        let mut tokens = Vec::new();
        if reader.recovering {
            tokens = self.claim_pending(Whose::Ours, room).await?;
            reader.recovering = tokens.len() == room;
        }
        reader.first_shard += 1;
        let streams = self.streams_from(reader.first_shard);
        for stream in &streams {
            // COUNT is per stream, so each is asked for the room that is left.
            if tokens.len() < room {
                let command = self.read_command(&[stream], room - tokens.len(), None);
                tokens.extend(self.deliver(&command, connection).await?);
            }
        }
        if tokens.is_empty() {
            let command = self.read_command(&streams, 1, Some(BLOCK));
            tokens = self.deliver(&command, connection).await?;
        }
        // Several streams may have answered the blocking read at once.
        for token in tokens.split_off(room.min(tokens.len())) {
            self.hand_back(&token).await?;
        }
        Ok(self.held.take(tokens))
    }

    /// Every ready stream, most urgent priority first, the shards of each from `first` on.
    fn streams_from(&self, first: usize) -> Vec<&ReadyStream> {
        let shards = usize::from(self.settings.shards.get());
        let mut streams: Vec<_> = self.streams.iter().collect();
        for of_priority in streams.chunks_mut(shards) {
            of_priority.rotate_left(first % shards);
        }
        streams
    }

    fn read_command(&self, streams: &[&ReadyStream], count: usize, block: Option<Duration>) -> Cmd {
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(GROUP).arg(&self.settings.worker).arg("COUNT").arg(count);
        if let Some(block) = block {
            command.arg("BLOCK").arg(block.as_millis() as u64);
        }
        command.arg("STREAMS");
        for stream in streams {
            command.arg(&stream.key);
        }
        for _ in streams {
            command.arg(">");
        }
        command
    }

    async fn deliver(
        &self,
        command: &Cmd,
        connection: &mut MultiplexedConnection,
    ) -> Result<Vec<ReadyToken>, BrokerError> {
        let reply: Option<StreamReadReply> = match command.query_async(connection).await {
            Ok(reply) => reply,
            Err(e) if e.code() == Some("NOGROUP") => {
                self.create_groups().await?;
                None
            }
            Err(e) => {
                let error = self.server.error("read", &e);
                if matches!(error, BrokerError::Unreachable { .. }) {
                    self.server.note_lost_reader();
                }
                return Err(error);
            }
        };
        let mut tokens = Vec::new();
        for delivered in reply.map(|reply| reply.keys).unwrap_or_default() {
            if let Some(stream) = self.streams.iter().find(|stream| stream.key == delivered.key) {
                tokens.extend(self.tokens(stream, delivered.ids).await?);
            }
        }
        Ok(tokens)
    }

    /// Reads entries of a ready stream as tokens; what is none (a foreign entry) is deleted.
    pub(super) async fn tokens(
        &self,
        stream: &ReadyStream,
        entries: Vec<StreamId>,
    ) -> Result<Vec<ReadyToken>, BrokerError> {
        let mut tokens = Vec::new();
        for entry in entries {
            if let Some(agent) = entry.get::<String>(FIELD_AGENT) {
                let (shard, priority) = (stream.shard, stream.priority);
                tokens.push(ReadyToken {
                    agent: AgentId::from_wire(agent),
                    priority,
                    shard,
                    entry: entry.id,
                });
                continue;
            }
            tracing::warn!(stream = stream.key, entry = entry.id, "deleting an entry that names no agent");
            let mut connection = self.server.connection().await?;
            let mut delete = redis::pipe();
            delete.cmd("XACK").arg(&stream.key).arg(GROUP).arg(&entry.id).ignore();
            delete.cmd("XDEL").arg(&stream.key).arg(&entry.id).ignore();
            delete.exec_async(&mut connection).await.map_err(|e| self.server.error("read", &e))?;
        }
        Ok(tokens)
    }
}
