//! A seeded simulation of the product: workers as they are, from `Service` down to the block pool, over a queue, an object store and
//! a model in memory.
//!
//! Everything happens on one thread in simulated time, and all chance comes from one generator: a seed is a run, to the last await.
//! Workers die and stop wherever they wait, come back under the same name or another; calls and answers are late, doubled, lost or
//! refused; Redis fails over, is full, and its clock jumps; engines hang; objects rot. Then faults end, and every turn must end as
//! promised while a worker lives, and nothing may be left.
//!
//! | file | owns |
//! |---|---|
//! | `dice`, `clock`, `executor` | chance, time, and whose turn it is; processes that die and stop |
//! | `plan` | what a seed's world consists of |
//! | `words` | what the model says: the truth that results are held against |
//! | `model`, `objects`, `flaw` | what stands at the product's ports, and what goes wrong there |
//! | `worker` | a worker, put together as `turnmill-worker serve` does |
//! | `witness` | what a worker and the queue tell each other; runners' faults that are put back |
//! | `people` | producers, the operator, accidents of Redis |
//! | `ledger` | what everybody shares, and the book of what was said |
//! | `check`, `leaks`, `progress` | what must hold |

mod check;
mod clock;
mod dice;
mod executor;
mod flaw;
mod leaks;
mod ledger;
mod model;
mod objects;
mod people;
mod plan;
mod progress;
mod witness;
mod words;
mod worker;

use std::sync::Arc;

use turnmill_schema::Outcome;

use clock::SimClock;
pub use dice::Dice;
use executor::{Met, ProcessId, WORLD};
use ledger::Stage;
use plan::World;

use crate::memory_broker::{MemoryQueue, Mutation};

/// Lines of the trace that a seed that failed prints.
const TRACE_LINES: usize = 400;

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
    /// Segments in the object store at the end.
    pub stored: u64,
    /// Prompt tokens of completed turns that no step computed.
    pub cached: u64,
    /// Workers that died.
    pub crashes: u64,
    /// Failovers.
    pub failovers: u64,
    /// Simulated milliseconds.
    pub took_ms: u64,
}

impl std::ops::AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.turns += other.turns;
        self.completed += other.completed;
        self.attempts += other.attempts;
        self.resumed += other.resumed;
        self.stored += other.stored;
        self.cached += other.cached;
        self.crashes += other.crashes;
        self.failovers += other.failovers;
        self.took_ms += other.took_ms;
    }
}

/// What is broken on purpose, to show that it is missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Break {
    /// Nothing.
    #[default]
    Nothing,
    /// A check of the queue's steps, or of its adapter.
    Queue(Mutation),
    /// A runner's: who waits or fell silent is looked after only while the worker has room, and a worker that goes on with an agent
    /// counts undelivered tickets alone as others that wait.
    BehindRoom,
    /// A runner's: a second registry of leases keeps those that were dropped without a call that ended them.
    SecondRegistry,
}

impl Break {
    fn of_queue(self) -> Mutation {
        match self {
            Self::Queue(mutation) => mutation,
            Self::BehindRoom => Mutation::BlindContinues,
            Self::Nothing | Self::SecondRegistry => Mutation::None,
        }
    }
}

/// Runs a seed; what was not as promised, where something was not, and what happened before.
pub fn run(seed: u64, broken: Break) -> Result<Report, Vec<String>> {
    run_traced(seed, broken, false).or_else(|_| run_traced(seed, broken, true))
}

fn run_traced(seed: u64, broken: Break, traces: bool) -> Result<Report, Vec<String>> {
    let dice = Dice::new(seed);
    let clock = SimClock::start();
    // Most worlds are small, so that there can be many.
    let size = if seed % 500 == 499 { 8 } else { 1 };
    let world = World::throw(&dice, size);
    let limit_ms = world.faults.until_ms + progress::LIMIT_MS * size;
    let queue = MemoryQueue::mutated(Arc::new(clock.clone()), broken.of_queue());
    let stage = Stage::new((world, broken), (dice, clock), queue, traces);
    stage.trace(|| format!("{:?}", World { plans: Vec::new(), ..stage.world.clone() }));
    stage.world.plans.iter().for_each(|plan| stage.trace(|| plan.to_string()));
    let has_ended = play(&stage, limit_ms);
    let mut found = check::violations(&stage);
    if !has_ended {
        found.push(format!("the seed has not ended after {limit_ms} simulated milliseconds"));
    }
    if found.is_empty() {
        return Ok(report(&stage));
    }
    let trace = stage.take_trace();
    let about = trace.len().min(1 + stage.world.plans.len());
    found.extend_from_slice(&trace[..about]);
    found.extend_from_slice(&trace[about.max(trace.len().saturating_sub(TRACE_LINES))..]);
    Err(found)
}

/// Runs everything to its end; false if there was none in time.
fn play(stage: &Arc<Stage>, limit_ms: u64) -> bool {
    let executor = &stage.executor;
    executor.spawn(WORLD, Box::pin(people::operate(Arc::clone(stage))));
    executor.spawn(WORLD, Box::pin(people::keep_hot(Arc::clone(stage))));
    for producer in 0..stage.world.producers {
        executor.spawn(WORLD, Box::pin(people::produce(Arc::clone(stage), producer)));
    }
    for worker in 0..stage.world.workers {
        executor.spawn(WORLD, Box::pin(worker::supervise(Arc::clone(stage), worker)));
    }
    let met = |process: ProcessId, met: Met| stage.trace(|| format!("process {process} meets {met:?}"));
    let main = Box::pin(progress::watch(Arc::clone(stage)));
    executor.run(main, limit_ms, || stage.is_hostile(), met)
}

fn report(stage: &Stage) -> Report {
    let ledger = stage.ledger();
    let mut report = Report {
        stored: stage.stored_objects(),
        crashes: ledger.crashes,
        failovers: ledger.failovers,
        took_ms: stage.clock.elapsed_ms(),
        ..Report::default()
    };
    for turn in ledger.turns.values() {
        let events = stage.queue.events(*turn);
        let begins = events.iter().filter_map(|event| match event {
            turnmill_schema::Event::Begin(begin) => Some(begin.resume_from),
            _ => None,
        });
        report.turns += 1;
        report.attempts += begins.clone().count() as u64;
        report.resumed += u64::from(begins.clone().any(|from| from > 0));
        let completed = events.iter().find_map(|event| match event {
            turnmill_schema::Event::End(end) if end.outcome == Outcome::Completed => Some(end),
            _ => None,
        });
        report.completed += u64::from(completed.is_some());
        report.cached += completed.map_or(0, |end| u64::from(end.usage.cached_tokens));
    }
    report
}
