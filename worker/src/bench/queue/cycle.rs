//! Whole cycles: enqueue, read, lease, one delta, finish.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::{try_join, try_join_all};
use tokio::sync::Semaphore;
use turnmill_schema::{
    Delta, End, FinishReason, Message, Outcome, Role, Timing, TranscriptEntry, TurnId, Usage,
};

use super::enqueue::Producer;
use super::{BATCH_TURNS, Bench, BenchError, Latency, ROOM, per_second};
use crate::broker::redis::RedisBroker;
use crate::broker::{Broker, BrokerError, Claim, Ending, Ticket};

/// Turns that wait at most while cycles are measured: enough that no worker ever waits for one.
const MAX_WAITING: usize = 20_000;
/// How long half load is kept up.
const HALF_LOAD: Duration = Duration::from_secs(10);
/// Time between two enqueue calls at half load.
const PACE: Duration = Duration::from_millis(2);

/// What whole cycles took.
pub(super) struct Cycles {
    pub(super) per_s: f64,
    pub(super) redis_cpu_us: f64,
}

/// As many as go.
pub(super) async fn full(bench: &Bench) -> Result<Cycles, BenchError> {
    let turns = bench.options.turns;
    let fleet = Fleet::new(turns);
    let server = bench.server()?;
    let cpu_before = server.cpu_us().await?;
    let began = Instant::now();
    try_join(fleet.run(bench), enqueue_all(bench, &fleet)).await?;
    let per_s = per_second(turns, began);
    let redis_cpu_us = (server.cpu_us().await? - cpu_before) / turns as f64;
    Ok(Cycles { per_s, redis_cpu_us })
}

/// Batches, as long as not too many wait.
async fn enqueue_all(bench: &Bench, fleet: &Fleet) -> Result<(), BenchError> {
    let producer = Producer::new(bench)?;
    for start in (0..bench.options.turns).step_by(BATCH_TURNS) {
        while start.saturating_sub(fleet.shared.done.load(Ordering::Relaxed)) > MAX_WAITING {
            tokio::time::sleep(PACE).await;
        }
        let end = (start + BATCH_TURNS).min(bench.options.turns);
        producer.enqueue((start..end).map(|i| bench.turn(i)).collect()).await?;
    }
    Ok(())
}

/// Turns come evenly, `per_s` of them; how long they wait for their lease.
pub(super) async fn half_load(bench: &Bench, per_s: f64) -> Result<Latency, BenchError> {
    let turns = (per_s * HALF_LOAD.as_secs_f64()).max(1.0) as usize;
    let fleet = Fleet::new(turns);
    try_join(fleet.run(bench), enqueue_evenly(bench, &fleet, turns, per_s)).await?;
    let mut waits = std::mem::take(&mut *fleet.shared.lock_waits());
    waits.sort_unstable();
    let at = |share: f64| {
        let index = ((waits.len() as f64 * share) as usize).min(waits.len().saturating_sub(1));
        waits.get(index).map_or(0.0, |wait| wait.as_secs_f64() * 1000.0)
    };
    Ok(Latency { p50: at(0.5), p99: at(0.99) })
}

async fn enqueue_evenly(bench: &Bench, fleet: &Fleet, turns: usize, per_s: f64) -> Result<(), BenchError> {
    let producer = Producer::new(bench)?;
    let mut ticks = tokio::time::interval(PACE);
    let began = Instant::now();
    let mut sent = 0;
    while sent < turns {
        ticks.tick().await;
        let due = ((began.elapsed().as_secs_f64() * per_s) as usize).clamp(sent, turns);
        let batch: Vec<_> = (sent..due).map(|i| bench.turn(i)).collect();
        sent = due;
        if batch.is_empty() {
            continue;
        }
        let now = Instant::now();
        fleet.shared.lock_enqueued().extend(batch.iter().map(|turn| (turn.id, now)));
        producer.enqueue(batch).await?;
    }
    Ok(())
}

/// Workers that run a number of turns and then stop.
struct Fleet {
    shared: Arc<Shared>,
}

struct Shared {
    turns: usize,
    done: AtomicUsize,
    /// When turns were enqueued whose waiting time counts.
    enqueued: Mutex<HashMap<TurnId, Instant>>,
    waits: Mutex<Vec<Duration>>,
}

impl Shared {
    fn lock_enqueued(&self) -> std::sync::MutexGuard<'_, HashMap<TurnId, Instant>> {
        self.enqueued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_waits(&self) -> std::sync::MutexGuard<'_, Vec<Duration>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn over(&self) -> bool {
        self.done.load(Ordering::Relaxed) >= self.turns
    }
}

impl Fleet {
    fn new(turns: usize) -> Self {
        let shared =
            Shared { turns, done: AtomicUsize::new(0), enqueued: Mutex::default(), waits: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    async fn run(&self, bench: &Bench) -> Result<(), BenchError> {
        let workers = (0..bench.options.workers).map(|worker| async move {
            let broker = Arc::new(bench.broker(&format!("w{worker}")).await?);
            work(broker, Arc::clone(&self.shared)).await
        });
        try_join_all(workers).await.map(|_| ())
    }
}

/// Reads while there is room and runs each agent as a task, as a worker does.
async fn work(broker: Arc<RedisBroker>, shared: Arc<Shared>) -> Result<(), BenchError> {
    let room = Arc::new(Semaphore::new(ROOM));
    while !shared.over() {
        let permit = room.acquire().await.expect("the semaphore is never closed");
        drop(permit);
        for ticket in broker.read(room.available_permits()).await? {
            let place = room.clone().acquire_owned().await.expect("the semaphore is never closed");
            let (broker, shared) = (broker.clone(), shared.clone());
            tokio::spawn(async move {
                if let Err(error) = run_agent(&broker, ticket, &shared).await {
                    tracing::warn!(%error, "a cycle failed");
                }
                drop(place);
            });
        }
    }
    Ok(())
}

async fn run_agent(broker: &RedisBroker, ticket: Ticket, shared: &Shared) -> Result<(), BrokerError> {
    let mut next = Some(ticket);
    while let Some(ticket) = next {
        let Some(claim) = broker.lease(&ticket).await? else { return Ok(()) };
        if let Some(enqueued) = shared.lock_enqueued().remove(&claim.lease.turn) {
            shared.lock_waits().push(enqueued.elapsed());
        }
        let mut delta = Delta::default();
        [(1, "some"), (2, " "), (3, "words")]
            .into_iter()
            .for_each(|(token, text)| delta.push(token, text, None));
        broker.append(&claim.lease, &delta).await?;
        next = broker.finish(&claim.lease, &ending(&claim, delta)).await?;
        shared.done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn ending(claim: &Claim, delta: Delta) -> Ending {
    let turn = claim.lease.turn;
    let messages = vec![Message::new(Role::Assistant, "some words")];
    let end = End {
        outcome: Outcome::Completed,
        finish: Some(FinishReason::Stop),
        stop: None,
        error: None,
        usage: Usage { prompt_tokens: 10, cached_tokens: 0, completion_tokens: 3, reasoning_tokens: 0 },
        timing: Timing { queued_ms: claim.queued_ms, first_token_ms: None, total_ms: claim.queued_ms },
        worker: Some("bench".into()),
    };
    let entry = TranscriptEntry { turn, messages, keep: 0, tokens: vec![1, 2, 3], rendering: None };
    Ending {
        published: 3,
        end,
        entry: Some(entry),
        reply: Some(delta),
        reason: None,
        continues: true,
        manifest: None,
    }
}
