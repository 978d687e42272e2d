//! A worker's handle.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, broadcast};
use turnmill_schema::{DeadReason, Delta, Manifest, TurnId, WorkerStatus};

use super::held::Held;
use super::link::Link;
use super::state::State;
use super::{MemoryQueue, MemorySettings, Mutation};
use crate::broker::{Broker, BrokerError, Claim, Ending, Lease, Orders, QueueCounts, Renewal, Retry, Ticket};

/// How long a read waits.
const READ_WAIT_MS: u64 = 2000;
/// A worker that was silent for so many leases is not listed any more.
const SILENT_LEASES: u64 = 3;

/// The [`Broker`] over a [`MemoryQueue`].
#[derive(Debug)]
pub struct MemoryBroker {
    queue: MemoryQueue,
    settings: MemorySettings,
    link: Arc<dyn Link>,
    reader: Mutex<Reader>,
    notices: Mutex<broadcast::Receiver<TurnId>>,
    held: Held,
}

/// The state of reading.
#[derive(Debug)]
struct Reader {
    /// Tickets may be pending to us that we did not hear of.
    recovering: bool,
    /// Interactive tickets since the last one of a batch agent.
    since_batch: usize,
}

impl MemoryBroker {
    pub(super) fn new(queue: MemoryQueue, settings: MemorySettings, link: Arc<dyn Link>) -> Self {
        let notices = Mutex::new(queue.step(|state| state.notices.subscribe()));
        // An earlier process of this name may have held tickets.
        let reader = Mutex::new(Reader { recovering: true, since_batch: 0 });
        Self { queue, settings, link, reader, notices, held: Held::default() }
    }

    /// Takes a step over the link, as often as it says.
    async fn call<T>(
        &self,
        step: &'static str,
        mut take: impl FnMut(&mut State, &MemorySettings) -> T,
    ) -> Result<T, BrokerError> {
        let times = self.link.request(step).await?;
        let mut answer = self.queue.step(|state| take(state, &self.settings));
        for _ in 1..times {
            answer = self.queue.step(|state| take(state, &self.settings));
        }
        self.link.reply(step).await?;
        Ok(answer)
    }

    /// Notes that a lease is gone where the answer says so.
    fn note_fenced<T>(&self, lease: &Lease, answer: Result<T, BrokerError>) -> Result<T, BrokerError> {
        if matches!(answer, Err(BrokerError::Fenced { .. })) {
            self.held.end_lease(lease);
        }
        answer
    }

    /// What is to be read now; otherwise when to look again at the latest.
    fn try_read(&self, reader: &mut Reader, room: usize, until_ms: u64) -> Result<Vec<Ticket>, u64> {
        let worker = &self.settings.worker;
        self.queue.step(|state| {
            let mut tickets = Vec::new();
            if reader.recovering {
                let is_free = |ticket, owner: &str, _| owner == worker && !self.held.has(ticket);
                tickets = state.claim_pending(worker, room, is_free);
            }
            state.promote(&self.settings);
            if !state.paused {
                tickets.extend(state.read(worker, room - tickets.len(), &mut reader.since_batch));
            }
            let due_ms = state.delayed.first().map_or(until_ms, |(due_ms, _)| *due_ms);
            let is_over = !tickets.is_empty() || state.now_ms >= until_ms;
            if is_over { Ok(tickets) } else { Err(due_ms.clamp(state.now_ms + 1, until_ms)) }
        })
    }

    async fn read_or_wait(&self, reader: &mut Reader, room: usize) -> Vec<Ticket> {
        let readable = self.queue.step(|state| Arc::clone(&state.readable));
        let until_ms = self.queue.clock.now_ms() + READ_WAIT_MS;
        loop {
            let mut changed = std::pin::pin!(readable.notified());
            // From here on nothing that becomes readable is missed.
            changed.as_mut().enable();
            match self.try_read(reader, room, until_ms) {
                Ok(tickets) => return tickets,
                Err(look_again_ms) => {
                    let timer = self.queue.clock.until(look_again_ms);
                    tokio::select! { biased; () = changed => {} () = timer => {} }
                }
            }
        }
    }
}

impl Broker for MemoryBroker {
    async fn read(&self, room: usize) -> Result<Vec<Ticket>, BrokerError> {
        if room == 0 {
            return Ok(Vec::new());
        }
        let mut reader = self.reader.lock().await;
        let was_recovering = std::mem::replace(&mut reader.recovering, true);
        self.link.request("read").await?;
        let mut reading = Reader { recovering: was_recovering, since_batch: reader.since_batch };
        let tickets = self.read_or_wait(&mut reading, room).await;
        self.link.reply("read").await?;
        // There may be more that we did not hear of than there was room for.
        *reader = Reader { recovering: was_recovering && tickets.len() == room, ..reading };
        Ok(self.held.take(tickets))
    }

    async fn reclaim(&self, room: usize) -> Result<Vec<Ticket>, BrokerError> {
        let tickets = self.call("reclaim", |state, settings| {
            if state.mutation == Mutation::NoReclaim {
                return Vec::new();
            }
            let is_free = |ticket, _: &str, idle_ms| idle_ms >= settings.lease_ms && !self.held.has(ticket);
            state.claim_pending(&settings.worker, room, is_free)
        });
        Ok(self.held.take(tickets.await?))
    }

    async fn lease(&self, ticket: &Ticket) -> Result<Option<Claim>, BrokerError> {
        let claim = self.call("lease", |state, settings| state.lease(settings, ticket)).await?;
        match &claim {
            Some(claim) => self.held.lease(&claim.lease),
            None => self.held.drop_ticket(ticket),
        }
        Ok(claim)
    }

    async fn renew(&self, held: &[Lease], unleased: &[Ticket]) -> Result<Renewal, BrokerError> {
        let renewal = self.call("renew", |state, settings| state.renew(&settings.worker, held, unleased));
        // A lost ticket that is not leased stays in our hands until its lease says so: a late answer must not drop one
        // that came again meanwhile.
        let lost = renewal.await?;
        lost.iter().for_each(|lease| self.held.end_lease(lease));
        Ok(Renewal { lost: lost.into_iter().map(|lease| lease.turn).collect() })
    }

    async fn next_cancelled(&self) -> Result<TurnId, BrokerError> {
        let mut notices = self.notices.lock().await;
        loop {
            match notices.recv().await {
                Ok(turn) => return Ok(turn),
                // Renewals find what was missed.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    async fn append(&self, lease: &Lease, delta: &Delta) -> Result<(), BrokerError> {
        let appended = self.call("append", |state, _| state.append(lease, delta)).await?;
        self.note_fenced(lease, appended)
    }

    async fn finish(&self, lease: &Lease, ending: &Ending) -> Result<Option<Ticket>, BrokerError> {
        let finished = self.call("finish", |state, settings| state.finish(settings, lease, ending)).await?;
        if self.note_fenced(lease, finished)? {
            return Ok(self.held.continue_with_next(lease).then(|| lease.ticket.clone()));
        }
        self.held.end_lease(lease);
        Ok(None)
    }

    async fn requeue(&self, lease: &Lease, manifest: Option<&Manifest>) -> Result<(), BrokerError> {
        let manifest = manifest.copied();
        let requeued =
            self.call("requeue", |state, settings| state.requeue(settings, lease, manifest)).await?;
        self.note_fenced(lease, requeued)?;
        self.held.end_lease(lease);
        Ok(())
    }

    async fn advance(&self, lease: &Lease, manifest: &Manifest) -> Result<(), BrokerError> {
        self.call("advance", |state, _| state.advance(lease, *manifest)).await
    }

    async fn retry(
        &self,
        lease: &Lease,
        delay: Duration,
        reason: DeadReason,
        text: &str,
    ) -> Result<Retry, BrokerError> {
        let retried =
            self.call("retry", |state, settings| state.retry(settings, lease, delay, (reason, text))).await?;
        let retried = self.note_fenced(lease, retried)?;
        self.held.end_lease(lease);
        Ok(retried)
    }

    async fn return_ticket(&self, ticket: &Ticket) -> Result<(), BrokerError> {
        self.call("return_ticket", |state, settings| state.return_ticket(&settings.worker, ticket)).await?;
        self.held.drop_ticket(ticket);
        Ok(())
    }

    async fn sweep(&self) -> Result<(), BrokerError> {
        self.call("sweep", |state, settings| state.sweep(settings)).await
    }

    async fn counts(&self) -> Result<QueueCounts, BrokerError> {
        self.call("counts", |state, _| state.counts()).await
    }

    async fn register(&self, status: &WorkerStatus) -> Result<Orders, BrokerError> {
        self.call("register", |state, settings| {
            let until_ms = state.now_ms + settings.lease_ms.saturating_mul(SILENT_LEASES);
            state.registry.enter(&settings.worker, status, until_ms)
        })
        .await
    }
}
