//! The same traces on both adapters: every answer and, after each step, what the queue shows must be the same. The
//! simulation is about the memory adapter; this says that what it shows holds for the scripts.
//!
//! Time is steered: leases are longer than any trace, so nothing idles by itself; a worker falls silent on both sides
//! because the trace says so, delays are none or far off. `TURNMILL_TRACE_SEED=n` replays one trace.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::Pipeline;
use redis::streams::{StreamPendingCountReply, StreamRangeReply};
use turnmill_redis::steps::{AgentAction, Reclaim, SilentTicket};
use turnmill_schema::keys::{FIELD_AGENT, FIELD_REPLY, GROUP};
use turnmill_schema::{AgentId, DeadReason, Delta, Event, Manifest, Outcome, Priority, Turn, TurnId};
use turnmill_tests::broker_conformance::{
    TestQueue, WorkerLimits, claim, delta, ending, entry, manifest as some_manifest, room_for, turn,
};
use turnmill_tests::memory_broker::{AgentState, Clock, MemoryBroker, MemoryQueue, NotEnqueued, QueueFull};
use turnmill_tests::memory_queue::settings;
use turnmill_tests::redis_link::answer;
use turnmill_tests::redis_queue::{RedisQueue, dead_letters_of, events_of, reply_of};
use turnmill_tests::simulation::Dice;
use turnmill_worker::broker::redis::RedisBroker;
use turnmill_worker::broker::{Broker, BrokerError, Ending, Lease, Ticket};

const TRACES: u64 = 300;
const STEPS: u64 = 40;
const WORKERS: u64 = 3;
const AGENTS: [&str; 3] = ["a", "b", "c"];
/// Of the memory adapter, by its own clock.
const LEASE_MS: u64 = 60_000;
const FAR_OFF: Duration = Duration::from_secs(3600);

/// A clock that goes when it is told to.
#[derive(Debug)]
struct Steered(AtomicU64);

impl Clock for Steered {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn until(&self, _at_ms: u64) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::pending())
    }
}

/// What a worker holds on both sides.
#[derive(Clone)]
struct Pair<T> {
    memory: T,
    redis: T,
}

struct Trace {
    dice: Dice,
    clock: Arc<Steered>,
    memory: MemoryQueue,
    redis: RedisQueue,
    workers: Vec<(MemoryBroker, RedisBroker)>,
    unleased: Vec<(usize, Pair<Ticket>)>,
    /// Leases, live or lost, and the tokens published under them.
    leases: Vec<(usize, Pair<Arc<Lease>>, u32)>,
    turns: Vec<TurnId>,
}

fn kind<T: std::fmt::Debug>(answer: &Result<T, BrokerError>) -> String {
    match answer {
        Ok(answer) => format!("{answer:?}"),
        Err(BrokerError::Fenced { .. }) => "fenced".to_owned(),
        Err(BrokerError::Gap { expected, found, .. }) => format!("gap {expected} {found}"),
        Err(other) => panic!("{other}"),
    }
}

/// Without epochs, times and texts that name times.
fn shown(events: Vec<Event>) -> Vec<String> {
    let show = |event| match event {
        Event::Begin(begin) => format!("begin {} {} {}", begin.attempt, begin.resume_from, begin.worker),
        Event::Delta(delta) => format!("delta {} {:?}", delta.index, delta.tokens),
        Event::End(end) => format!("end {:?}", end.outcome),
    };
    events.into_iter().map(show).collect()
}

impl Trace {
    async fn start(redis: RedisQueue, seed: u64) -> Self {
        let () = redis.command(&["FLUSHALL"]).await;
        let clock = Arc::new(Steered(AtomicU64::new(redis.now_ms().await)));
        let memory = MemoryQueue::new(Arc::clone(&clock) as Arc<dyn Clock>);
        let dice = Dice::new(seed);
        let limits = WorkerLimits {
            max_attempts: 3,
            tenant_max_running: dice.below(3),
            max_continues: dice.below(3) as u32,
        };
        let mut workers = Vec::new();
        for number in 0..WORKERS {
            let name = format!("w{number}");
            let of_redis = redis.worker_with(&name, limits).await;
            workers.push((memory.worker(settings(&name, LEASE_MS, limits)), of_redis));
        }
        let (unleased, leases, turns) = Default::default();
        let trace = Self { dice, clock, memory, redis, workers, unleased, leases, turns };
        for (memory, redis) in &trace.workers {
            trace.first_read(memory, redis).await;
        }
        trace
    }

    /// A worker's first read looks for tickets that an earlier process of its name held; later ones do not.
    async fn first_read(&self, memory: &MemoryBroker, redis: &RedisBroker) {
        let lone = [turn(None, "1")];
        self.memory.enqueue(&lone, room_for(9)).expect("the queue has room");
        self.redis.enqueue(&lone, room_for(9)).await.expect("the queue has room");
        let first = claim(memory).await;
        memory.finish(&first.lease, &ending(0, Outcome::Completed)).await.expect("ended");
        let first = claim(redis).await;
        redis.finish(&first.lease, &ending(0, Outcome::Completed)).await.expect("ended");
    }

    fn agent(&self) -> AgentId {
        turn(self.dice.pick(&AGENTS).copied(), "").agent_id()
    }

    async fn step(&mut self) {
        match self.dice.below(16) {
            0..3 => self.enqueue().await,
            3 | 4 => self.read().await,
            5 | 6 => self.lease().await,
            7 => self.append().await,
            8 | 9 => self.end().await,
            10 => self.requeue().await,
            11 => self.fall_silent().await,
            12 => self.operate().await,
            13 => self.advance().await,
            14 => self.promote().await,
            _ => self.renew().await,
        }
    }

    /// One unlike any other, or none.
    fn manifest(&self) -> Option<Manifest> {
        self.dice.chance(500).then(|| some_manifest(self.dice.below(u64::from(u32::MAX)) as u32))
    }

    async fn advance(&mut self) {
        let Some(number) = self.some_lease() else { return };
        let (worker, lease, _) = self.leases[number].clone();
        let (memory, redis) = &self.workers[worker];
        let manifest = some_manifest(self.dice.below(u64::from(u32::MAX)) as u32);
        let of_memory = memory.advance(&lease.memory.fence(), &manifest).await;
        assert_eq!(kind(&of_memory), kind(&redis.advance(&lease.redis.fence(), &manifest).await));
    }

    /// Nobody is ever due; agents get places, and turns past their deadline end.
    async fn promote(&self) {
        let (memory, redis) = &self.workers[0];
        memory.promote().await.expect("answered");
        redis.promote().await.expect("answered");
    }

    async fn enqueue(&mut self) {
        let priority = if self.dice.chance(300) { Priority::Batch } else { Priority::Interactive };
        let now_ms = self.clock.now_ms();
        let new = Turn {
            priority,
            not_before_ms: self.dice.chance(100).then(|| now_ms + FAR_OFF.as_millis() as u64),
            deadline_ms: self.dice.chance(100).then_some(1),
            new_session: self.dice.chance(100),
            ..turn(self.dice.chance(850).then(|| *self.dice.pick(&AGENTS).expect("some")), "1")
        };
        let room = room_for(self.dice.between(4, 12));
        // When to come again is a matter of the pace, and each has its own.
        let untimed = |refused| match refused {
            NotEnqueued::Full(full) => NotEnqueued::Full(QueueFull { retry_after_ms: 0, ..full }),
            other => other,
        };
        let after = self.dice.pick(&self.turns).filter(|_| self.dice.chance(300)).copied();
        let turns = [(&new, after)];
        let of_memory = self.memory.enqueue_after(&turns, room).map_err(untimed);
        let of_redis = self.redis.enqueue_after(&turns, room).await.map_err(untimed);
        assert_eq!(of_memory, of_redis);
        self.turns.extend(of_memory.unwrap_or_default());
    }

    async fn read(&mut self) {
        if self.memory.counts().runnable() == 0 {
            return;
        }
        let worker = self.dice.below(WORKERS) as usize;
        let (memory, redis) = &self.workers[worker];
        let tickets = (memory.read(1).await.expect("answered"), redis.read(1).await.expect("answered"));
        let one = |tickets| <[Ticket; 1]>::try_from(tickets).expect("there is a ticket");
        let ([memory], [redis]) = (one(tickets.0), one(tickets.1));
        assert_eq!((&memory.agent, memory.id.priority), (&redis.agent, redis.id.priority));
        self.unleased.push((worker, Pair { memory, redis }));
    }

    async fn lease(&mut self) {
        if self.unleased.is_empty() {
            return;
        }
        let number = self.dice.below(self.unleased.len() as u64) as usize;
        let (worker, ticket) = self.unleased.swap_remove(number);
        let (memory, redis) = &self.workers[worker];
        if self.dice.chance(150) {
            memory.return_ticket(&ticket.memory).await.expect("answered");
            return redis.return_ticket(&ticket.redis).await.expect("answered");
        }
        let of_memory = memory.lease(&ticket.memory).await.expect("answered");
        let of_redis = redis.lease(&ticket.redis).await.expect("answered");
        let of = |claim: &turnmill_worker::broker::Claim| {
            let (turn, attempt) = (claim.lease.turn, claim.lease.attempt);
            let published: Vec<u32> = claim.published.iter().flat_map(|delta| delta.tokens.clone()).collect();
            let expires = claim.expires_in.is_some();
            (turn, attempt, published, claim.history.clone(), claim.manifest, claim.alone, expires)
        };
        assert_eq!(of_memory.as_ref().map(of), of_redis.as_ref().map(of));
        if let (Some(memory), Some(redis)) = (of_memory, of_redis) {
            let published = memory.published.last().map_or(0, Delta::published);
            self.leases.push((worker, Pair { memory: memory.lease, redis: redis.lease }, published));
        }
    }

    fn some_lease(&self) -> Option<usize> {
        // Mostly the newest; lost ones try as well.
        let newest = self.leases.len().checked_sub(1)?;
        Some(if self.dice.chance(700) { newest } else { self.dice.below(newest as u64 + 1) as usize })
    }

    async fn append(&mut self) {
        let Some(number) = self.some_lease() else { return };
        let (worker, lease, published) = &mut self.leases[number];
        let (memory, redis) = &self.workers[*worker];
        let index = *published;
        let delta = delta(index, &[index, index + 1][..self.dice.between(1, 2) as usize]);
        let of_memory = memory.append(&lease.memory, &delta).await;
        assert_eq!(kind(&of_memory), kind(&redis.append(&lease.redis, &delta).await));
        if of_memory.is_ok() {
            *published = delta.published();
        }
    }

    async fn end(&mut self) {
        let Some(number) = self.some_lease() else { return };
        let (worker, lease, published) = self.leases[number].clone();
        let (memory, redis) = &self.workers[worker];
        let outcome =
            *self.dice.pick(&[Outcome::Completed, Outcome::Completed, Outcome::Failed]).expect("some");
        let published = published + u32::from(self.dice.chance(100));
        let ending = Ending {
            entry: Some(entry(&lease.memory, "1", 0, &[published])),
            reply: self.dice.chance(500).then(|| delta(0, &[7])),
            continues: self.dice.chance(500),
            manifest: self.manifest(),
            ..ending(published, outcome)
        };
        for _ in 0..self.dice.between(1, 2) {
            let of_memory = memory.finish(&lease.memory, &ending).await;
            let of_redis = redis.finish(&lease.redis, &ending).await;
            let is_some = |answer: &Result<Option<Ticket>, BrokerError>| match answer {
                Ok(ticket) => format!("{}", ticket.is_some()),
                error => kind(error),
            };
            assert_eq!(is_some(&of_memory), is_some(&of_redis));
            if let (Ok(Some(memory)), Ok(Some(redis))) = (of_memory, of_redis) {
                self.unleased.push((worker, Pair { memory, redis }));
            }
        }
    }

    async fn requeue(&mut self) {
        let Some(number) = self.some_lease() else { return };
        let (worker, lease, _) = self.leases[number].clone();
        let (memory, redis) = &self.workers[worker];
        if self.dice.chance(400) {
            let manifest = self.manifest();
            let of_memory = memory.requeue(&lease.memory, manifest.as_ref()).await;
            let of_redis = redis.requeue(&lease.redis, manifest.as_ref()).await;
            return assert_eq!(kind(&of_memory), kind(&of_redis));
        }
        let delay = if self.dice.chance(700) { Duration::ZERO } else { FAR_OFF };
        let of_memory = memory.retry(&lease.memory, delay, DeadReason::Attempts, "x").await;
        let of_redis = redis.retry(&lease.redis, delay, DeadReason::Attempts, "x").await;
        assert_eq!(kind(&of_memory), kind(&of_redis));
    }

    /// A worker is silent for a lease; the others are not.
    async fn fall_silent(&mut self) {
        let silent = self.dice.below(WORKERS) as usize;
        self.clock.0.fetch_add(LEASE_MS - 1, Ordering::Relaxed);
        for (worker, (memory, redis)) in self.workers.iter().enumerate() {
            if worker != silent {
                memory.renew().await.expect("answered");
                redis.renew().await.expect("answered");
            }
        }
        self.clock.0.fetch_add(1, Ordering::Relaxed);
        let of_memory = self.workers[0].0.reclaim().await.expect("answered");
        let tickets = self.tickets_of(&format!("w{silent}")).await;
        let (_, of_redis) = self.redis.run(&Reclaim { lease_ms: 0, tickets }).await;
        assert_eq!(of_redis.errors, Vec::<String>::new());
        let of_redis = of_redis.count;
        assert_eq!(of_memory, of_redis);
    }

    /// What Redis says is in the worker's hands.
    async fn tickets_of(&self, worker: &str) -> Vec<SilentTicket> {
        let mut tickets = Vec::new();
        for priority in Priority::ALL {
            let ready = self.redis.keys().ready(priority);
            let pending: StreamPendingCountReply =
                self.redis.command(&["XPENDING", &ready, GROUP, "-", "+", "1000", worker]).await;
            for entry in pending.ids.into_iter().map(|pending| pending.id) {
                let found: StreamRangeReply = self.redis.command(&["XRANGE", &ready, &entry, &entry]).await;
                let agent =
                    found.ids.first().and_then(|entry| entry.get(FIELD_AGENT)).map(AgentId::from_wire);
                tickets.push(SilentTicket { entry, priority, agent });
            }
        }
        tickets
    }

    async fn operate(&mut self) {
        if let Some(turn) = self.dice.pick(&self.turns).filter(|_| self.dice.chance(500)) {
            let operator = settings("operator", LEASE_MS, WorkerLimits::default());
            return assert_eq!(self.memory.cancel(*turn, &operator), self.redis.cancel(*turn).await);
        }
        let actions = [
            AgentAction::Pause,
            AgentAction::Resume,
            AgentAction::Resume,
            AgentAction::Halt,
            AgentAction::Skip,
            AgentAction::Reset,
        ];
        let (agent, action) = (self.agent(), *self.dice.pick(&actions).expect("some"));
        assert_eq!(self.memory.act(&agent, action), self.redis.act(&agent, action).await);
    }

    async fn renew(&mut self) {
        let Some(number) = self.some_lease() else { return };
        let (memory, redis) = &self.workers[self.leases[number].0];
        memory.renew().await.expect("answered");
        redis.renew().await.expect("answered");
    }

    /// What producers, readers and operators see.
    async fn compare(&self) {
        self.memory.check_integrity();
        let of_redis = self.workers[0].1.counts().await.expect("counted");
        let of_memory = self.memory.counts();
        assert_eq!(
            (of_memory.priorities, of_memory.delayed, of_memory.dead, of_memory.oldest_ms.is_some()),
            (of_redis.priorities, of_redis.delayed, of_redis.dead, of_redis.oldest_ms.is_some())
        );
        for (_, lease, _) in &self.leases {
            assert_eq!(lease.memory.is_lost(), lease.redis.is_lost(), "{:?}", lease.memory);
        }
        let agents = self.memory.agents();
        let mut answers = self.redis.ask(&self.look(&agents)).await.into_iter();
        let mut next = || answers.next().expect("every command has an answer");
        assert_eq!(self.memory.dead_letters(), dead_letters_of(answer(next())));
        for (agent, state) in agents {
            assert_eq!(Some(state.as_str()), answer::<Option<String>>(next()).as_deref(), "{agent}");
            let backlog: Vec<String> = answer(next());
            let ids = self.memory.backlog(&agent);
            let is_same = ids.iter().zip(&backlog).all(|(id, entry)| entry.starts_with(&id.to_string()));
            assert!(is_same && ids.len() == backlog.len(), "{agent}: {ids:?} {backlog:?}");
        }
        for turn in &self.turns {
            assert_eq!(shown(self.memory.events(*turn)), shown(events_of(answer(next()))), "{turn}");
            assert_eq!(self.memory.short_reply(*turn), reply_of(answer(next())));
        }
    }

    /// Asks for dead letters, for each agent's state and backlog, and for each turn's events and reply. All at once, because it is asked
    /// after every step.
    fn look(&self, agents: &[(AgentId, AgentState)]) -> Pipeline {
        let keys = self.redis.keys();
        let mut look = redis::pipe();
        look.cmd("XRANGE").arg(keys.dead()).arg(&["-", "+"]);
        for (agent, _) in agents {
            look.cmd("HGET").arg(keys.agent(agent)).arg("state");
            look.cmd("LRANGE").arg(keys.backlog(agent)).arg(&["0", "-1"]);
        }
        for turn in &self.turns {
            look.cmd("XRANGE").arg(keys.result(*turn)).arg(&["-", "+"]);
            look.cmd("HGET").arg(keys.turn(*turn)).arg(FIELD_REPLY);
        }
        look
    }
}

#[tokio::test]
async fn both_adapters_do_the_same() {
    let one = std::env::var("TURNMILL_TRACE_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let (first, end) = one.map_or((0, TRACES), |seed: u64| (seed, seed + 1));
    let mut redis = RedisQueue::start();
    for seed in first..end {
        let mut trace = Trace::start(redis, seed).await;
        for step in 0..STEPS {
            println!("TURNMILL_TRACE_SEED={seed}, step {step}");
            trace.step().await;
            trace.compare().await;
        }
        redis = trace.redis;
    }
}
