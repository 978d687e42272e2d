//! Runs tasks on one thread: whenever none can go on, time goes on to the next timer. Which of those that can go on does is a throw
//! of the dice; so a seed is a schedule.
//!
//! Tasks belong to processes. A process that dies loses all its tasks at once, wherever they wait; one that is stopped goes on later
//! from where it was, as a machine does that swaps or whose hypervisor moves it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use turnmill_worker::surroundings::{Simulation, Surroundings, Task};

use super::clock::SimClock;
use super::dice::Dice;

/// Number of a process.
pub(super) type ProcessId = u64;

/// The process of everybody who is no worker; it neither dies nor stops.
pub(super) const WORLD: ProcessId = 0;

/// What is in store for a process, by how often its tasks go on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fate {
    /// It dies then.
    pub(super) dies_after: Option<u64>,
    /// After how many polls it stops, and for how many milliseconds.
    pub(super) stops_after: Option<(u64, u64)>,
}

/// What a process met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    Death,
    /// For this many milliseconds.
    Stop(u64),
}

/// Runs tasks. Clones are the same.
#[derive(Clone)]
pub(super) struct Executor(Arc<Inner>);

struct Inner {
    clock: SimClock,
    dice: Dice,
    /// Tasks that can go on.
    ready: Arc<Mutex<Vec<u64>>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last_task: u64,
    last_process: ProcessId,
    tasks: BTreeMap<u64, Entry>,
    processes: BTreeMap<ProcessId, Process>,
}

struct Entry {
    process: ProcessId,
    /// Absent while it goes on.
    task: Option<Task>,
    wake: Arc<Listed>,
}

#[derive(Default)]
struct Process {
    fate: Fate,
    polls: u64,
    /// Tasks that could go on if it were not stopped.
    stopped: Option<Vec<u64>>,
}

/// A task that can go on is in the list once.
struct Listed {
    task: u64,
    is_listed: AtomicBool,
    ready: Arc<Mutex<Vec<u64>>>,
}

impl Wake for Listed {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_listed.swap(true, Ordering::Relaxed) {
            self.ready.lock().expect("not poisoned").push(self.task);
        }
    }
}

impl Executor {
    pub(super) fn new(clock: SimClock, dice: Dice) -> Self {
        let state = State { processes: BTreeMap::from([(WORLD, Process::default())]), ..State::default() };
        Self(Arc::new(Inner { clock, dice, ready: Arc::default(), state: Mutex::new(state) }))
    }

    /// A new process, without tasks.
    pub(super) fn process(&self, fate: Fate) -> ProcessId {
        let mut state = self.state();
        state.last_process += 1;
        let number = state.last_process;
        state.processes.insert(number, Process { fate, ..Process::default() });
        number
    }

    /// Runs `task` as one of the process's; drops it if there is no such process any more.
    pub(super) fn spawn(&self, process: ProcessId, task: Task) {
        let mut state = self.state();
        if !state.processes.contains_key(&process) {
            // What a task does when it is dropped may start others.
            drop(state);
            return drop(task);
        }
        state.last_task += 1;
        let number = state.last_task;
        let ready = Arc::clone(&self.0.ready);
        let wake = Arc::new(Listed { task: number, is_listed: AtomicBool::new(false), ready });
        state.tasks.insert(number, Entry { process, task: Some(task), wake: Arc::clone(&wake) });
        drop(state);
        wake.wake();
    }

    /// Ends a process; how many tasks it still had.
    pub(super) fn kill(&self, process: ProcessId) -> usize {
        let mut state = self.state();
        state.processes.remove(&process);
        let entries: Vec<Entry> =
            state.tasks.extract_if(.., |_, entry| entry.process == process).map(|(_, entry)| entry).collect();
        drop(state);
        for entry in &entries {
            // Nothing wakes it any more: what it drops does so in no order that is the same again.
            entry.wake.is_listed.store(true, Ordering::Relaxed);
        }
        let is_alive = |task: &u64| entries.iter().all(|entry| entry.wake.task != *task);
        self.0.ready.lock().expect("not poisoned").retain(is_alive);
        entries.len()
    }

    /// How many tasks a process has.
    pub(super) fn tasks(&self, process: ProcessId) -> usize {
        self.state().tasks.values().filter(|entry| entry.process == process).count()
    }

    /// A process that was stopped goes on.
    pub(super) fn resume(&self, process: ProcessId) {
        let stopped = self.state().processes.get_mut(&process).and_then(|process| process.stopped.take());
        self.0.ready.lock().expect("not poisoned").extend(stopped.into_iter().flatten());
    }

    /// What a worker runs in that is this process.
    pub(super) fn surroundings(&self, process: ProcessId) -> Surroundings {
        Surroundings::simulated(Arc::new(Machine { executor: self.clone(), process }))
    }

    /// Runs everything until `main` is done; false if nothing can go on any more, or `limit_ms` have passed. `is_hostile` says
    /// whether fates are met, `met` is told of each that was. All tasks are gone afterwards.
    pub(super) fn run(
        &self,
        main: Task,
        limit_ms: u64,
        is_hostile: impl Fn() -> bool,
        met: impl Fn(ProcessId, Met),
    ) -> bool {
        let done = Arc::new(AtomicBool::new(false));
        let is_done = Arc::clone(&done);
        self.spawn(
            WORLD,
            Box::pin(async move {
                main.await;
                is_done.store(true, Ordering::Relaxed);
            }),
        );
        while !done.load(Ordering::Relaxed) {
            match self.next() {
                Some(task) => self.go_on(task, &is_hostile, &met),
                None if !self.0.clock.advance() || self.0.clock.elapsed_ms() >= limit_ms => break,
                None => {}
            }
        }
        let processes: Vec<ProcessId> = self.state().processes.keys().copied().collect();
        for process in processes.into_iter().rev() {
            self.kill(process);
        }
        done.load(Ordering::Relaxed)
    }

    fn next(&self) -> Option<u64> {
        let mut ready = self.0.ready.lock().expect("not poisoned");
        let count = ready.len();
        (count > 0).then(|| ready.swap_remove(self.0.dice.below(count as u64) as usize))
    }

    fn go_on(&self, task: u64, is_hostile: &impl Fn() -> bool, met: &impl Fn(ProcessId, Met)) {
        let mut state = self.state();
        let Some(number) = state.tasks.get(&task).map(|entry| entry.process) else { return };
        let process = state.processes.get_mut(&number).expect("processes end together with their tasks");
        if let Some(stopped) = &mut process.stopped {
            return stopped.push(task);
        }
        process.polls += 1;
        if let Some(what) = process.fate.at(process.polls).filter(|_| is_hostile()) {
            if let Met::Stop(_) = what {
                process.stopped = Some(vec![task]);
            }
            drop(state);
            match what {
                Met::Death => {
                    self.kill(number);
                }
                Met::Stop(ms) => self.resume_after(number, ms),
            }
            return met(number, what);
        }
        let entry = state.tasks.get_mut(&task).expect("it was there");
        entry.wake.is_listed.store(false, Ordering::Relaxed);
        let (mut future, wake) = (entry.task.take(), Arc::clone(&entry.wake));
        drop(state);
        let waker = Waker::from(wake);
        let poll = future.as_mut().map(|task| task.as_mut().poll(&mut Context::from_waker(&waker)));
        let mut state = self.state();
        let ended = match (poll, state.tasks.get_mut(&task)) {
            (Some(Poll::Pending), Some(entry)) => {
                entry.task = future.take();
                None
            }
            _ => state.tasks.remove(&task),
        };
        drop(state);
        drop((ended, future));
    }

    fn resume_after(&self, process: ProcessId, ms: u64) {
        let (executor, sleep) = (self.clone(), self.0.clock.sleep(ms));
        self.spawn(
            WORLD,
            Box::pin(async move {
                sleep.await;
                executor.resume(process);
            }),
        );
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("not poisoned")
    }
}

impl Fate {
    fn at(&self, polls: u64) -> Option<Met> {
        if self.dies_after.is_some_and(|after| after == polls) {
            return Some(Met::Death);
        }
        self.stops_after.filter(|(after, _)| *after == polls).map(|(_, ms)| Met::Stop(ms))
    }
}

/// The machine of one process.
struct Machine {
    executor: Executor,
    process: ProcessId,
}

impl Simulation for Machine {
    fn now(&self) -> Instant {
        self.executor.0.clock.now()
    }

    fn sleep_until(&self, at: Instant) -> Task {
        Box::pin(self.executor.0.clock.sleep_until(at))
    }

    fn random(&self) -> f64 {
        self.executor.0.dice.below(1 << 20) as f64 / f64::from(1 << 20)
    }

    fn spawn(&self, task: Task) {
        self.executor.spawn(self.process, task);
    }
}
