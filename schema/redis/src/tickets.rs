//! Ready streams: reading tickets, finding those that are pending, and taking them over.

use std::time::Duration;

use redis::streams::{
    StreamClaimReply, StreamId as RawEntry, StreamPendingCountReply, StreamRangeReply, StreamReadReply,
};
use redis::{Cmd, RedisResult};
use turnmill_schema::keys::{BacklogEntry, FIELD_AGENT, FIELD_HEAD, GROUP};
use turnmill_schema::{AgentId, Priority};

use crate::blocking::Blocking;
use crate::fault::Fault;
use crate::server::Server;

/// A ready stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyStream {
    /// Its key.
    pub key: String,
    /// The shard it belongs to.
    pub shard: u16,
    /// The priority of the agents in it.
    pub priority: Priority,
}

/// An entry of a ready stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// A ticket: an agent can run.
    Ticket {
        /// The entry's id.
        entry: String,
        /// The agent.
        agent: AgentId,
        /// The head of its backlog when the ticket was made.
        head: Option<BacklogEntry>,
    },
    /// Somebody else's entry, or another version's.
    Foreign {
        /// The entry's id.
        entry: String,
    },
}

impl From<RawEntry> for Delivered {
    fn from(raw: RawEntry) -> Self {
        let head = raw.get::<String>(FIELD_HEAD).and_then(|text| BacklogEntry::parse(&text));
        match raw.get::<String>(FIELD_AGENT) {
            Some(agent) => Self::Ticket { entry: raw.id, agent: AgentId::from_wire(agent), head },
            None => Self::Foreign { entry: raw.id },
        }
    }
}

/// What is asked of one ready stream.
#[derive(Clone, Copy, Debug)]
pub struct Share<'a> {
    /// Which.
    pub stream: &'a ReadyStream,
    /// Tickets at most.
    pub count: usize,
}

const STEP: &str = "read";

fn read_command<'a>(
    worker: &str,
    streams: impl Iterator<Item = &'a ReadyStream> + Clone,
    count: usize,
    block: Option<Duration>,
) -> Cmd {
    let mut command = redis::cmd("XREADGROUP");
    command.arg("GROUP").arg(GROUP).arg(worker).arg("COUNT").arg(count);
    if let Some(block) = block {
        // 0 would wait for ever.
        command.arg("BLOCK").arg((block.as_millis() as u64).max(1));
    }
    command.arg("STREAMS");
    for stream in streams.clone() {
        command.arg(&stream.key);
    }
    for _ in streams {
        command.arg(">");
    }
    command
}

impl Blocking {
    /// Reads new tickets of each stream without waiting, in one round trip. One answer for each share: a stream that is broken,
    /// or has no group yet, does not keep the others from theirs.
    ///
    /// # Errors
    /// See [`Fault`]: of the whole call, or of one stream. After an error tickets may have been delivered.
    pub async fn read_tickets(
        &mut self,
        worker: &str,
        shares: &[Share<'_>],
    ) -> Result<Vec<Result<Vec<Delivered>, Fault>>, Fault> {
        if shares.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        for share in shares {
            pipe.add_command(read_command(worker, std::iter::once(share.stream), share.count, None));
        }
        let replies: Vec<RedisResult<Option<StreamReadReply>>> = self.ask_all(STEP, &pipe).await?;
        let of_stream = |reply: Option<StreamReadReply>| {
            let streams = reply.map(|reply| reply.keys).unwrap_or_default();
            streams.into_iter().flat_map(|stream| stream.ids).map(Delivered::from).collect()
        };
        let read = |reply: RedisResult<Option<StreamReadReply>>| {
            reply.map(of_stream).map_err(|error| self.server().classify(STEP, &error))
        };
        Ok(replies.into_iter().map(read).collect())
    }

    /// Waits up to `block` for new tickets of any of the streams; up to `count` of each. Pairs of a stream's place in `streams`
    /// and what it had.
    ///
    /// # Errors
    /// See [`Fault`]. After an error tickets may have been delivered.
    pub async fn wait_for_tickets(
        &mut self,
        worker: &str,
        streams: &[&ReadyStream],
        count: usize,
        block: Duration,
    ) -> Result<Vec<(usize, Vec<Delivered>)>, Fault> {
        let command = read_command(worker, streams.iter().copied(), count, Some(block));
        let reply: Option<StreamReadReply> = self.ask(STEP, &command).await?;
        let place = |key: &str| streams.iter().position(|stream| stream.key == key);
        let keys = reply.map(|reply| reply.keys).unwrap_or_default().into_iter();
        let read = keys.filter_map(|stream| {
            Some((place(&stream.key)?, stream.ids.into_iter().map(Delivered::from).collect()))
        });
        Ok(read.collect())
    }
}

impl Server {
    /// The entries of tickets that were delivered and not renewed for `idle_ms`, at most `count` of them, from entry `from` on
    /// (`-`: the first), of all workers or of one.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn pending_tickets(
        &self,
        stream: &ReadyStream,
        idle_ms: u64,
        from: &str,
        count: usize,
        worker: Option<&str>,
    ) -> Result<Vec<String>, Fault> {
        let mut list = redis::cmd("XPENDING");
        list.arg(&stream.key).arg(GROUP).arg("IDLE").arg(idle_ms).arg(from).arg("+").arg(count).arg(worker);
        let pending: StreamPendingCountReply = self.ask("pending", &list).await?;
        Ok(pending.ids.into_iter().map(|found| found.id).collect())
    }

    /// Takes tickets over that were not renewed for `idle_ms`. Another worker that takes one first keeps it.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn claim_tickets(
        &self,
        stream: &ReadyStream,
        worker: &str,
        idle_ms: u64,
        entries: &[String],
    ) -> Result<Vec<Delivered>, Fault> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut claim = redis::cmd("XCLAIM");
        claim.arg(&stream.key).arg(GROUP).arg(worker).arg(idle_ms).arg(entries);
        let claimed: StreamClaimReply = self.ask("claim", &claim).await?;
        Ok(claimed.ids.into_iter().map(Delivered::from).collect())
    }

    /// Removes an entry that is no ticket from a ready stream.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn drop_foreign(&self, stream: &ReadyStream, entry: &str) -> Result<(), Fault> {
        let mut delete = redis::pipe();
        delete.cmd("XACK").arg(&stream.key).arg(GROUP).arg(entry).ignore();
        delete.cmd("XDEL").arg(&stream.key).arg(entry).ignore();
        self.ask_all(STEP, &delete).await
    }
}

impl Server {
    /// Of each of the entries of a ready stream, the agent it names; none if the entry is gone or no ticket.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn agents_of_tickets(
        &self,
        stream: &ReadyStream,
        entries: &[String],
    ) -> Result<Vec<Option<AgentId>>, Fault> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for entry in entries {
            pipe.cmd("XRANGE").arg(&stream.key).arg(entry).arg(entry);
        }
        let found: Vec<StreamRangeReply> = self.ask_all("pending", &pipe).await?;
        let agent = |found: StreamRangeReply| match found.ids.into_iter().next().map(Delivered::from) {
            Some(Delivered::Ticket { agent, .. }) => Some(agent),
            _ => None,
        };
        Ok(found.into_iter().map(agent).collect())
    }
}
