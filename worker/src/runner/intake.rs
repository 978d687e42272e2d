//! Claims turns while there is room for them. What must go on without room is `tend`'s.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::health::{Backoff, until_answered};
use super::{QueueHealth, Runner};
use crate::broker::{Broker, Claim, Ticket};
use crate::engine::EngineHandle;
use crate::lifecycle::Lifecycle;
use crate::observe::{Claimed, metrics};
use crate::surroundings::Surroundings;

/// How long a stopping worker waits for the answer to a lease that is under way: it may have been granted, and a lease that nobody
/// knows of keeps its turn waiting until it runs out. Less than the time in which turns are requeued.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// Takes turns from the queue and starts a task for each.
pub struct Intake<B, E> {
    runner: Arc<Runner<B, E>>,
    room: Arc<Semaphore>,
    tasks: TaskTracker,
    lifecycle: Arc<Lifecycle>,
    stop: CancellationToken,
}

impl<B: Broker, E: EngineHandle> Intake<B, E> {
    /// At most `max_turns` at a time, until `stop`; turns run on as tasks of `tasks`.
    pub fn new(
        runner: Arc<Runner<B, E>>,
        lifecycle: Arc<Lifecycle>,
        max_turns: usize,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self { runner, room: Arc::new(Semaphore::new(max_turns)), tasks, lifecycle, stop }
    }

    /// A place for each turn that it may have.
    pub(super) fn room(&self) -> Arc<Semaphore> {
        self.room.clone()
    }

    /// Runs until stopped. Tickets read and not leased by then are returned.
    pub async fn run(self) {
        let mut backoff = Backoff::default();
        let mut read = self.runner.health.repeated("read", "no tickets were read");
        while !self.stop.is_cancelled() {
            let Some(room) = self.wait_for_room().await else { return };
            let surroundings = &self.runner.surroundings;
            if self.lifecycle.engine_stalled(surroundings.now()) {
                // What is claimed now would wait for a lease to run out.
                backoff.pause(surroundings).await;
                continue;
            }
            // Not cut short by `stop`: tickets may be on their way, and nobody would read them again.
            match read.note(self.runner.broker.read(room).await) {
                Err(_) => backoff.pause(surroundings).await,
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
            biased;
            () = self.stop.cancelled() => return None,
            permit = self.room.acquire() => drop(permit),
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
            let run = run_agent(runner, ticket, permit, self.stop.clone());
            self.runner.surroundings.spawn(self.tasks.track_future(run));
        }
    }
}

/// Runs turns of the ticket's agent, for as long as the worker continues with the next; holds their place until it is over.
async fn run_agent<B: Broker, E: EngineHandle>(
    runner: Arc<Runner<B, E>>,
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

async fn return_ticket<B: Broker, E: EngineHandle>(runner: &Runner<B, E>, ticket: &Ticket) {
    if let Err(error) = runner.broker.return_ticket(ticket).await {
        let agent = &ticket.agent;
        warn!(%error, agent = agent.own(), tenant = agent.tenant(), "a ticket was not returned; it is free after a lease");
    }
}

/// Leases the head of the ticket's agent and runs it. Some: the agent's next turn is this worker's to lease.
async fn lease_and_run<B: Broker, E: EngineHandle>(
    runner: &Runner<B, E>,
    ticket: Ticket,
    stop: &CancellationToken,
) -> Option<Ticket> {
    let from = runner.surroundings.now();
    let claim = lease(&*runner.broker, &runner.health, &ticket, stop).await?;
    let first = claim.lease.attempt == 1;
    metrics::turn_claimed(first.then(|| Duration::from_millis(claim.queued_ms)));
    metrics::turns_held(runner.broker.leases());
    let next = runner.run(claim, Claimed { from, to: runner.surroundings.now() }, ticket).await;
    metrics::turns_held(runner.broker.leases());
    next
}

/// Leases the head of the ticket's agent. None: there is nothing to run.
async fn lease<B: Broker>(
    broker: &B,
    health: &QueueHealth,
    ticket: &Ticket,
    stop: &CancellationToken,
) -> Option<Claim> {
    let leased = tokio::select! {
        biased;
        leased = until_answered(health, "lease", || broker.lease(ticket)) => leased,
        // The queue does not answer: the ticket is free after a lease.
        () = after(stop, LAST_ANSWER, &health.surroundings) => return None,
    };
    leased.unwrap_or_else(|error| {
        let agent = &ticket.agent;
        let error = error.without_content();
        warn!(error, agent = agent.own(), tenant = agent.tenant(), "the turn could not be leased");
        None
    })
}

/// Waits until `wait` after `stop`.
async fn after(stop: &CancellationToken, wait: Duration, surroundings: &Surroundings) {
    stop.cancelled().await;
    surroundings.sleep(wait).await;
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::broker::double::Double;
    use crate::lifecycle::HeadroomLimits;

    #[tokio::test]
    async fn a_lease_under_way_is_waited_for_when_the_worker_stops_but_not_for_ever() {
        for answers in [true, false] {
            let queue = Double::default();
            let (ticket, asked, answer) = (queue.ticket(), queue.asked.clone(), queue.answer.clone());
            let limits = HeadroomLimits { low: 0.0, high: 0.1 };
            let lifecycle = Lifecycle::new(limits, Duration::from_secs(60), Instant::now());
            let health = QueueHealth::new(Arc::new(lifecycle), Surroundings::machine());
            let stop = CancellationToken::new();
            let stops = async {
                asked.notified().await;
                stop.cancel();
                tokio::task::yield_now().await;
                if answers {
                    answer.notify_one();
                }
            };
            let (claim, ()) = tokio::join!(lease(&queue, &health, &ticket, &stop), stops);
            assert_eq!(claim.is_some(), answers, "the queue leased it");
        }
    }
}
