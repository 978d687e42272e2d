//! The turns of all agents, as they end: read plainly, or as a consumer group so that several readers share them and
//! none is missed while all are away.
//!
//! Invariants: a blocking read has a connection of its own; after any error, or a read that was dropped, a group's reader first
//! reads what was delivered to it and not handed out. A tenant's group is its own: what it acknowledges, no other tenant's reader was to get. No more is
//! read than is asked for, because what is read is kept from the group's other consumers. Redis keeps about the newest ten
//! thousand ends: who is away for longer misses some.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use serde::Serialize;
use turnmill_redis::steps::{ConsumerGroup, CreateGroup, RemoveConsumers};
use turnmill_redis::{Blocking, Claimed, Consumer, EndedRecord, Entry, Fault, Found, Server};
use turnmill_schema::keys::{Keys, events_group};
use turnmill_schema::{AgentName, End, Name, StreamId, TenantName, TurnId};

use crate::claims::{Claims, REMOVE_AFTER};
use crate::client::Client;
use crate::connection::{Connection, Patience, passes};
use crate::error::ClientError;
use crate::operate::Scope;
use crate::passed_by::PassedBy;

pub use crate::claims::CLAIM_AFTER;

/// Entries in one reply at most.
const COUNT: u64 = 100;

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
    pub agent: Option<AgentName>,
    /// Its terminal result.
    #[serde(flatten)]
    pub end: End,
}

/// Which ends to read, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventsQuery {
    /// Of which tenants.
    pub scope: Scope,
    /// As which consumer of which group; none: alone.
    pub membership: Option<Membership>,
    /// Start after this entry; none: with what comes from now on. It has no effect on a group that exists.
    pub from: Option<StreamId>,
    /// How many ends are read at most, from Redis too; none: without end.
    pub count: Option<u64>,
}

impl EventsQuery {
    /// Ends of the client's tenant, shared with the other consumers of `group`. None is missed while all of them are away.
    pub fn group(group: Name, consumer: Name) -> Self {
        Self { membership: Some(Membership { group, consumer }), ..Self::default() }
    }
}

/// A consumer of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The group; made if it does not exist. Groups of one name are different groups for each tenant, and for all tenants
    /// together.
    pub group: Name,
    /// The consumer's name in it.
    pub consumer: Name,
}

/// Reads ended turns one by one; see [`Client::events`].
pub struct Events {
    connection: Connection,
    keys: Keys,
    /// Whose ends are handed out.
    scope: Scope,
    tenant: TenantName,
    member: Option<Member>,
    /// How many may still be handed out.
    left: u64,
    /// Where to start; none: with what comes from now on. Of a group only when it is made.
    from: Option<StreamId>,
    /// The last entry read, or after which the reading starts; of a reader without a group.
    last: Option<StreamId>,
    /// After which entry those are still to be read that were delivered to this consumer before; none: all were read.
    own: Option<StreamId>,
    claims: Claims,
    /// Ends of the group that were read here and are not acknowledged. Who is slow can claim them from itself.
    unacknowledged: BTreeSet<StreamId>,
    /// What is to be acknowledged without being handed out: nobody else of the group is to get it either.
    done: Vec<StreamId>,
    passed_by: PassedBy,
    /// None while it is read from: if the read's future is dropped, what it had delivered by then is looked for.
    reader: Option<Blocking>,
    lost: Option<Patience>,
    ready: VecDeque<EndedTurn>,
}

/// A consumer and its group as Redis knows it.
struct Member {
    group: String,
    consumer: Name,
}

impl Client {
    /// Turns as they end.
    ///
    /// ```no_run
    /// use turnmill_client::Client;
    /// use turnmill_client::events::EventsQuery;
    ///
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut ends = client.events(EventsQuery::group("billing".parse()?, "billing-1".parse()?));
    /// while let Some(ended) = ends.next().await? {
    ///     println!("{} ended as {}", ended.turn, ended.end.outcome.as_str());
    ///     ends.acknowledge(ended.id).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// As a consumer of a group, entries are handed out again until [`Events::acknowledge`] was called for
    /// them: to this consumer when it starts anew, or to another one after [`CLAIM_AFTER`].
    pub fn events(&self, query: EventsQuery) -> Events {
        let EventsQuery { scope, membership, from, count } = query;
        let tenant = self.settings.tenant.clone();
        let member = membership.map(|Membership { group, consumer }| {
            let group = events_group((scope == Scope::Tenant).then_some(&tenant), &group);
            Member { group, consumer }
        });
        Events {
            connection: self.connection.clone(),
            keys: self.queue.keys(0),
            scope,
            tenant,
            member,
            left: count.unwrap_or(u64::MAX),
            from,
            last: None,
            own: None,
            claims: Claims::new(Instant::now()),
            unacknowledged: BTreeSet::new(),
            done: Vec::new(),
            passed_by: PassedBy::of_events(),
            reader: None,
            lost: None,
            ready: VecDeque::new(),
        }
    }
}

impl Events {
    /// The next one, waiting for it; none: those that were asked for have been handed out. Fails if Redis is away for longer than
    /// [`crate::ClientBuilder::retry_for`]. An entry of somebody else, or of another version, is passed by: in a group it stays
    /// pending, for a consumer that can read it. No end is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Option<EndedTurn>, ClientError> {
        while self.left > 0 {
            self.acknowledge_done().await?;
            if let Some(ended) = self.ready.pop_front() {
                self.left -= 1;
                return Ok(Some(ended));
            }
            match self.step().await {
                Ok(entries) => self.take(entries),
                Err(fault) => self.lose(fault).await?,
            }
        }
        Ok(None)
    }

    /// Says that the entry was dealt with, so that its group does not hand it out again.
    pub async fn acknowledge(&mut self, id: StreamId) -> Result<(), ClientError> {
        self.acknowledge_all(&[id]).await
    }

    async fn acknowledge_done(&mut self) -> Result<(), ClientError> {
        if !self.done.is_empty() {
            self.acknowledge_all(&self.done.clone()).await?;
            self.done.clear();
        }
        Ok(())
    }

    async fn acknowledge_all(&mut self, ids: &[StreamId]) -> Result<(), ClientError> {
        let Some(Member { group, .. }) = &self.member else { return Ok(()) };
        self.connection.ask(|server| server.acknowledge_events(&self.keys, group, ids)).await?;
        ids.iter().for_each(|id| {
            self.unacknowledged.remove(id);
        });
        Ok(())
    }

    async fn step(&mut self) -> Result<Vec<Entry<EndedRecord>>, Fault> {
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => {
                self.begin().await?;
                self.connection.blocking(self.connection.block()).await?
            }
        };
        let (last, block) = (self.last.unwrap_or(StreamId::START), self.connection.block());
        let count = self.left.min(COUNT) as usize;
        let entries = match &self.member {
            None => reader.events_after(&self.keys, last, count, block).await?,
            Some(Member { group, consumer }) => {
                let consumer = Consumer { group, consumer };
                if let Some(after) = self.own {
                    let own = reader.delivered_events(&self.keys, consumer, after, count).await?;
                    self.own = own.last().map(|entry| entry.id);
                    own
                } else if let Some(from) = self.claims.due(Instant::now()) {
                    let server = self.connection.server();
                    if self.claims.is_removal_due(Instant::now()) {
                        remove_gone(server, &self.keys, group).await?;
                        self.claims.removed(Instant::now());
                    }
                    let claim = server.claim_events(&self.keys, consumer, CLAIM_AFTER, from, count);
                    let Claimed { ends, next } = claim.await?;
                    self.claims.looked(next, Instant::now());
                    ends
                } else {
                    reader.new_events(&self.keys, consumer, count, block).await?
                }
            }
        };
        self.reader = Some(reader);
        if self.lost.take().is_some() {
            tracing::info!("reached Redis again; reading on");
        }
        Ok(entries)
    }

    /// Makes the group, or finds out where "from now on" starts: asked once, so that nothing is missed between reads.
    async fn begin(&mut self) -> Result<(), Fault> {
        let server = self.connection.server();
        if let Some(Member { group, .. }) = &self.member {
            let after = self.from.map_or_else(|| "$".to_owned(), |id| id.to_string());
            server.run(&self.keys, &CreateGroup { group, after: &after }).await?;
            self.own = Some(StreamId::START);
        } else if self.last.is_none() {
            self.last = match self.from {
                Some(from) => Some(from),
                None => Some(server.newest_event(&self.keys).await?),
            };
        }
        Ok(())
    }

    fn take(&mut self, entries: Vec<Entry<EndedRecord>>) {
        for Entry { id, found } in entries {
            self.last = Some(id);
            match found {
                Found::Trimmed => {
                    // Trimmed while it was pending: nobody can deal with it any more.
                    tracing::warn!(entry = %id, "an end that was delivered before is trimmed; it is passed over");
                    self.done.push(id);
                }
                // Read here before: claimed from itself, or delivered before a connection was lost.
                _ if self.member.is_some() && !self.unacknowledged.insert(id) => {}
                Found::Ours(record) if self.scope.covers(&self.tenant, record.agent.tenant()) => {
                    self.ready.push_back(EndedTurn::of(id, record));
                }
                Found::Ours(_) => self.done.push(id),
                Found::Foreign(reason) => self.passed_by.note(id, &reason),
            }
        }
    }

    /// Waits before the next try, or gives up.
    async fn lose(&mut self, fault: Fault) -> Result<(), ClientError> {
        if !passes(&fault) {
            return Err(fault.into());
        }
        let patience = self.lost.get_or_insert_with(|| {
            tracing::warn!("{fault}; trying again");
            self.connection.patience()
        });
        if patience.pause().await { Ok(()) } else { Err(fault.into()) }
    }
}

/// Takes consumers that are gone off the group's list. A user who may not do that reads all the same.
async fn remove_gone(server: &Server, keys: &Keys, group: &str) -> Result<(), Fault> {
    let silent_ms = REMOVE_AFTER.as_millis() as u64;
    let remove = RemoveConsumers { group: ConsumerGroup::Events(group), silent_ms };
    match server.run(keys, &remove).await {
        Ok(0) => {}
        Ok(removed) => {
            tracing::info!(group, removed, "consumers of the group that are gone were taken off its list")
        }
        Err(fault) if passes(&fault) => return Err(fault),
        Err(fault) => tracing::warn!(group, "consumers of the group that are gone stay on its list: {fault}"),
    }
    Ok(())
}

impl EndedTurn {
    pub(crate) fn of(id: StreamId, EndedRecord { turn, agent, end }: EndedRecord) -> Self {
        Self { id, turn, tenant: agent.tenant().to_owned(), agent: agent.agent(), end }
    }
}
