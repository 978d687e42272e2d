//! A worker's handle.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, broadcast};
use turnmill_schema::{DeadReason, Delta, Manifest, TurnId, WorkerStatus};

use super::held::Held;
use super::link::Link;
use super::state::State;
use super::{MemoryQueue, MemorySettings, Mutation};
use crate::broker::{
    Beat, Broker, BrokerError, Claim, Ending, Lease, Orders, QueueCounts, ReadyToken, Retry,
};

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
    /// Tokens may be pending to us that we did not hear of.
    recovering: bool,
    /// Interactive tokens since the last one of a batch agent.
    since_batch: usize,
}

impl MemoryBroker {
    pub(super) fn new(queue: MemoryQueue, settings: MemorySettings, link: Arc<dyn Link>) -> Self {
        let notices = Mutex::new(queue.step(|state| state.notices.subscribe()));
        // An earlier process of this name may have held tokens.
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
    fn try_read(&self, reader: &mut Reader, room: usize, until_ms: u64) -> Result<Vec<ReadyToken>, u64> {
        let worker = &self.settings.worker;
        self.queue.step(|state| {
            let mut tokens = Vec::new();
            if reader.recovering {
                let is_free = |token, owner: &str, _| owner == worker && !self.held.has(token);
                tokens = state.claim_pending(worker, room, is_free);
            }
            state.promote(&self.settings);
            if !state.paused {
                tokens.extend(state.read(worker, room - tokens.len(), &mut reader.since_batch));
            }
            let due_ms = state.delayed.first().map_or(until_ms, |(due_ms, _)| *due_ms);
            let is_over = !tokens.is_empty() || state.now_ms >= until_ms;
            if is_over { Ok(tokens) } else { Err(due_ms.clamp(state.now_ms + 1, until_ms)) }
        })
    }

    async fn read_or_wait(&self, reader: &mut Reader, room: usize) -> Vec<ReadyToken> {
        let readable = self.queue.step(|state| Arc::clone(&state.readable));
        let until_ms = self.queue.clock.now_ms() + READ_WAIT_MS;
        loop {
            let mut changed = std::pin::pin!(readable.notified());
            // From here on nothing that becomes readable is missed.
            changed.as_mut().enable();
            match self.try_read(reader, room, until_ms) {
                Ok(tokens) => return tokens,
                Err(look_again_ms) => {
                    let timer = self.queue.clock.until(look_again_ms);
                    tokio::select! { biased; () = changed => {} () = timer => {} }
                }
            }
        }
    }
}

impl Broker for MemoryBroker {
    async fn read(&self, room: usize) -> Result<Vec<ReadyToken>, BrokerError> {
        if room == 0 {
            return Ok(Vec::new());
        }
        let mut reader = self.reader.lock().await;
        let was_recovering = std::mem::replace(&mut reader.recovering, true);
        self.link.request("read").await?;
        let mut reading = Reader { recovering: was_recovering, since_batch: reader.since_batch };
        let tokens = self.read_or_wait(&mut reading, room).await;
        self.link.reply("read").await?;
        // There may be more that we did not hear of than there was room for.
        *reader = Reader { recovering: was_recovering && tokens.len() == room, ..reading };
        Ok(self.held.take(tokens))
    }

    async fn reclaim(&self, room: usize) -> Result<Vec<ReadyToken>, BrokerError> {
        let tokens = self.call("reclaim", |state, settings| {
            if state.mutation == Mutation::NoReclaim {
                return Vec::new();
            }
            let is_free = |token, _: &str, idle_ms| idle_ms >= settings.lease_ms && !self.held.has(token);
            state.claim_pending(&settings.worker, room, is_free)
        });
        Ok(self.held.take(tokens.await?))
    }

    async fn lease(&self, token: &ReadyToken) -> Result<Option<Claim>, BrokerError> {
        let claim = self.call("lease", |state, settings| state.lease(settings, token)).await?;
        match &claim {
            Some(claim) => self.held.lease(&claim.lease),
            None => self.held.drop_token(token),
        }
        Ok(claim)
    }

    async fn heartbeat(&self, held: &[Lease], unleased: &[ReadyToken]) -> Result<Beat, BrokerError> {
        let beat =
            self.call("heartbeat", |state, settings| state.heartbeat(&settings.worker, held, unleased));
        // A lost token that is not leased stays in our hands until its lease says so: a late answer must not drop one
        // that came again meanwhile.
        let lost = beat.await?;
        lost.iter().for_each(|lease| self.held.end_lease(lease));
        Ok(Beat { lost: lost.into_iter().map(|lease| lease.turn).collect() })
    }

    async fn next_cancelled(&self) -> Result<TurnId, BrokerError> {
        let mut notices = self.notices.lock().await;
        loop {
            match notices.recv().await {
                Ok(turn) => return Ok(turn),
                // Heartbeats find what was missed.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    async fn append(&self, lease: &Lease, delta: &Delta) -> Result<(), BrokerError> {
        let appended = self.call("append", |state, _| state.append(lease, delta)).await?;
        self.note_fenced(lease, appended)
    }

    async fn finish(&self, lease: &Lease, ending: &Ending) -> Result<Option<ReadyToken>, BrokerError> {
        let finished = self.call("finish", |state, settings| state.finish(settings, lease, ending)).await?;
        if self.note_fenced(lease, finished)? {
            return Ok(self.held.hand_over(lease).then(|| lease.token.clone()));
        }
        self.held.end_lease(lease);
        Ok(None)
    }

    async fn release(&self, lease: &Lease, manifest: Option<&Manifest>) -> Result<(), BrokerError> {
        let manifest = manifest.copied();
        let released =
            self.call("release", |state, settings| state.release(settings, lease, manifest)).await?;
        self.note_fenced(lease, released)?;
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

    async fn put_back(&self, token: &ReadyToken) -> Result<(), BrokerError> {
        self.call("put_back", |state, settings| state.put_back(&settings.worker, token)).await?;
        self.held.drop_token(token);
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
