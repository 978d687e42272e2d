//! The workers of a run: processes in slots, each behind a proxy of its own; what dies is replaced.
//!
//! Invariant: every process has a name of its own (`w<slot>-<generation>`), so that results and agents say which
//! process wrote them. Only running workers are chosen for the next fault.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::audit::Finding;
use super::{kept, leaks};
use crate::proxy::{Hold, Proxy};
use crate::scrape::Scrape;
use crate::worker::Worker;

/// The queue that workers serve and producers fill.
pub const QUEUE: &str = "chaos";

/// The lease of every worker.
pub const LEASE: Duration = Duration::from_millis(2000);

/// A worker that ends by itself, for want of a Redis as a rule, is started again after this long.
const RESTART_AFTER: Duration = Duration::from_millis(500);

/// Small workers that share a small machine and hold several turns each. A turn may be killed before its first token
/// many times in a row here, which is no reason to give it up.
const FLAGS: [&str; 22] = [
    "--queue",
    QUEUE,
    "--lease-ms",
    "2000",
    "--threads",
    "1",
    "--max-sequences",
    "4",
    "--pool-bytes",
    "64MiB",
    // A few segments, so that most of what comes back is read from the store.
    "--host-cache-bytes",
    "16MiB",
    "--drain-ms",
    "300",
    "--max-attempts",
    "50",
    "--result-ttl-ms",
    "86400000",
    // The audit reads every stream, those of short replies too.
    "--keep-stream-ms",
    "86400000",
    "--outcome-ttl-ms",
    "172800000",
];

/// The workers.
pub struct Fleet {
    slots: Vec<Slot>,
    logs: Vec<(String, String)>,
}

struct Slot {
    number: usize,
    generation: u32,
    proxy: Arc<Proxy>,
    /// Where K and V are kept.
    store: String,
    worker: Worker,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    /// By SIGSTOP, until then.
    Stopped(Instant),
    Draining,
    /// Not there, until then.
    Down(Instant),
}

impl Slot {
    async fn start(number: usize, redis: SocketAddr, store: String) -> io::Result<Self> {
        let proxy = Arc::new(Proxy::start(redis).await?);
        let worker = launch(&proxy, &store, &name(number, 1));
        Ok(Self { number, generation: 1, proxy, store, worker, state: State::Running })
    }

    fn name(&self) -> String {
        name(self.number, self.generation)
    }

    /// What its worker holds. One that does not answer is about to end, or has just started.
    fn held(&self) -> Vec<Finding> {
        let answer = if self.state == State::Running { self.worker.try_get("/metrics") } else { None };
        let metrics = answer.filter(|(status, _)| *status == 200);
        metrics.map(|(_, text)| leaks::of_worker(&self.name(), &Scrape::read(&text))).unwrap_or_default()
    }

    /// Starts the next process; the log of the last one.
    fn replace(&mut self) -> (String, String) {
        let log = (self.name(), self.worker.log());
        self.generation += 1;
        self.worker = launch(&self.proxy, &self.store, &self.name());
        self.state = State::Running;
        log
    }
}

fn name(slot: usize, generation: u32) -> String {
    format!("w{slot}-{generation}")
}

fn launch(proxy: &Proxy, store: &str, name: &str) -> Worker {
    Worker::launch(&proxy.url(), &[&FLAGS[..], &["--worker-name", name, "--store", store]].concat())
}

impl Fleet {
    /// `workers` workers of the queue at `redis`, ready, that keep K and V in the folder `store`.
    pub async fn start(redis: SocketAddr, workers: usize, store: &Path) -> io::Result<Self> {
        let mut slots = Vec::new();
        for number in 0..workers {
            slots.push(Slot::start(number, redis, kept::url(store)).await?);
        }
        tokio::task::block_in_place(|| slots.iter_mut().for_each(|slot| slot.worker.until_ready()));
        Ok(Self { slots, logs: Vec::new() })
    }

    /// Wakes workers that slept long enough and replaces those that are gone. Call it all the time.
    pub fn tend(&mut self) {
        let now = Instant::now();
        for slot in &mut self.slots {
            match slot.state {
                State::Stopped(until) if now >= until => {
                    slot.worker.sigcont();
                    slot.state = State::Running;
                }
                State::Down(until) if now >= until => self.logs.push(slot.replace()),
                State::Running if slot.worker.exited().is_some() => {
                    let log = slot.worker.log();
                    eprintln!("{} ended by itself: {}", slot.name(), log.lines().last().unwrap_or_default());
                    slot.state = State::Down(now + RESTART_AFTER);
                }
                State::Draining if slot.worker.exited().is_some() => self.logs.push(slot.replace()),
                _ => {}
            }
        }
    }

    /// The names of the processes that run: they are not stopped, drained or gone.
    pub fn running(&self) -> impl Iterator<Item = String> {
        self.slots.iter().filter(|slot| slot.state == State::Running).map(Slot::name)
    }

    /// The running worker that `choice`, a random number, falls on among those for which `qualifies` says yes.
    pub fn choose(&self, choice: u64, qualifies: impl Fn(&str) -> bool) -> Option<usize> {
        let fit = |slot: &&Slot| slot.state == State::Running && qualifies(&slot.name());
        let fit: Vec<usize> = self.slots.iter().filter(fit).map(|slot| slot.number).collect();
        let place = choice % fit.len().max(1) as u64;
        fit.get(place as usize).copied()
    }

    /// The name of the process in a slot.
    pub fn name(&self, slot: usize) -> String {
        self.slots[slot].name()
    }

    /// `kill -9`; another worker takes its place at once.
    pub fn kill(&mut self, slot: usize) {
        self.slots[slot].worker.kill9();
        let log = self.slots[slot].replace();
        self.logs.push(log);
    }

    /// SIGSTOP, and SIGCONT after `silence`.
    pub fn stop(&mut self, slot: usize, silence: Duration) {
        self.slots[slot].worker.sigstop();
        self.slots[slot].state = State::Stopped(Instant::now() + silence);
    }

    /// SIGTERM; another worker takes its place once it has ended.
    pub fn drain(&mut self, slot: usize) {
        self.slots[slot].worker.sigterm();
        self.slots[slot].state = State::Draining;
    }

    /// The way of a slot's workers to Redis.
    pub fn proxy(&self, slot: usize) -> &Arc<Proxy> {
        &self.slots[slot].proxy
    }

    /// The ways of all workers to Redis.
    pub fn proxies(&self) -> impl Iterator<Item = &Arc<Proxy>> {
        self.slots.iter().map(|slot| &slot.proxy)
    }

    /// Nothing is in anybody's way any more.
    pub fn calm(&mut self) {
        for slot in &mut self.slots {
            slot.proxy.hold(Hold::Nothing);
            slot.proxy.refuse(false);
            if let State::Stopped(_) = slot.state {
                slot.state = State::Stopped(Instant::now());
            }
        }
        self.tend();
    }

    /// What running workers hold, after at most `patience` to let go of it. For a queue without open turns. Blocks.
    pub fn held(&self, patience: Duration) -> Vec<Finding> {
        let deadline = Instant::now() + patience;
        loop {
            let held: Vec<Finding> = self.slots.iter().flat_map(Slot::held).collect();
            if held.is_empty() || Instant::now() > deadline {
                return held;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends every worker in order, so that nobody writes any more; the logs of all there ever were.
    pub fn end(mut self) -> Vec<(String, String)> {
        for slot in &mut self.slots {
            if slot.worker.exited().is_none() {
                slot.worker.sigterm();
            }
        }
        for slot in &mut self.slots {
            slot.worker.wait_exit();
            self.logs.push((slot.name(), slot.worker.log()));
        }
        self.logs
    }
}
