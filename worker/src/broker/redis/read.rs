//! Reading tickets.
//!
//! A lost reply may still have delivered: whenever a read did not come to its end (an error, or its future was dropped), the
//! next one starts on a new connection, and first takes what is pending to this worker and not in its hands. Each such entry is
//! looked at once: one that cannot be leased must not be read again and again.

use std::time::Duration;

use turnmill_redis::steps::Prepare;
use turnmill_redis::{Blocking, Delivered, Fault, ReadyStream, Share};
use turnmill_schema::Priority;

use super::{Broker, BrokerError, RedisBroker, Ticket, TicketId};

/// How long a read waits on the server.
const BLOCK: Duration = Duration::from_millis(2000);
/// How long a paused queue is left alone.
const PAUSE_BLOCK: Duration = Duration::from_millis(250);
/// After so many tickets of interactive agents one of a batch agent comes first, if one waits: so neither starves.
const INTERACTIVE_A_BATCH: usize = 3;
/// Pending entries looked at in one step.
const PENDING_A_PAGE: usize = 256;

/// The state of the blocking read.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Absent before the first read and while one is under way.
    connection: Option<Blocking>,
    /// The ready streams that may hold tickets whose reply was lost, each with the last entry looked at.
    to_recover: Vec<(usize, String)>,
    /// Which shard is asked first; goes round, so that no shard starves.
    first_shard: usize,
    /// Interactive tickets since the last one of a batch agent.
    since_batch: usize,
}

impl Reader {
    /// How many of `room` tickets are asked of the batch streams first.
    fn batch_share(&self, room: usize) -> usize {
        (self.since_batch + room) / (INTERACTIVE_A_BATCH + 1)
    }

    fn note(&mut self, tickets: &[Ticket]) {
        let batch = tickets.iter().filter(|ticket| ticket.id.priority == Priority::Batch).count();
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
                reader.to_recover = (0..self.streams.len()).map(|place| (place, "-".to_owned())).collect();
                let connection = self.server.blocking(BLOCK).await?;
                // A server that comes back may have forgotten the groups, and recovering asks for them first.
                self.prepare().await?;
                connection
            }
        };
        let tickets = self.read_on(&mut connection, &mut reader, room).await?;
        reader.connection = Some(connection);
        reader.note(&tickets);
        Ok(tickets)
    }

    /// Creates what is missing of the queue.
    pub(super) async fn prepare(&self) -> Result<(), Fault> {
        for keys in self.queue.all_keys() {
            self.server.run(&keys, &Prepare).await?;
        }
        Ok(())
    }

    async fn look_whether_paused(&self) -> Result<(), Fault> {
        for keys in self.queue.all_keys() {
            self.set_paused(keys.shard(), self.server.is_paused(&keys).await?);
        }
        Ok(())
    }

    async fn read_on(
        &self,
        connection: &mut Blocking,
        reader: &mut Reader,
        room: usize,
    ) -> Result<Vec<Ticket>, BrokerError> {
        if self.is_paused() {
            tokio::time::sleep(PAUSE_BLOCK).await;
            self.look_whether_paused().await?;
            return Ok(Vec::new());
        }
        let mut tickets = self.recover(&mut reader.to_recover, room).await?;
        reader.first_shard += 1;
        let streams = self.streams_from(reader.first_shard);
        if tickets.len() < room {
            let room = room - tickets.len();
            tickets.extend(self.read_shares(connection, &streams, room, reader.batch_share(room)).await?);
        }
        if tickets.is_empty() {
            // COUNT is per stream.
            let count = room.div_ceil(streams.len());
            let read = connection.wait_for_tickets(&self.settings.worker, &streams, count, BLOCK).await;
            for (place, delivered) in self.or_prepared(read).await?.unwrap_or_default() {
                tickets.extend(self.take(streams[place], delivered).await?);
            }
        }
        // Several streams may have answered the blocking read at once.
        for ticket in tickets.split_off(room.min(tickets.len())) {
            self.return_ticket(&ticket).await?;
        }
        Ok(tickets)
    }

    /// What is there at once: `share` tickets of batch agents first, `room` in all. One round trip; and one more for each stream
    /// that may have more than its part, while another left some of its own.
    async fn read_shares(
        &self,
        connection: &mut Blocking,
        streams: &[&ReadyStream],
        room: usize,
        share: usize,
    ) -> Result<Vec<Ticket>, BrokerError> {
        let shards = usize::from(self.settings.shards.get());
        let part = |stream: &ReadyStream| match stream.priority {
            Priority::Batch => share / shards,
            Priority::Interactive => (room - share) / shards,
        };
        let mut shares: Vec<Share<'_>> =
            streams.iter().map(|stream| Share { stream, count: part(stream) }).collect();
        shares.retain(|share| share.count > 0);
        let (mut tickets, mut drained) = (Vec::new(), Vec::new());
        let answers = connection.read_tickets(&self.settings.worker, &shares).await?;
        for (share, answer) in shares.iter().zip(answers) {
            let delivered = self.or_prepared(answer).await?.unwrap_or_default();
            if delivered.len() < share.count {
                drained.push(share.stream);
            }
            tickets.extend(self.take(share.stream, delivered).await?);
        }
        for stream in streams.iter().filter(|stream| !drained.contains(stream)) {
            if tickets.len() < room {
                let rest = [Share { stream, count: room - tickets.len() }];
                let answer = connection
                    .read_tickets(&self.settings.worker, &rest)
                    .await?
                    .pop()
                    .unwrap_or(Ok(Vec::new()));
                let delivered = self.or_prepared(answer).await?.unwrap_or_default();
                tickets.extend(self.take(stream, delivered).await?);
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

    /// The answer of a stream. One whose group is gone (an operator deleted it) is made anew, and has nothing yet.
    async fn or_prepared<T>(&self, answer: Result<T, Fault>) -> Result<Option<T>, Fault> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(Fault::Refused { passing: true, reason, .. }) if reason.contains("NOGROUP") => {
                self.prepare().await?;
                Ok(None)
            }
            Err(fault) => Err(fault),
        }
    }

    /// Takes entries of a ready stream into this worker's hands. One that is no ticket is removed.
    async fn take(&self, stream: &ReadyStream, delivered: Vec<Delivered>) -> Result<Vec<Ticket>, Fault> {
        let mut tickets = Vec::new();
        for entry in delivered {
            match entry {
                Delivered::Ticket { entry, agent, head } => {
                    let id = TicketId { shard: stream.shard, priority: stream.priority, entry };
                    tickets.extend(self.holdings.take(id, agent, head));
                }
                Delivered::Foreign { entry } => {
                    tracing::warn!(stream = stream.key, entry, "removing an entry that names no agent");
                    self.server.drop_foreign(stream, &entry).await?;
                }
            }
        }
        Ok(tickets)
    }

    /// Takes at most `room` of the entries that were delivered to this worker and are not in its hands.
    async fn recover(
        &self,
        to_recover: &mut Vec<(usize, String)>,
        room: usize,
    ) -> Result<Vec<Ticket>, BrokerError> {
        let mut tickets = Vec::new();
        let worker = &self.settings.worker;
        while let Some((place, from)) = to_recover.last_mut()
            && tickets.len() < room
        {
            let stream = &self.streams[*place];
            let mut lost = self.server.pending_tickets(stream, 0, from, PENDING_A_PAGE, Some(worker)).await?;
            let is_last = lost.len() < PENDING_A_PAGE;
            let id = |entry: &str| TicketId {
                shard: stream.shard,
                priority: stream.priority,
                entry: entry.to_owned(),
            };
            let looked_at = lost.last().cloned();
            lost.retain(|entry| !self.holdings.has(&id(entry)));
            let rest = lost.split_off(lost.len().min(room - tickets.len()));
            // Entries from the last one looked at on; the exclusive form of a range's start.
            let next = if rest.is_empty() { looked_at } else { lost.last().cloned() };
            let claimed = self.server.claim_tickets(stream, worker, 0, &lost).await?;
            tickets.extend(self.take(stream, claimed).await?);
            match next {
                Some(entry) if !is_last || !rest.is_empty() => *from = format!("({entry}"),
                _ => drop(to_recover.pop()),
            }
        }
        Ok(tickets)
    }
}
