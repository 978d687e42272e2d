//! Claims turns while there is room for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::held::HeldToken;
use super::link::Backoff;
use super::publish::persist;
use super::{Held, Link, Runner};
use crate::broker::{Broker, ReadyToken};
use crate::lifecycle::Lifecycle;
use crate::observe::{Claimed, metrics};

/// Takes turns from the queue and starts a task for each.
pub struct Intake<B> {
    runner: Arc<Runner<B>>,
    room: Arc<Semaphore>,
    tasks: TaskTracker,
    lifecycle: Arc<Lifecycle>,
    /// Time between looks for abandoned turns.
    reclaim_every: Duration,
    stop: CancellationToken,
}

impl<B: Broker> Intake<B> {
    /// At most `max_turns` at a time, until `stop`; turns run on as tasks of `tasks`.
    pub fn new(
        runner: Arc<Runner<B>>,
        lifecycle: Arc<Lifecycle>,
        max_turns: usize,
        reclaim_every: Duration,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self { runner, room: Arc::new(Semaphore::new(max_turns)), tasks, lifecycle, reclaim_every, stop }
    }

    /// Runs until stopped. Tokens read and not leased by then are handed back.
    pub async fn run(self) {
        let mut backoff = Backoff::default();
        let mut reclaimed = Instant::now();
        while !self.stop.is_cancelled() {
            let Some(room) = self.wait_for_room().await else { return };
            if self.lifecycle.engine_stalled(Instant::now()) {
                // What is claimed now would wait for a lease to run out.
                backoff.pause().await;
                continue;
            }
            let due = reclaimed.elapsed() >= self.reclaim_every;
            let read = if due {
                reclaimed = Instant::now();
                self.look_after().await;
                self.link().note(self.broker().reclaim(room).await)
            } else {
                // Not cut short by `stop`: tokens may be on their way, and nobody would read them again.
                self.link().note(self.broker().read(room).await)
            };
            match read {
                Err(_) => backoff.pause().await,
                Ok(tokens) => {
                    backoff = Backoff::default();
                    if due {
                        metrics::turns_reclaimed(tokens.len());
                    }
                    self.start(tokens).await;
                }
            }
        }
    }

    /// How many turns fit; waits while none does. None: stopped.
    async fn wait_for_room(&self) -> Option<usize> {
        tokio::select! {
            permit = self.room.acquire() => drop(permit),
            () = self.stop.cancelled() => return None,
        }
        Some(self.room.available_permits())
    }

    /// Keeps the queue whole; any worker may.
    async fn look_after(&self) {
        if let Err(error) = self.link().note(self.broker().sweep().await) {
            tracing::debug!(%error, "the queue was not swept");
        }
    }

    async fn start(&self, tokens: Vec<ReadyToken>) {
        let held: Vec<HeldToken> = tokens.into_iter().map(|token| self.held().add_token(token)).collect();
        for token in held {
            let permit = self.room.clone().acquire_owned().await.expect("the semaphore is never closed");
            if self.stop.is_cancelled() {
                put_back(&self.runner, &token).await;
                continue;
            }
            let runner = self.runner.clone();
            self.tasks.spawn(run_agent(runner, token, permit, self.stop.clone()));
        }
    }

    fn broker(&self) -> &B {
        &self.runner.broker
    }

    fn held(&self) -> &Held {
        &self.runner.held
    }

    fn link(&self) -> &Link {
        &self.runner.link
    }
}

/// Runs turns of the token's agent, for as long as they are handed over; holds their place until it is over.
async fn run_agent<B: Broker>(
    runner: Arc<Runner<B>>,
    token: HeldToken,
    place: OwnedSemaphorePermit,
    stop: CancellationToken,
) {
    let mut next = Some(token);
    while let Some(token) = next {
        if stop.is_cancelled() {
            put_back(&runner, &token).await;
            break;
        }
        next = lease_and_run(&runner, token, &stop).await;
    }
    drop(place);
}

async fn put_back<B: Broker>(runner: &Runner<B>, token: &HeldToken) {
    if let Err(error) = runner.broker.put_back(token.token()).await {
        let agent = &token.token().agent;
        warn!(%error, agent = agent.own(), tenant = agent.tenant(), "a token was not handed back; it is free after a lease");
    }
}

/// Leases the head of the token's agent and runs it. Some: the agent's next turn is this worker's to lease.
async fn lease_and_run<B: Broker>(
    runner: &Runner<B>,
    token: HeldToken,
    stop: &CancellationToken,
) -> Option<HeldToken> {
    let from = Instant::now();
    let leased = tokio::select! {
        leased = persist(&runner.link, || runner.broker.lease(token.token())) => leased,
        // The queue does not answer, and the worker stops: the token is free after a lease.
        () = stop.cancelled() => return None,
    };
    match leased {
        Ok(Some(claim)) => {
            let first = claim.lease.attempt == 1;
            metrics::turn_claimed(first.then(|| Duration::from_millis(claim.queued_ms)));
            runner.run(claim, Claimed { from, to: Instant::now() }, token).await
        }
        Ok(None) => None,
        Err(error) => {
            let agent = &token.token().agent;
            let error = error.without_content();
            warn!(error, agent = agent.own(), tenant = agent.tenant(), "the turn could not be leased");
            None
        }
    }
}
