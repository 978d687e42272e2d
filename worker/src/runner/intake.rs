//! Claims turns while there is room for them. What must go on without room is `tend`'s.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::link::Backoff;
use super::publish::persist;
use super::{Link, Runner};
use crate::broker::{Broker, Ticket};
use crate::lifecycle::Lifecycle;
use crate::observe::{Claimed, metrics};

/// Takes turns from the queue and starts a task for each.
pub struct Intake<B> {
    runner: Arc<Runner<B>>,
    room: Arc<Semaphore>,
    tasks: TaskTracker,
    lifecycle: Arc<Lifecycle>,
    stop: CancellationToken,
}

impl<B: Broker> Intake<B> {
    /// At most `max_turns` at a time, until `stop`; turns run on as tasks of `tasks`.
    pub fn new(
        runner: Arc<Runner<B>>,
        lifecycle: Arc<Lifecycle>,
        max_turns: usize,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self { runner, room: Arc::new(Semaphore::new(max_turns)), tasks, lifecycle, stop }
    }

    /// Runs until stopped. Tickets read and not leased by then are returned.
    pub async fn run(self) {
        let mut backoff = Backoff::default();
        while !self.stop.is_cancelled() {
            let Some(room) = self.wait_for_room().await else { return };
            if self.lifecycle.engine_stalled(Instant::now()) {
                // What is claimed now would wait for a lease to run out.
                backoff.pause().await;
                continue;
            }
            // Not cut short by `stop`: tickets may be on their way, and nobody would read them again.
            match self.link().note(self.broker().read(room).await) {
                Err(_) => backoff.pause().await,
                Ok(tickets) => {
                    backoff = Backoff::default();
                    self.start(tickets).await;
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

    async fn start(&self, tickets: Vec<Ticket>) {
        for ticket in tickets {
            let permit = self.room.clone().acquire_owned().await.expect("the semaphore is never closed");
            if self.stop.is_cancelled() {
                return_ticket(&self.runner, &ticket).await;
                continue;
            }
            let runner = self.runner.clone();
            self.tasks.spawn(run_agent(runner, ticket, permit, self.stop.clone()));
        }
    }

    fn broker(&self) -> &B {
        &self.runner.broker
    }

    fn link(&self) -> &Link {
        &self.runner.link
    }
}

/// Runs turns of the ticket's agent, for as long as the worker continues with the next; holds their place until it is over.
async fn run_agent<B: Broker>(
    runner: Arc<Runner<B>>,
    ticket: Ticket,
    place: OwnedSemaphorePermit,
    stop: CancellationToken,
) {
    let mut next = Some(ticket);
    while let Some(ticket) = next {
        if stop.is_cancelled() {
            return_ticket(&runner, &ticket).await;
            break;
        }
        next = lease_and_run(&runner, ticket, &stop).await;
    }
    drop(place);
}

async fn return_ticket<B: Broker>(runner: &Runner<B>, ticket: &Ticket) {
    if let Err(error) = runner.broker.return_ticket(ticket).await {
        let agent = &ticket.agent;
        warn!(%error, agent = agent.own(), tenant = agent.tenant(), "a ticket was not returned; it is free after a lease");
    }
}

/// Leases the head of the ticket's agent and runs it. Some: the agent's next turn is this worker's to lease.
async fn lease_and_run<B: Broker>(
    runner: &Runner<B>,
    ticket: Ticket,
    stop: &CancellationToken,
) -> Option<Ticket> {
    let from = Instant::now();
    let leased = tokio::select! {
        leased = persist(&runner.link, || runner.broker.lease(&ticket)) => leased,
        // The queue does not answer, and the worker stops: the ticket is free after a lease.
        () = stop.cancelled() => return None,
    };
    match leased {
        Ok(Some(claim)) => {
            let first = claim.lease.attempt == 1;
            metrics::turn_claimed(first.then(|| Duration::from_millis(claim.queued_ms)));
            metrics::turns_held(runner.broker.leases());
            let next = runner.run(claim, Claimed { from, to: Instant::now() }, ticket).await;
            metrics::turns_held(runner.broker.leases());
            next
        }
        Ok(None) => None,
        Err(error) => {
            let agent = &ticket.agent;
            let error = error.without_content();
            warn!(error, agent = agent.own(), tenant = agent.tenant(), "the turn could not be leased");
            None
        }
    }
}
