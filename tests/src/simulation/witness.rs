//! A worker's handle of the queue, between the runner and the adapter in memory. It notes what the two tell each other, and puts
//! runners' faults back that a [`Break`] names.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use turnmill_redis::Fault;
use turnmill_schema::{AgentId, DeadReason, Delta, Manifest, Outcome, TurnId, WorkerStatus};
use turnmill_worker::broker::{
    Advice, Broker, BrokerError, Claim, Ending, Fence, Lease, Orders, QueueCounts, Retry, Ticket,
};

use super::Break;
use super::ledger::Stage;
use crate::memory_broker::MemoryBroker;

/// Leases that a worker may be refused within a second. Between two there is a pause, or an answer that was lost.
const MOST_REFUSALS: usize = 50;

/// The handle.
pub(super) struct Witness {
    pub(super) inner: MemoryBroker,
    stage: Arc<Stage>,
    name: String,
    /// Leases of [`Break::SecondRegistry`], by agent and epoch.
    registry: Mutex<BTreeMap<(AgentId, u64), Arc<Lease>>>,
    /// When leases were refused, within the last second.
    refused: Mutex<VecDeque<u64>>,
}

impl Witness {
    pub(super) fn new(stage: Arc<Stage>, name: String, inner: MemoryBroker) -> Self {
        Self { inner, stage, name, registry: Mutex::default(), refused: Mutex::default() }
    }

    /// What a call under a lease came to. Tokens that are gone are a failover's doing.
    fn answered<T>(&self, lease: &Lease, answer: Result<T, BrokerError>) -> Result<T, BrokerError> {
        match &answer {
            Err(error @ BrokerError::Gap { .. }) if self.stage.ledger().failovers == 0 => {
                self.stage.violation(format!("{}: {error}", self.name));
            }
            Err(BrokerError::Envelope(error)) => {
                self.stage.violation(format!("{} under {}: {error}", self.name, lease.turn));
            }
            Err(error) if error.advice() == Advice::Reject => {
                self.stage.trace(|| format!("{} under {}: {error}", self.name, lease.turn));
            }
            _ => {}
        }
        answer
    }

    /// The lease is about to be ended.
    fn ends(&self, lease: &Lease, is_requeued: bool) {
        let key = (lease.agent.clone(), lease.epoch);
        let mut ledger = self.stage.ledger();
        if is_requeued {
            ledger.requeued.insert(key.clone());
        }
        ledger.ending.insert(key);
    }

    /// It has ended, by a call that was made when Redis had failed over `failovers` times.
    fn ended(&self, lease: &Lease, outcome: Option<Outcome>, failovers: u64) {
        // An answer of the old primary's binds nobody.
        let outcome = outcome.filter(|_| self.failovers() == failovers);
        if let Some(outcome) = outcome {
            self.stage.trace(|| format!("{} ends {} as {outcome:?}", self.name, lease.turn));
            self.stage.ledger().ended.insert(lease.turn, outcome);
        }
        self.registry.lock().expect("not poisoned").remove(&(lease.agent.clone(), lease.epoch));
    }

    fn failovers(&self) -> u64 {
        self.stage.ledger().failovers
    }

    fn says(&self, agent: &AgentId, epoch: u64, manifest: Option<&Manifest>) {
        if let Some(manifest) = manifest {
            self.stage.ledger().said.entry(agent.clone()).or_default().push((epoch, *manifest));
        }
    }

    /// Promise 4, in so far as it is the queue's: what is said late of K and V does not undo what a later lease said.
    fn is_told(&self, claim: &Claim) {
        let mut ledger = self.stage.ledger();
        let (agent, epoch) = (&claim.lease.agent, claim.lease.epoch);
        let Some(manifest) = claim.manifest else { return };
        let said = ledger.said.get(agent).map_or(&[][..], Vec::as_slice);
        let Some(said_by) = said.iter().filter(|(_, said)| *said == manifest).map(|(by, _)| *by).max() else {
            return;
        };
        let (newest, before) = ledger.told.get(agent).copied().unwrap_or_default();
        if epoch < newest {
            // Its answer took longer than that of a later lease.
            return;
        }
        ledger.told.insert(agent.clone(), (epoch, said_by));
        drop(ledger);
        if said_by < before || said_by > epoch {
            let agent = agent.own();
            self.stage.violation(format!(
                "{agent}: the lease {epoch} has the manifest of {said_by}, after {before}"
            ));
        }
    }

    /// What cannot be leased is not asked for without pause.
    fn is_refused(&self) {
        let now_ms = self.stage.clock.elapsed_ms();
        let mut refused = self.refused.lock().expect("not poisoned");
        refused.push_back(now_ms);
        while refused.front().is_some_and(|first| now_ms - first >= 1000) {
            refused.pop_front();
        }
        let count = refused.len();
        drop(refused);
        if count > MOST_REFUSALS {
            self.stage.violation(format!("{} was refused {count} leases within a second", self.name));
        }
    }

    /// [`Break::BehindRoom`]: nobody is looked after while there is no room.
    fn waits_for_room(&self) -> bool {
        let places = self.stage.world.sequences + self.stage.world.ahead;
        self.stage.broken == Break::BehindRoom && self.inner.holdings().len() >= places
    }

    fn live(&self) -> BTreeMap<(AgentId, u64), ()> {
        let live = self.inner.holdings().renewable().into_iter();
        live.filter_map(|held| Some(((held.agent.clone(), held.epoch?), ()))).collect()
    }
}

impl Broker for Witness {
    async fn read(&self, room: usize) -> Result<Vec<Ticket>, BrokerError> {
        self.inner.read(room).await
    }

    async fn lease(&self, ticket: &Ticket) -> Result<Option<Claim>, BrokerError> {
        if self.stage.is_unleasable(&ticket.agent) {
            self.is_refused();
            self.stage.clock.sleep(self.stage.dice.between(1, 3)).await;
            let reason = "a flaw of the simulation".to_owned();
            return Err(Fault::Refused { step: "lease", passing: false, reason }.into());
        }
        let failovers = self.failovers();
        let claim = self.inner.lease(ticket).await?;
        if let Some(claim) = &claim {
            self.stage
                .trace(|| format!("{} runs {} of {}", self.name, claim.lease.turn, claim.lease.agent.own()));
            if self.failovers() == failovers {
                self.is_told(claim);
            }
            if self.stage.broken == Break::SecondRegistry {
                let key = (claim.lease.agent.clone(), claim.lease.epoch);
                self.registry.lock().expect("not poisoned").insert(key, Arc::clone(&claim.lease));
            }
        }
        Ok(claim)
    }

    async fn append(&self, lease: &Lease, delta: &Delta) -> Result<(), BrokerError> {
        self.answered(lease, self.inner.append(lease, delta).await)
    }

    async fn finish(&self, lease: &Lease, ending: &Ending) -> Result<Option<Ticket>, BrokerError> {
        self.ends(lease, false);
        self.says(&lease.agent, lease.epoch, ending.manifest.as_ref());
        let failovers = self.failovers();
        let next = self.answered(lease, self.inner.finish(lease, ending).await)?;
        self.ended(lease, Some(ending.end.outcome), failovers);
        Ok(next)
    }

    async fn requeue(&self, lease: &Lease, manifest: Option<&Manifest>) -> Result<(), BrokerError> {
        self.ends(lease, true);
        self.says(&lease.agent, lease.epoch, manifest);
        self.answered(lease, self.inner.requeue(lease, manifest).await)?;
        self.ended(lease, None, self.failovers());
        Ok(())
    }

    async fn retry(
        &self,
        lease: &Lease,
        delay: Duration,
        reason: DeadReason,
        text: &str,
    ) -> Result<Retry, BrokerError> {
        self.ends(lease, true);
        let failovers = self.failovers();
        let retried = self.answered(lease, self.inner.retry(lease, delay, reason, text).await)?;
        self.ended(lease, (retried == Retry::Dead).then_some(Outcome::Failed), failovers);
        Ok(retried)
    }

    async fn advance(&self, lease: &Fence, manifest: &Manifest) -> Result<(), BrokerError> {
        self.says(&lease.agent, lease.epoch, Some(manifest));
        self.inner.advance(lease, manifest).await
    }

    async fn return_ticket(&self, ticket: &Ticket) -> Result<(), BrokerError> {
        self.inner.return_ticket(ticket).await
    }

    fn leases(&self) -> usize {
        self.inner.leases()
    }

    async fn counts(&self) -> Result<QueueCounts, BrokerError> {
        self.inner.counts().await
    }

    async fn completed_by_others(&self, newest: usize) -> Result<Vec<TurnId>, BrokerError> {
        self.inner.completed_by_others(newest).await
    }

    async fn register(&self, status: &WorkerStatus) -> Result<Orders, BrokerError> {
        self.inner.register(status).await
    }

    async fn leave(&self) -> Result<(), BrokerError> {
        self.inner.leave().await
    }

    /// Notes which leases it kept.
    async fn renew(&self) -> Result<(), BrokerError> {
        let (leases, sent_ms) = (self.live(), self.stage.now_ms());
        let failovers = self.failovers();
        self.inner.renew().await?;
        let still = self.live();
        let mut ledger = self.stage.ledger();
        if ledger.failovers == failovers {
            let kept =
                leases.into_keys().filter(|key| still.contains_key(key) && !ledger.ending.contains(key));
            let kept: Vec<_> = kept.map(|key| (key, (self.name.clone(), sent_ms))).collect();
            ledger.kept_ms.extend(kept);
        }
        Ok(())
    }

    async fn hear(&self) -> Result<(), BrokerError> {
        self.inner.hear().await
    }

    async fn promote(&self) -> Result<Duration, BrokerError> {
        if self.waits_for_room() { Ok(Duration::from_millis(50)) } else { self.inner.promote().await }
    }

    async fn reclaim(&self) -> Result<u64, BrokerError> {
        if self.waits_for_room() { Ok(0) } else { self.inner.reclaim().await }
    }

    async fn sweep(&self) -> Result<(), BrokerError> {
        if self.waits_for_room() { Ok(()) } else { self.inner.sweep().await }
    }
}
