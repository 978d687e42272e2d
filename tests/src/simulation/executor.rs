//! Runs futures on one thread in a time of its own: whenever nothing can go on, the time jumps to the next timer. Which
//! of the futures that can go on does is a throw of the dice; so a seed is a schedule.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use super::dice::Dice;
use crate::memory_broker::Clock;

/// When every simulation starts, in Unix milliseconds.
pub const START_MS: u64 = 1_700_000_000_000;

/// The simulated clock. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct SimClock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    now_ms: AtomicU64,
    timers: Mutex<Timers>,
}

#[derive(Debug, Default)]
struct Timers {
    heap: BinaryHeap<Reverse<(u64, u64)>>,
    wakers: std::collections::HashMap<u64, Waker>,
    last: u64,
}

impl SimClock {
    /// At [`START_MS`].
    pub fn start() -> Self {
        Self(Arc::new(Inner { now_ms: AtomicU64::new(START_MS), timers: Mutex::default() }))
    }

    /// Ends after `ms`.
    pub async fn sleep(&self, ms: u64) {
        Until { clock: self.clone(), at_ms: self.now() + ms }.await;
    }

    /// What time it is.
    pub fn now(&self) -> u64 {
        self.0.now_ms.load(Ordering::Relaxed)
    }

    /// Jumps to the next timer; false where there is none.
    fn advance(&self) -> bool {
        let mut timers = self.0.timers.lock().expect("not poisoned");
        let Some(Reverse((at_ms, _))) = timers.heap.peek().copied() else { return false };
        self.0.now_ms.fetch_max(at_ms, Ordering::Relaxed);
        let mut due = Vec::new();
        while let Some(Reverse((at, number))) = timers.heap.peek().copied()
            && at <= at_ms
        {
            timers.heap.pop();
            due.extend(timers.wakers.remove(&number));
        }
        drop(timers);
        due.into_iter().for_each(Waker::wake);
        true
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        self.now()
    }

    fn until(&self, at_ms: u64) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(Until { clock: self.clone(), at_ms })
    }
}

struct Until {
    clock: SimClock,
    at_ms: u64,
}

impl Future for Until {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.clock.now() >= self.at_ms {
            return Poll::Ready(());
        }
        let mut timers = self.clock.0.timers.lock().expect("not poisoned");
        timers.last += 1;
        let number = timers.last;
        timers.heap.push(Reverse((self.at_ms, number)));
        timers.wakers.insert(number, context.waker().clone());
        Poll::Pending
    }
}

/// A future that can go on is in the list once.
struct Runnable {
    number: usize,
    is_listed: AtomicBool,
    list: Arc<Mutex<Vec<usize>>>,
}

impl Wake for Runnable {
    fn wake(self: Arc<Self>) {
        if !self.is_listed.swap(true, Ordering::Relaxed) {
            self.list.lock().expect("not poisoned").push(self.number);
        }
    }
}

/// A future of the simulation.
pub type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Runs `tasks` until the first of them ends. False where nothing can go on any more, or it is `limit_ms`.
pub fn run(clock: &SimClock, dice: &Dice, tasks: Vec<Task>, limit_ms: u64) -> bool {
    let list = Arc::new(Mutex::new((0..tasks.len()).collect::<Vec<_>>()));
    let runnable = |number| {
        let list = Arc::clone(&list);
        Arc::new(Runnable { number, is_listed: AtomicBool::new(true), list })
    };
    let mut tasks: Vec<_> =
        tasks.into_iter().enumerate().map(|(number, task)| (Some(task), runnable(number))).collect();
    loop {
        let next = {
            let mut list = list.lock().expect("not poisoned");
            let count = list.len();
            (count > 0).then(|| list.swap_remove(dice.below(count as u64) as usize))
        };
        let Some(next) = next else {
            if !clock.advance() || clock.now() >= limit_ms {
                return false;
            }
            continue;
        };
        let (task, runnable) = &mut tasks[next];
        runnable.is_listed.store(false, Ordering::Relaxed);
        let Some(future) = task else { continue };
        let waker = Waker::from(Arc::clone(runnable));
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            *task = None;
            if next == 0 {
                return true;
            }
        }
    }
}
