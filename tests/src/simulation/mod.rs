//! A seeded simulation of a queue, its workers, producers and an operator, over the memory adapter.
//!
//! Everything happens on one thread in simulated time, and all chance comes from one generator: a seed is a run, to the
//! last await. Workers die and stop wherever they wait, come back under the same name or another, calls and answers
//! are late, doubled or lost; then faults end, and every turn must have ended as promised.

mod attempt;
mod check;
mod dice;
mod executor;
mod faults;
mod ledger;
mod people;
mod plan;
mod worker;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use turnmill_schema::Outcome;

pub use dice::Dice;
use executor::{START_MS, SimClock, Task};
use ledger::Stage;
use plan::World;

use crate::memory_broker::{AgentState, MemoryQueue, Mutation};

/// Longest time between the end of faults and that of the last turn.
const LIVENESS_MS: u64 = 60_000;
/// Every so many milliseconds somebody looks at the whole.
const LOOK_MS: u64 = 25;

/// What a run did, to see that it was no idle one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Turns that ended.
    pub turns: u64,
    /// Of these, completed.
    pub completed: u64,
    /// Attempts that began.
    pub attempts: u64,
    /// Turns that more than one attempt published.
    pub resumed: u64,
}

impl std::ops::AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.turns += other.turns;
        self.completed += other.completed;
        self.attempts += other.attempts;
        self.resumed += other.resumed;
    }
}

/// Runs a seed; what was not as promised, where something was not.
pub fn run(seed: u64, mutation: Mutation) -> Result<Report, Vec<String>> {
    let dice = Dice::new(seed);
    let clock = SimClock::start();
    // Most worlds are small, so that there can be many.
    let size = if seed.is_multiple_of(500) { 8 } else { 1 };
    let world = World::throw(&dice, size);
    let queue = MemoryQueue::mutated(Arc::new(clock.clone()), mutation);
    let stage = Stage::new(world, dice.clone(), clock.clone(), queue);
    let limit_ms = START_MS + stage.world.faults.until_ms + LIVENESS_MS * size;
    let has_ended = executor::run(&clock, &dice, tasks(&stage), limit_ms);
    let mut found = check::violations(&stage);
    if !has_ended {
        found.push(format!("turns are open {LIVENESS_MS} ms after the last fault"));
    }
    if found.is_empty() { Ok(report(&stage)) } else { Err(found) }
}

/// The first one ends the run.
fn tasks(stage: &Arc<Stage>) -> Vec<Task> {
    let mut tasks: Vec<Task> = vec![Box::pin(watch(Arc::clone(stage)))];
    tasks.push(Box::pin(people::operate(Arc::clone(stage))));
    for producer in 0..stage.world.producers {
        tasks.push(Box::pin(people::produce(Arc::clone(stage), producer)));
    }
    for worker in 0..stage.world.workers {
        tasks.push(Box::pin(worker::supervise(Arc::clone(stage), worker)));
    }
    tasks
}

/// Ends the faults, later the run; meanwhile sees that no tenant runs more turns than it may.
async fn watch(stage: Arc<Stage>) {
    loop {
        stage.sleep(LOOK_MS).await;
        let is_over = stage.clock.now() >= START_MS + stage.world.faults.until_ms;
        if is_over {
            stage.hostile.store(false, Ordering::Relaxed);
        }
        check_caps(&stage);
        let is_done = stage.producing.load(Ordering::Relaxed) == 0 && stage.queue.counts().open() == 0;
        if is_over && is_done {
            // Tickets in the hands of workers that have not heard yet.
            stage.sleep(stage.world.lease_ms).await;
            return;
        }
    }
}

fn check_caps(stage: &Stage) {
    let cap = stage.world.limits.tenant_max_running;
    for tenant in ["t0", "t1"] {
        let agents = stage.queue.agents();
        let leased =
            agents.iter().filter(|(id, state)| *state == AgentState::Leased && id.tenant() == tenant);
        let leased = leased.count() as u64;
        if cap > 0 && leased > cap {
            stage.violation(format!("{tenant} runs {leased} turns, and may run {cap}"));
        }
    }
}

fn report(stage: &Stage) -> Report {
    let mut report = Report::default();
    for turn in stage.ledger().turns.values() {
        let events = stage.queue.events(*turn);
        let begins = events.iter().filter_map(|event| match event {
            turnmill_schema::Event::Begin(begin) => Some(begin.resume_from),
            _ => None,
        });
        report.turns += 1;
        report.attempts += begins.clone().count() as u64;
        report.resumed += u64::from(begins.clone().any(|from| from > 0));
        let completed = events.iter().any(
            |event| matches!(event, turnmill_schema::Event::End(end) if end.outcome == Outcome::Completed),
        );
        report.completed += u64::from(completed);
    }
    report
}
