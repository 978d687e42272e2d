//! Reading tickets.
//!
//! A lost reply may still have delivered: whenever a read did not come to its end (an error, or its future was
//! dropped), the next one starts on a new connection by claiming what is pending to this worker and not in its
//! hands.

use std::collections::HashSet;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId, StreamReadReply};
use redis::{Cmd, RedisResult};
use turnmill_schema::keys::{BacklogEntry, FIELD_AGENT, FIELD_HEAD, GROUP};
use turnmill_schema::{AgentId, Priority};

use super::claim::Whose;
use super::waiting::Waiting;
use super::{BrokerError, ReadyStream, RedisBroker, Ticket};

/// After so many tickets of interactive agents one of a batch agent comes first, where one waits: so neither starves.
const INTERACTIVE_A_BATCH: usize = 3;

/// The state of the blocking read.
#[derive(Default)]
pub(super) struct Reader {
    /// Absent before the first read and while one is under way.
    connection: Option<MultiplexedConnection>,
    /// Tickets whose reply was lost may be pending to us.
    recovering: bool,
    /// Which shard is asked first; goes round, so that no shard starves.
    first_shard: usize,
    /// Interactive tickets since the last one of a batch agent.
    since_batch: usize,
    /// Agents that wait for a time or a place.
    pub(super) waiting: Waiting,
}

/// A ticket as it was delivered, and the head it was made for.
pub(super) type Delivered = (Ticket, Option<BacklogEntry>);

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("recovering", &self.recovering).finish_non_exhaustive()
    }
}

impl Reader {
    /// How many of `room` tickets are asked of the batch streams first.
    fn batch_share(&self, room: usize) -> usize {
        (self.since_batch + room) / (INTERACTIVE_A_BATCH + 1)
    }

    fn note(&mut self, tickets: &[Delivered]) {
        let batch = tickets.iter().filter(|(ticket, _)| ticket.priority == Priority::Batch).count();
        let since = if batch > 0 { 0 } else { self.since_batch + tickets.len() };
        self.since_batch = since.min(INTERACTIVE_A_BATCH);
    }
}

impl RedisBroker {
    pub(super) async fn read_tickets(&self, room: usize) -> Result<Vec<Ticket>, BrokerError> {
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
        let tickets = self.read_on(&mut connection, &mut reader, room).await?;
        reader.connection = Some(connection);
        Ok(tickets)
    }

    async fn read_on(
        &self,
        connection: &mut MultiplexedConnection,
        reader: &mut Reader,
        room: usize,
    ) -> Result<Vec<Ticket>, BrokerError> {
        let mut tickets = Vec::new();
        if reader.recovering {
            tickets = self.claim_pending(Whose::Ours, room).await?;
            reader.recovering = tickets.len() == room;
        }
        let outlook = self.look_after_waiting(&mut reader.waiting).await?;
        if outlook.paused {
            if tickets.is_empty() {
                tokio::time::sleep(outlook.block).await;
            }
            return Ok(self.held.take(tickets));
        }
        reader.first_shard += 1;
        let streams = self.streams_from(reader.first_shard);
        if tickets.len() < room {
            let room = room - tickets.len();
            tickets.extend(self.read_shares(connection, &streams, room, reader.batch_share(room)).await?);
        }
        if tickets.is_empty() {
            // COUNT is per stream.
            let command = self.read_command(&streams, room.div_ceil(streams.len()), Some(outlook.block));
            let reply = command.query_async(connection).await;
            tickets = self.deliver(reply).await?;
        }
        // Several streams may have answered the blocking read at once.
        for (ticket, _) in tickets.split_off(room.min(tickets.len())) {
            self.return_unleased(&ticket).await?;
        }
        reader.note(&tickets);
        Ok(self.held.take(tickets))
    }

    /// What is there at once: `share` tickets of batch agents first, `room` in all. One round trip; and one more for
    /// each stream that may have more than its part, while another left some of its own.
    async fn read_shares(
        &self,
        connection: &mut MultiplexedConnection,
        streams: &[&ReadyStream],
        room: usize,
        share: usize,
    ) -> Result<Vec<Delivered>, BrokerError> {
        let shards = usize::from(self.settings.shards.get());
        let part = |stream: &ReadyStream| match stream.priority {
            Priority::Batch => share / shards,
            Priority::Interactive => (room - share) / shards,
        };
        let asked: Vec<&ReadyStream> = streams.iter().copied().filter(|stream| part(stream) > 0).collect();
        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        for stream in &asked {
            pipe.add_command(self.read_command(&[stream], part(stream), None));
        }
        let replies: Vec<RedisResult<Option<StreamReadReply>>> = if asked.is_empty() {
            Vec::new()
        } else {
            match pipe.query_async(connection).await {
                Ok(replies) => replies,
                Err(e) => return self.deliver(Err(e)).await,
            }
        };
        let (mut tickets, mut drained) = (Vec::new(), HashSet::new());
        for (stream, reply) in asked.iter().zip(replies) {
            let delivered = self.deliver(reply).await?;
            if delivered.len() < part(stream) {
                drained.insert(stream.key.as_str());
            }
            tickets.extend(delivered);
        }
        for stream in streams.iter().filter(|stream| !drained.contains(stream.key.as_str())) {
            if tickets.len() < room {
                let command = self.read_command(&[stream], room - tickets.len(), None);
                let reply = command.query_async(connection).await;
                tickets.extend(self.deliver(reply).await?);
            }
        }
        Ok(tickets)
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

    /// The tickets of a reply.
    async fn deliver(
        &self,
        reply: RedisResult<Option<StreamReadReply>>,
    ) -> Result<Vec<Delivered>, BrokerError> {
        let reply = match reply {
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
        let mut tickets = Vec::new();
        for delivered in reply.map(|reply| reply.keys).unwrap_or_default() {
            if let Some(stream) = self.streams.iter().find(|stream| stream.key == delivered.key) {
                tickets.extend(self.tickets(stream, delivered.ids).await?);
            }
        }
        Ok(tickets)
    }

    /// Reads entries of a ready stream as tickets; what is none (a foreign entry) is deleted.
    pub(super) async fn tickets(
        &self,
        stream: &ReadyStream,
        entries: Vec<StreamId>,
    ) -> Result<Vec<Delivered>, BrokerError> {
        let mut tickets = Vec::new();
        for entry in entries {
            if let Some(agent) = entry.get::<String>(FIELD_AGENT) {
                let head = entry.get::<String>(FIELD_HEAD).and_then(|text| BacklogEntry::parse(&text));
                let (agent, entry) = (AgentId::from_wire(agent), entry.id);
                let (shard, priority) = (stream.shard, stream.priority);
                tickets.push((Ticket { agent, priority, shard, entry }, head));
                continue;
            }
            tracing::warn!(stream = stream.key, entry = entry.id, "deleting an entry that names no agent");
            let mut connection = self.server.connection().await?;
            let mut delete = redis::pipe();
            delete.cmd("XACK").arg(&stream.key).arg(GROUP).arg(&entry.id).ignore();
            delete.cmd("XDEL").arg(&stream.key).arg(&entry.id).ignore();
            delete.exec_async(&mut connection).await.map_err(|e| self.server.error("read", &e))?;
        }
        Ok(tickets)
    }
}
