//! A worker's handle.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, broadcast};
use turnmill_schema::{AgentId, DeadReason, Delta, Manifest, TurnId, WorkerStatus};
use turnmill_worker::broker::{
    Broker, BrokerError, Claim, Ending, Fairness, Fence, Holdings, LISTED_LEASES, Lease, Orders, QueueCounts,
    Renewable, Retry, Ticket, TicketId,
};

use super::link::Link;
use super::ready::{LeaseKey, TicketKey};
use super::state::State;
use super::{MemoryQueue, MemorySettings, Mutation};

/// How long a read waits.
const READ_WAIT_MS: u64 = 2000;

/// The [`Broker`] over a [`MemoryQueue`].
#[derive(Debug)]
pub struct MemoryBroker {
    queue: MemoryQueue,
    settings: MemorySettings,
    link: Arc<dyn Link>,
    reader: Mutex<Reader>,
    notices: Mutex<broadcast::Receiver<TurnId>>,
    holdings: Holdings,
}

/// Tickets, each with its agent.
type Delivered = Vec<(TicketKey, AgentId)>;

/// The state of reading.
#[derive(Debug)]
struct Reader {
    /// Tickets with numbers above this one may be pending to us that we did not hear of; none: we heard of all.
    recovering: Option<u64>,
    fairness: Fairness,
}

impl MemoryBroker {
    pub(super) fn new(queue: MemoryQueue, settings: MemorySettings, link: Arc<dyn Link>) -> Self {
        let notices = Mutex::new(queue.step(|state| state.notices.subscribe()));
        // An earlier process of this name may have held tickets.
        let reader = Mutex::new(Reader { recovering: Some(0), fairness: Fairness::default() });
        Self { queue, settings, link, reader, notices, holdings: Holdings::default() }
    }

    /// What is in this worker's hands.
    pub fn holdings(&self) -> &Holdings {
        &self.holdings
    }

    /// Takes a step over the link, as often as it says.
    async fn call<T>(
        &self,
        step: &'static str,
        mut take: impl FnMut(&mut State, &MemorySettings) -> T + Clone + Send + 'static,
    ) -> Result<T, BrokerError> {
        let times = self.link.request(step).await?;
        if self.link.is_repeated_late(step) {
            let (queue, settings, mut take) = (self.queue.clone(), self.settings.clone(), take.clone());
            self.link.later(step, Box::new(move || drop(queue.step(|state| take(state, &settings)))));
        }
        let mut answer = self.queue.step(|state| take(state, &self.settings));
        for _ in 1..times {
            answer = self.queue.step(|state| take(state, &self.settings));
        }
        self.link.reply(step).await?;
        Ok(answer)
    }

    /// Notes that a lease is gone if the answer says so.
    fn note_fenced<T>(&self, lease: &Lease, answer: Result<T, BrokerError>) -> Result<T, BrokerError> {
        if matches!(answer, Err(BrokerError::Fenced { .. })) {
            lease.lose();
        }
        answer
    }

    /// What is to be read now; nothing if it is `until_ms`. None: wait.
    fn try_read(&self, reader: &mut Reader, room: usize, until_ms: u64) -> Option<Delivered> {
        let worker = &self.settings.worker;
        self.queue.step(|state| {
            let mut tickets = Vec::new();
            if let Some(after) = reader.recovering {
                let is_free = |ticket: TicketKey| !self.holdings.has(&TicketId::from(ticket));
                tickets = state.recover(worker, room, after, is_free);
                // There may be more than there was room for. Each comes once: one that cannot be leased must not come for ever.
                let last = tickets.last().map(|(ticket, _)| ticket.number);
                reader.recovering = last.filter(|_| tickets.len() == room);
                if state.mutation == Mutation::AlwaysRecovers {
                    reader.recovering = Some(0);
                }
            }
            if !state.paused {
                tickets.extend(state.read(worker, room - tickets.len(), &mut reader.fairness));
            }
            let is_over = !tickets.is_empty() || state.now_ms >= until_ms;
            is_over.then_some(tickets)
        })
    }

    async fn read_or_wait(&self, reader: &mut Reader, room: usize) -> Delivered {
        let readable = self.queue.step(|state| Arc::clone(&state.readable));
        let until_ms = self.queue.clock.now_ms() + READ_WAIT_MS;
        loop {
            let mut changed = std::pin::pin!(readable.notified());
            // From here on nothing that becomes readable is missed.
            changed.as_mut().enable();
            if let Some(tickets) = self.try_read(reader, room, until_ms) {
                return tickets;
            }
            let timer = self.queue.clock.until(until_ms);
            tokio::select! { biased; () = changed => {} () = timer => {} }
        }
    }
}

impl Broker for MemoryBroker {
    async fn read(&self, room: usize) -> Result<Vec<Ticket>, BrokerError> {
        if room == 0 {
            return Ok(Vec::new());
        }
        let mut reader = self.reader.lock().await;
        let was_recovering = reader.recovering.replace(0);
        self.link.request("read").await?;
        let mut reading = Reader { recovering: was_recovering, fairness: reader.fairness };
        let tickets = self.read_or_wait(&mut reading, room).await;
        self.link.reply("read").await?;
        *reader = reading;
        let take = |(ticket, agent)| self.holdings.take(TicketId::from(ticket), agent, None);
        Ok(tickets.into_iter().filter_map(take).collect())
    }

    async fn lease(&self, ticket: &Ticket) -> Result<Option<Claim>, BrokerError> {
        let (key, agent) = (TicketKey::from(ticket), ticket.agent.clone());
        let granted = self.call("lease", move |state, settings| state.lease(settings, key, &agent)).await?;
        if granted.is_none() {
            ticket.forget();
        }
        Ok(granted.map(|granted| granted.claim(ticket)))
    }

    async fn append(&self, lease: &Lease, delta: &Delta) -> Result<(), BrokerError> {
        let (key, delta) = (LeaseKey::from(lease), delta.clone());
        let appended = self.call("append", move |state, _| state.append(&key, &delta)).await?;
        self.note_fenced(lease, appended)
    }

    async fn finish(&self, lease: &Lease, ending: &Ending) -> Result<Option<Ticket>, BrokerError> {
        if self.queue.mutation() != Mutation::LateRenewalLoses {
            lease.begin_to_end();
        }
        let (key, ending) = (LeaseKey::from(lease), ending.clone());
        let finished =
            self.call("finish", move |state, settings| state.finish(settings, &key, &ending)).await?;
        if self.note_fenced(lease, finished)? {
            return Ok(lease.continued(None));
        }
        lease.over();
        Ok(None)
    }

    async fn requeue(&self, lease: &Lease, manifest: Option<&Manifest>) -> Result<(), BrokerError> {
        lease.begin_to_end();
        let (key, manifest) = (LeaseKey::from(lease), manifest.copied());
        let requeued =
            self.call("requeue", move |state, settings| state.requeue(settings, &key, manifest)).await?;
        self.note_fenced(lease, requeued)?;
        lease.over();
        Ok(())
    }

    async fn retry(
        &self,
        lease: &Lease,
        delay: Duration,
        reason: DeadReason,
        text: &str,
    ) -> Result<Retry, BrokerError> {
        lease.begin_to_end();
        let (key, text) = (LeaseKey::from(lease), text.to_owned());
        let retry = move |state: &mut State, settings: &MemorySettings| {
            state.retry(settings, &key, delay, (reason, &text))
        };
        let retried = self.call("retry", retry).await?;
        let retried = self.note_fenced(lease, retried)?;
        lease.over();
        Ok(retried)
    }

    async fn advance(&self, lease: &Fence, manifest: &Manifest) -> Result<(), BrokerError> {
        let (lease, manifest) = (lease.clone(), *manifest);
        self.call("advance", move |state, _| state.advance(&lease, manifest)).await
    }

    async fn return_ticket(&self, ticket: &Ticket) -> Result<(), BrokerError> {
        let (key, agent) = (TicketKey::from(ticket), ticket.agent.clone());
        self.call("return_ticket", move |state, settings| {
            state.return_ticket(&settings.worker, key, &agent);
        })
        .await?;
        ticket.forget();
        Ok(())
    }

    fn leases(&self) -> usize {
        self.holdings.leases()
    }

    async fn counts(&self) -> Result<QueueCounts, BrokerError> {
        self.call("counts", |state, _| state.counts()).await
    }

    async fn completed_by_others(&self, newest: usize) -> Result<Vec<TurnId>, BrokerError> {
        self.call("completed_by_others", move |state, settings| {
            state.completed_by_others(&settings.worker, newest)
        })
        .await
    }

    async fn register(&self, status: &WorkerStatus) -> Result<Orders, BrokerError> {
        let status = status.clone();
        self.call("register", move |state, settings| {
            let until_ms = state.now_ms + settings.lease_ms.saturating_mul(LISTED_LEASES);
            state.registry.enter(&settings.worker, &status, until_ms)
        })
        .await
    }

    async fn leave(&self) -> Result<(), BrokerError> {
        self.call("leave", |state, settings| state.registry.leave(&settings.worker)).await
    }

    async fn renew(&self) -> Result<(), BrokerError> {
        let held = self.holdings.renewable();
        let key = |held: &Renewable| (TicketKey::from(&held.id), held.agent.clone(), held.epoch);
        let keys: Vec<_> = held.iter().map(key).collect();
        let kept = self.call("renew", move |state, settings| state.renew(&settings.worker, &keys)).await?;
        held.iter().zip(kept).filter(|(_, kept)| !kept).for_each(|(held, _)| held.is_lost());
        Ok(())
    }

    async fn hear(&self) -> Result<(), BrokerError> {
        match self.notices.lock().await.recv().await {
            Ok(turn) => self.holdings.lose_turn(turn),
            // Renewals find what was missed.
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
        Ok(())
    }

    async fn promote(&self) -> Result<Duration, BrokerError> {
        self.call("promote", |state, settings| {
            state.promote(settings);
            let due_ms = state.delayed.first().map_or(u64::MAX, |(due_ms, _)| *due_ms);
            Duration::from_millis(due_ms.saturating_sub(state.now_ms).clamp(1, settings.look_every_ms))
        })
        .await
    }

    async fn reclaim(&self) -> Result<u64, BrokerError> {
        self.call("reclaim", |state, settings| state.reclaim(settings)).await
    }

    async fn sweep(&self) -> Result<(), BrokerError> {
        self.call("sweep", |state, settings| state.sweep(settings)).await
    }
}
