//! Reading tickets.
//!
//! A lost reply may still have delivered: whenever a read did not come to its end (an error, or its future was dropped), the
//! next one starts on a new connection, and first takes what is pending to this worker and not in its hands. Each such entry is
//! looked at once: one that cannot be leased must not be read again and again.
//!
//! A stream that is broken (another type under its key, an operator's mistake) is told, and costs the others nothing.

use std::collections::HashMap;
use std::time::Duration;

use turnmill_redis::steps::Prepare;
use turnmill_redis::{Blocking, Delivered, Fault, ReadyStream, Share};
use turnmill_schema::Priority;

use super::{Broker, BrokerError, FirstFault, RedisBroker, Ticket, TicketId};
use crate::broker::fairness::Fairness;

/// How long a read waits on the server.
const BLOCK: Duration = Duration::from_millis(2000);
/// How long a paused queue is left alone.
const PAUSE_BLOCK: Duration = Duration::from_millis(250);
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
    fairness: Fairness,
    broken: Broken,
}

/// The ready streams that refused when they were last asked, by key.
#[derive(Debug, Default)]
struct Broken(HashMap<String, Fault>);

impl Broken {
    /// What the stream answered; none if it has a fault of its own, which is told once. An outage is that of all of them.
    fn keep<T>(&mut self, stream: &ReadyStream, answer: Result<T, Fault>) -> Result<Option<T>, Fault> {
        match answer {
            Ok(answer) => {
                if self.0.remove(&stream.key).is_some() {
                    tracing::info!(stream = stream.key, "a ready stream is read again");
                }
                Ok(Some(answer))
            }
            Err(outage) if outage.is_outage() => Err(outage),
            Err(fault) => {
                if !self.0.contains_key(&stream.key) {
                    tracing::warn!(stream = stream.key, error = %fault, "a ready stream cannot be read; the others are");
                }
                self.0.insert(stream.key.clone(), fault);
                Ok(None)
            }
        }
    }

    fn fault_of(&self, stream: &ReadyStream) -> Option<&Fault> {
        self.0.get(&stream.key)
    }
}

/// What a read found so far.
#[derive(Debug, Default)]
struct Read<'a> {
    tickets: Vec<Ticket>,
    /// Streams that had less than they were asked for.
    drained: Vec<&'a ReadyStream>,
}

impl Read<'_> {
    fn count(&self, priority: Priority) -> usize {
        self.tickets.iter().filter(|ticket| ticket.id.priority == priority).count()
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
                self.prepare_again().await?;
                connection
            }
        };
        let tickets = self.read_on(&mut connection, &mut reader, room).await?;
        reader.connection = Some(connection);
        reader.fairness.note(tickets.iter().map(|ticket| ticket.id.priority));
        Ok(tickets)
    }

    /// Creates what is missing of the queue.
    pub(super) async fn prepare(&self) -> Result<(), Fault> {
        let mut fault = FirstFault::default();
        for keys in self.queue.all_keys() {
            fault.keep(self.server.run(&keys, &Prepare).await)?;
        }
        fault.or(())
    }

    /// The same for a queue that is served already: what a shard refuses shows when its streams are read.
    async fn prepare_again(&self) -> Result<(), Fault> {
        match self.prepare().await {
            Err(outage) if outage.is_outage() => Err(outage),
            Ok(()) | Err(_) => Ok(()),
        }
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
        let mut tickets = self.recover(&mut reader.to_recover, &mut reader.broken, room).await?;
        reader.first_shard += 1;
        let streams = self.streams_from(reader.first_shard);
        if tickets.len() < room {
            let room = room - tickets.len();
            let shares = (room, reader.fairness.batch_share(room));
            tickets.extend(self.read_shares(connection, &mut reader.broken, &streams, shares).await?);
        }
        if tickets.is_empty() {
            // All of them have been asked by now.
            let is_whole = |stream: &&ReadyStream| reader.broken.fault_of(stream).is_none();
            let whole: Vec<&ReadyStream> = streams.iter().copied().filter(is_whole).collect();
            if whole.is_empty()
                && let Some(fault) = streams.first().and_then(|stream| reader.broken.fault_of(stream))
            {
                return Err(fault.clone().into());
            }
            // COUNT is per stream.
            let count = room.div_ceil(whole.len());
            let read = connection.wait_for_tickets(&self.settings.worker, &whole, count, BLOCK).await;
            let read = match read {
                Err(fault) if is_groupless(&fault) => {
                    self.prepare().await?;
                    Vec::new()
                }
                read => read?,
            };
            for (place, delivered) in read {
                tickets.extend(self.take(whole[place], delivered).await?);
            }
        }
        // Several streams may have answered the blocking read at once.
        for ticket in tickets.split_off(room.min(tickets.len())) {
            self.return_ticket(&ticket).await?;
        }
        Ok(tickets)
    }

    /// What is there at once: `share` tickets of batch agents first, `room` in all. One round trip, in which every priority's
    /// share is spread over its streams. One more for each stream that may have more than its part, while another left some of
    /// its own: first for the share of its own priority, then for what nobody else needs.
    async fn read_shares(
        &self,
        connection: &mut Blocking,
        broken: &mut Broken,
        streams: &[&ReadyStream],
        (room, share): (usize, usize),
    ) -> Result<Vec<Ticket>, BrokerError> {
        let shards = usize::from(self.settings.shards.get());
        let of_priority = |priority| match priority {
            Priority::Batch => share,
            Priority::Interactive => room - share,
        };
        let spread = streams.iter().enumerate().map(|(at, stream)| {
            let all = of_priority(stream.priority);
            Share { stream, count: all / shards + usize::from(at % shards < all % shards) }
        });
        let spread: Vec<Share<'_>> = spread.filter(|share| share.count > 0).collect();
        let mut read = Read::default();
        self.read_each(connection, broken, &spread, &mut read).await?;
        // With more shards than tickets of a priority, most of its streams were asked for none.
        let of = |priority| streams.iter().filter(move |stream| stream.priority == priority);
        let own = [Priority::Batch, Priority::Interactive]
            .into_iter()
            .flat_map(|priority| of(priority).map(move |stream| (*stream, Some(priority))));
        let asked: Vec<_> = own.chain(streams.iter().map(|stream| (*stream, None))).collect();
        for (stream, priority) in asked {
            let count = match priority {
                Some(priority) => of_priority(priority).saturating_sub(read.count(priority)),
                None => room.saturating_sub(read.tickets.len()),
            };
            if count > 0 && !read.drained.contains(&stream) {
                self.read_each(connection, broken, &[Share { stream, count }], &mut read).await?;
            }
        }
        Ok(read.tickets)
    }

    /// One round trip.
    async fn read_each<'a>(
        &self,
        connection: &mut Blocking,
        broken: &mut Broken,
        shares: &[Share<'a>],
        read: &mut Read<'a>,
    ) -> Result<(), BrokerError> {
        let answers = connection.read_tickets(&self.settings.worker, shares).await?;
        for (share, answer) in shares.iter().zip(answers) {
            let answer = match answer {
                Err(fault) if is_groupless(&fault) => {
                    let prepared = self.server.run(&self.queue.keys(share.stream.shard), &Prepare).await;
                    prepared.map(|_| Vec::new())
                }
                answer => answer,
            };
            let delivered = broken.keep(share.stream, answer)?.unwrap_or_default();
            if delivered.len() < share.count {
                read.drained.push(share.stream);
            }
            read.tickets.extend(self.take(share.stream, delivered).await?);
        }
        Ok(())
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
        broken: &mut Broken,
        room: usize,
    ) -> Result<Vec<Ticket>, BrokerError> {
        let mut tickets = Vec::new();
        while let Some((place, from)) = to_recover.last_mut()
            && tickets.len() < room
        {
            let stream = &self.streams[*place];
            let page = self.recover_page(stream, from, room - tickets.len()).await;
            match page {
                Ok((found, Some(next))) => {
                    tickets.extend(found);
                    *from = next;
                }
                Ok((found, None)) => {
                    tickets.extend(found);
                    drop(to_recover.pop());
                }
                Err(fault) => {
                    broken.keep::<()>(stream, Err(fault))?;
                    // When it can be read again, what was lost there is made runnable again after a lease.
                    drop(to_recover.pop());
                }
            }
        }
        Ok(tickets)
    }

    /// The same of one page of a stream, and where the next page starts, if there is one.
    async fn recover_page(
        &self,
        stream: &ReadyStream,
        from: &str,
        room: usize,
    ) -> Result<(Vec<Ticket>, Option<String>), Fault> {
        let worker = &self.settings.worker;
        let mut lost = self.server.pending_tickets(stream, 0, from, PENDING_A_PAGE, Some(worker)).await?;
        let is_last = lost.len() < PENDING_A_PAGE;
        let looked_at = lost.last().cloned();
        let id = |entry: &str| TicketId {
            shard: stream.shard,
            priority: stream.priority,
            entry: entry.to_owned(),
        };
        lost.retain(|entry| !self.holdings.has(&id(entry)));
        let rest = lost.split_off(lost.len().min(room));
        // Entries from the last one looked at on; the exclusive form of a range's start.
        let next = if rest.is_empty() { looked_at.filter(|_| !is_last) } else { lost.last().cloned() };
        let claimed = self.server.claim_tickets(stream, worker, 0, &lost).await?;
        let tickets = self.take(stream, claimed).await?;
        Ok((tickets, next.map(|entry| format!("({entry}"))))
    }
}

/// Whether a stream has no group: an operator deleted it, or the server lost it. It is made anew, and has nothing yet.
fn is_groupless(fault: &Fault) -> bool {
    matches!(fault, Fault::Refused { passing: true, reason, .. } if reason.contains("NOGROUP"))
}
