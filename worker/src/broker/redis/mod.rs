//! The queue in Redis Streams.
//!
//! Invariants:
//! * what must be atomic is a step of `turnmill_redis`; the rest are single commands of it;
//! * every ticket that this worker was handed is in `holdings` until its last value is dropped; tickets pending to this worker
//!   that are not there are those whose reply was lost, and `read` takes them first;
//! * a future that is dropped half way leaves nothing behind that the next call would not find.

#![allow(
    clippy::disallowed_methods,
    reason = "a server has its own time; in a simulation another adapter stands here"
)]

mod append;
mod batch;
mod collector;
mod histories;
mod lease;
mod manifests;
mod read;
mod tend;

use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use turnmill_redis::steps::{
    Advance, CountWork, Counts, Finish, FinishAnswer, FinishLimits, LeaseHead, LeaseKey, LeaseLimits, Leave,
    Register, Renew, RenewItem, Requeue, RequeueAnswer, RequeueLimits, ReturnTicket,
};
use turnmill_redis::{
    EndedRecord, Endpoint, Fault, Found, RESPONSE_TIMEOUT, ReadyStream, Server, ServerFacts, Subscription,
};
use turnmill_schema::envelope::{EnvelopeError, encode};
use turnmill_schema::keys::{BacklogEntry, Keys, ORDER_DRAIN, Queue};
use turnmill_schema::{
    DeadReason, Delta, Event, Manifest, MarkedEntry, Name, Outcome, Priority, StreamId, TurnId, WorkerStatus,
};

use super::{
    Broker, BrokerError, Claim, Ending, Fence, Holdings, LISTED_LEASES, Lease, Orders, PriorityCounts,
    QueueCounts, Retry, Ticket, TicketId,
};

use append::fenced;
use batch::Batch;
pub use collector::{Collector, HoldError};
use histories::Histories;
pub use manifests::RedisReferences;
use read::Reader;

/// What a worker must know of its queue.
#[derive(Clone, Debug)]
pub struct BrokerSettings {
    /// The address of Redis.
    pub redis: Endpoint,
    /// The queue to serve.
    pub queue: Name,
    /// How many shards the queue was created with.
    pub shards: NonZeroU16,
    /// This worker's name, unlike that of any other worker.
    pub worker: String,
    /// A worker silent for this long loses its turns.
    pub lease_ms: u64,
    /// Attempts in a row without a new token after which a turn fails.
    pub max_attempts: u32,
    /// How long an ended turn's result stream is kept.
    pub result_ttl_ms: u64,
    /// How long an ended turn's outcome and its idempotency key are kept.
    pub outcome_ttl_ms: u64,
    /// How long the result stream of an ended turn stays whose whole reply is kept with its outcome.
    pub keep_stream_ms: u64,
    /// What ended turns may take in a shard, in bytes; beyond it the oldest are forgotten early.
    pub retained_bytes: u64,
    /// The same of dead letters.
    pub dead_bytes: u64,
    /// Turns of one tenant that may run at once in a shard; 0: no limit.
    pub tenant_max_running: u64,
    /// Turns in a row that a worker may take of an agent while other agents wait.
    pub max_continues: u32,
}

/// The steps of one shard that many turns take at about the same time.
#[derive(Debug)]
struct Shard {
    lease: Batch<LeaseHead>,
    finish: Batch<Finish>,
    requeue: Batch<Requeue>,
    paused: AtomicBool,
}

impl Shard {
    fn start(server: &Arc<Server>, keys: &Keys, settings: &BrokerSettings) -> Self {
        let BrokerSettings { worker, max_attempts, result_ttl_ms, outcome_ttl_ms, .. } = settings.clone();
        let lease = LeaseLimits {
            worker: worker.clone(),
            max_attempts,
            result_ttl_ms,
            outcome_ttl_ms,
            tenant_max_running: settings.tenant_max_running,
        };
        let finish = FinishLimits {
            worker: worker.clone(),
            result_ttl_ms,
            outcome_ttl_ms,
            keep_stream_ms: settings.keep_stream_ms,
            lease_ms: settings.lease_ms,
        };
        let requeue = RequeueLimits { worker, max_attempts, result_ttl_ms, outcome_ttl_ms };
        Self {
            lease: Batch::start(Arc::clone(server), keys.clone(), lease),
            finish: Batch::start(Arc::clone(server), keys.clone(), finish),
            requeue: Batch::start(Arc::clone(server), keys.clone(), requeue),
            paused: AtomicBool::new(false),
        }
    }
}

/// The [`Broker`] over Redis.
#[derive(Debug)]
pub struct RedisBroker {
    settings: BrokerSettings,
    queue: Queue,
    /// Most urgent priority first.
    streams: Vec<ReadyStream>,
    server: Arc<Server>,
    /// By shard.
    shards: Vec<Shard>,
    reader: tokio::sync::Mutex<Reader>,
    /// Absent before the first wait and while one is under way.
    notices: tokio::sync::Mutex<Option<Subscription>>,
    holdings: Holdings,
    histories: Histories,
}

impl RedisBroker {
    /// Connects, checks the server (see [`Server::check`]) and creates what is missing of the queue.
    pub async fn connect(settings: BrokerSettings) -> Result<Self, BrokerError> {
        let server = Server::new(&settings.redis, RESPONSE_TIMEOUT)?;
        Self::over(server, settings).await
    }

    /// The same over connections that are prepared already.
    pub async fn over(server: Arc<Server>, settings: BrokerSettings) -> Result<Self, BrokerError> {
        server.check().await?;
        let queue = Queue { name: settings.queue.clone(), shards: settings.shards };
        let streams = Priority::ALL.into_iter().flat_map(|priority| {
            queue.all_keys().map(move |keys| ReadyStream {
                key: keys.ready(priority),
                shard: keys.shard(),
                priority,
            })
        });
        let streams = streams.collect();
        let shards = queue.all_keys().map(|keys| Shard::start(&server, &keys, &settings)).collect();
        let (reader, notices, holdings, histories) = Default::default();
        let broker = Self { settings, queue, streams, server, shards, reader, notices, holdings, histories };
        broker.prepare().await?;
        // A worker may enter itself in the registry before anything else tells the server's time.
        broker.server.now_ms().await?;
        Ok(broker)
    }

    /// What is in this worker's hands.
    pub fn holdings(&self) -> &Holdings {
        &self.holdings
    }

    fn shard(&self, ticket: &TicketId) -> Result<&Shard, BrokerError> {
        self.shards.get(usize::from(ticket.shard)).ok_or_else(|| {
            let (shard, shards) = (ticket.shard, self.settings.shards);
            Fault::Unsuitable(format!("shard {shard} is not one of the queue's {shards}; correct shards"))
                .into()
        })
    }

    fn keys_of(&self, lease: &Lease) -> Keys {
        self.queue.keys(lease.ticket().shard)
    }

    fn is_paused(&self) -> bool {
        self.shards.iter().any(|shard| shard.paused.load(Ordering::Relaxed))
    }

    fn set_paused(&self, shard: u16, paused: bool) {
        if let Some(shard) = self.shards.get(usize::from(shard)) {
            shard.paused.store(paused, Ordering::Relaxed);
        }
    }

    /// A lease was refused for that; the next look at who waits tells when it is over.
    fn note_paused(&self) {
        self.shards.iter().for_each(|shard| shard.paused.store(true, Ordering::Relaxed));
    }

    /// Tells the entry that a lease adds to its agent's history from that of any other one: workers' names are unlike each other, and
    /// so are the epochs of an agent's leases, unless a server lost some.
    fn mark_of(&self, lease: &Lease) -> u64 {
        let digest = blake3::hash(format!("{}/{}", self.settings.worker, lease.epoch).as_bytes());
        let (mark, _) = digest.as_bytes().split_first_chunk().expect("a digest has more bytes than a mark");
        u64::from_le_bytes(*mark)
    }

    /// Ends the lease of a turn that stays the head of its backlog; `failure`: when it may run again, and why it failed.
    async fn requeue_or_retry(
        &self,
        lease: &Lease,
        failure: Option<(Duration, DeadReason, &str)>,
        manifest: Option<&Manifest>,
    ) -> Result<Retry, BrokerError> {
        lease.begin_to_end();
        let (delay, reason, text) = failure.map_or((None, "", ""), |(delay, reason, text)| {
            (Some(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)), reason.as_str(), text)
        });
        let manifest = encode_manifest(manifest)?;
        let step = Requeue { lease: key(lease), delay_ms: delay, reason, text: text.to_owned(), manifest };
        match self.shard(lease.ticket())?.requeue.call(step).await? {
            RequeueAnswer::Fenced => return Err(fenced(lease)),
            RequeueAnswer::Done => lease.over(),
            RequeueAnswer::Dead => {
                lease.over();
                return Ok(Retry::Dead);
            }
        }
        Ok(Retry::Later)
    }
}

/// The first fault of several parts (shards, streams, kinds of work): one that is broken costs the others nothing.
#[derive(Debug, Default)]
struct FirstFault(Option<Fault>);

impl FirstFault {
    /// What a part answered; none if it has a fault of its own. An outage is that of all of them, and the caller's to pass on.
    fn keep<T>(&mut self, answer: Result<T, Fault>) -> Result<Option<T>, Fault> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(outage) if outage.is_outage() => Err(outage),
            Err(fault) => {
                self.0.get_or_insert(fault);
                Ok(None)
            }
        }
    }

    /// `answer`, unless a part had a fault.
    fn or<T>(self, answer: T) -> Result<T, Fault> {
        self.0.map_or(Ok(answer), Err)
    }
}

/// Which lease, as steps name it.
fn key(lease: &Lease) -> LeaseKey {
    LeaseKey {
        agent: lease.agent.clone(),
        turn: lease.turn,
        idempotency: lease.entry.idempotency.clone(),
        epoch: lease.epoch,
    }
}

/// A manifest as steps take it; empty if there is none.
fn encode_manifest(manifest: Option<&Manifest>) -> Result<Vec<u8>, EnvelopeError> {
    manifest.map(encode).transpose().map(Option::unwrap_or_default)
}

impl Broker for RedisBroker {
    async fn read(&self, room: usize) -> Result<Vec<Ticket>, BrokerError> {
        self.read_tickets(room).await
    }

    async fn lease(&self, ticket: &Ticket) -> Result<Option<Claim>, BrokerError> {
        self.lease_head(ticket).await
    }

    async fn append(&self, lease: &Lease, delta: &Delta) -> Result<(), BrokerError> {
        self.publish(lease, delta).await
    }

    async fn finish(&self, lease: &Lease, ending: &Ending) -> Result<Option<Ticket>, BrokerError> {
        lease.begin_to_end();
        let reply = ending.reply.clone().map(|delta| encode(&Event::Delta(delta))).transpose()?;
        let mark = self.mark_of(lease);
        let entry = ending.entry.as_ref().map(|entry| encode(&MarkedEntry::new(entry, mark)));
        let entry = entry.transpose()?.unwrap_or_default();
        let step = Finish {
            lease: key(lease),
            published: ending.published,
            outcome: ending.end.outcome.as_str(),
            reason: ending.reason.map_or("", DeadReason::as_str),
            end: encode(&Event::End(ending.end.clone()))?,
            entry: entry.clone(),
            reply: reply.unwrap_or_default(),
            continues: if ending.continues { self.settings.max_continues } else { 0 },
            manifest: encode_manifest(ending.manifest.as_ref())?,
        };
        let answer = self.shard(lease.ticket())?.finish.call(step).await?;
        if let (FinishAnswer::Done | FinishAnswer::Next(_), Some(added)) = (&answer, &ending.entry)
            && ending.end.outcome == Outcome::Completed
        {
            self.histories.committed(&lease.agent, lease.epoch, added.clone(), &entry);
        }
        match answer {
            FinishAnswer::Done => {
                lease.over();
                Ok(None)
            }
            FinishAnswer::Next(head) => Ok(lease.continued(BacklogEntry::parse(&head))),
            FinishAnswer::Fenced => Err(fenced(lease)),
            FinishAnswer::Gap(found) => {
                Err(BrokerError::Gap { turn: lease.turn, expected: ending.published, found })
            }
        }
    }

    async fn requeue(&self, lease: &Lease, manifest: Option<&Manifest>) -> Result<(), BrokerError> {
        self.requeue_or_retry(lease, None, manifest).await.map(|_| ())
    }

    async fn retry(
        &self,
        lease: &Lease,
        delay: Duration,
        reason: DeadReason,
        text: &str,
    ) -> Result<Retry, BrokerError> {
        self.requeue_or_retry(lease, Some((delay, reason, text)), None).await
    }

    async fn advance(&self, lease: &Fence, manifest: &Manifest) -> Result<(), BrokerError> {
        let manifest = encode_manifest(Some(manifest))?;
        let step = Advance { agent: &lease.agent, epoch: lease.epoch, manifest };
        // Written or ignored: there is nothing to do about either.
        self.server.run(&self.queue.keys(lease.shard), &step).await?;
        Ok(())
    }

    async fn return_ticket(&self, ticket: &Ticket) -> Result<(), BrokerError> {
        let TicketId { shard, priority, entry } = &ticket.id;
        let step = ReturnTicket {
            worker: &self.settings.worker,
            agent: &ticket.agent,
            ticket: entry,
            priority: *priority,
        };
        // Whether it was still ours or another's by then: it is not ours now.
        self.server.run(&self.queue.keys(*shard), &step).await?;
        ticket.forget();
        Ok(())
    }

    fn leases(&self) -> usize {
        self.holdings.leases()
    }

    async fn counts(&self) -> Result<QueueCounts, BrokerError> {
        let mut total = QueueCounts { lag: Some(0), ..QueueCounts::default() };
        for keys in self.queue.all_keys() {
            total.add(self.server.run(&keys, &CountWork).await?);
        }
        Ok(total)
    }

    async fn completed_by_others(&self, newest: usize) -> Result<Vec<TurnId>, BrokerError> {
        let mut completed = Vec::new();
        for keys in self.queue.all_keys() {
            let ended = self.server.newest_events(&keys, StreamId::START, newest).await?;
            completed.extend(ended.into_iter().filter_map(|entry| {
                let Found::Ours(EndedRecord { turn, end, .. }) = entry.found else { return None };
                let by_another = end.worker.is_some_and(|worker| worker != self.settings.worker);
                (end.outcome == Outcome::Completed && by_another).then_some(turn)
            }));
        }
        Ok(completed)
    }

    async fn register(&self, status: &WorkerStatus) -> Result<Orders, BrokerError> {
        let listed_ms = self.settings.lease_ms.saturating_mul(LISTED_LEASES);
        let step = Register { worker: &self.settings.worker, status, listed_ms };
        let (now_ms, order) = self.server.run(&self.queue.keys(0), &step).await?;
        self.server.note_now_ms(now_ms);
        Ok(Orders { drain: order == ORDER_DRAIN })
    }

    async fn leave(&self) -> Result<(), BrokerError> {
        self.server.run(&self.queue.keys(0), &Leave { worker: &self.settings.worker }).await?;
        Ok(())
    }

    async fn renew(&self) -> Result<(), BrokerError> {
        let held = self.holdings.renewable();
        let mut fault = FirstFault::default();
        for keys in self.queue.all_keys() {
            let here: Vec<_> = held.iter().filter(|held| held.id.shard == keys.shard()).collect();
            let items: Vec<RenewItem<'_>> = here.iter().map(|held| held.as_item()).collect();
            // With nothing in hand too: it tells whether the queue can be reached.
            let renewed = self.server.run(&keys, &Renew { worker: &self.settings.worker, items }).await;
            let Some((now_ms, kept)) = fault.keep(renewed)? else { continue };
            self.server.note_now_ms(now_ms);
            here.iter().zip(kept).filter(|(_, kept)| !kept).for_each(|(held, _)| held.is_lost());
        }
        Ok(fault.or(())?)
    }

    async fn hear(&self) -> Result<(), BrokerError> {
        let mut notices = self.notices.lock().await;
        let mut subscription = match notices.take() {
            Some(subscription) => subscription,
            None => {
                let channels = self.queue.all_keys().map(|keys| keys.notices()).collect();
                self.server.subscribe(channels).await?
            }
        };
        let (_, text) = subscription.next().await?;
        *notices = Some(subscription);
        // What is no turn id is another version's notice.
        if let Ok(turn) = text.parse::<TurnId>() {
            self.holdings.lose_turn(turn);
        }
        Ok(())
    }

    async fn promote(&self) -> Result<Duration, BrokerError> {
        let (mut look_again, mut fault) = (Duration::MAX, FirstFault::default());
        for keys in self.queue.all_keys() {
            let of_shard = fault.keep(self.promote_shard(&keys).await)?;
            look_again = look_again.min(of_shard.unwrap_or(Duration::MAX));
        }
        Ok(fault.or(look_again)?)
    }

    async fn reclaim(&self) -> Result<u64, BrokerError> {
        // Idle times count a server's downtime: the first worker back would take everybody's live leases. The time comes
        // first, because asking for it is what notices a restart.
        self.server.now_ms().await?;
        if self.server.steady_for().as_millis() < u128::from(self.settings.lease_ms) {
            return Ok(0);
        }
        let (mut reclaimed, mut fault) = (0, FirstFault::default());
        for keys in self.queue.all_keys() {
            reclaimed += fault.keep(self.reclaim_shard(&keys).await)?.unwrap_or(0);
        }
        Ok(fault.or(reclaimed)?)
    }

    async fn sweep(&self) -> Result<(), BrokerError> {
        let mut fault = FirstFault::default();
        for keys in self.queue.all_keys() {
            fault.keep(self.sweep_shard(&keys).await)?;
        }
        Ok(fault.or(())?)
    }
}

impl QueueCounts {
    /// Adds those of a shard.
    fn add(&mut self, counts: Counts) {
        let age_ms = counts.oldest_enqueued_ms.map(|enqueued_ms| counts.now_ms.saturating_sub(enqueued_ms));
        for (sum, here) in self.priorities.iter_mut().zip(counts.priorities) {
            let PriorityCounts { runnable, leased, open } = *sum;
            *sum = PriorityCounts {
                runnable: runnable + here.runnable,
                leased: leased + here.leased,
                open: open + here.open,
            };
            self.lag = self.lag.zip(here.lag).map(|(so_far, here)| so_far + here);
        }
        self.delayed += counts.delayed;
        self.dead += counts.dead;
        self.retained_bytes += counts.retained_bytes;
        self.enqueued += counts.enqueued;
        self.ended.iter_mut().zip(counts.ended).for_each(|(so_far, here)| *so_far += here);
        self.paused |= counts.paused;
        self.oldest_ms = self.oldest_ms.max(age_ms);
    }
}

/// Connects to `redis` and tells what the server is; an error if it cannot carry a queue.
pub async fn check_server(redis: &Endpoint) -> Result<ServerFacts, BrokerError> {
    Ok(Server::new(redis, RESPONSE_TIMEOUT)?.check().await?)
}
