//! The seeded simulation, many seeds to a run: [`SEEDS`], or as many as [`LIMIT`] allows. `TURNMILL_SIM_SEED=n` runs one;
//! `TURNMILL_SIM_SEEDS=n` runs as many, however long that takes: 10,000 after a change of the worker or the queue.

use std::any::Any;
use std::ops::Range;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use turnmill_tests::machine;
use turnmill_tests::memory_broker::Mutation;
use turnmill_tests::simulation::{Break, Report, run};

/// Seeds of one run.
const SEEDS: u64 = 2000;
/// After that no new seed is begun, because this test keeps all others waiting.
const LIMIT: Duration = Duration::from_secs(150);
/// Seeds after which a mutation must have been found.
const SEEDS_FOR_A_MUTATION: u64 = 500;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}; it must be a number")))
}

/// What the environment asks for: the first seed, the one after the last, and how long that may take.
fn asked() -> (u64, u64, Duration) {
    match (number("TURNMILL_SIM_SEED"), number("TURNMILL_SIM_SEEDS")) {
        (Some(seed), _) => (seed, seed + 1, Duration::MAX),
        (None, Some(seeds)) => (0, seeds, Duration::MAX),
        (None, None) => (0, SEEDS, LIMIT),
    }
}

/// What seeds did, and how many they were; or the first that failed, and what it found.
type Swept = Result<(Report, u64), (u64, Vec<String>)>;

/// Tells the other threads to stop if a seed panics, and names the seed.
struct Running<'a> {
    seed: u64,
    stop: &'a AtomicBool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("TURNMILL_SIM_SEED={} panics", self.seed);
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// Runs seeds on every core. After `limit`, or once a seed has failed, no new one is begun.
fn sweep(
    seeds: Range<u64>,
    limit: Duration,
    run: impl Fn(u64) -> Result<Report, Vec<String>> + Sync,
) -> Swept {
    let (started, next, stop) = (Instant::now(), AtomicU64::new(seeds.start), AtomicBool::new(false));
    let work = || -> Swept {
        let mut total = (Report::default(), 0);
        while started.elapsed() < limit && !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            let running = Running { seed, stop: &stop };
            total.0 += run(seed).map_err(|found| {
                stop.store(true, Ordering::Relaxed);
                (seed, found)
            })?;
            drop(running);
            total.1 += 1;
        }
        Ok(total)
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ran =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        let mut total = (Report::default(), 0);
        for (report, seeds) in ran.collect::<Result<Vec<_>, _>>()? {
            total.0 += report;
            total.1 += seeds;
        }
        Ok(total)
    })
}

#[test]
fn no_seed_breaks_a_promise() {
    let (first, end, limit) = asked();
    let machine = machine::alone();
    // As long as somebody asks for.
    let _machine = if limit == Duration::MAX { machine.without_limit() } else { machine };
    let started = Instant::now();
    let (total, seeds) = sweep(first..end, limit, |seed| run(seed, Break::Nothing))
        .unwrap_or_else(|(seed, found)| panic!("TURNMILL_SIM_SEED={seed} finds:\n{}", found.join("\n")));
    let seconds = started.elapsed().as_secs_f64();
    println!("{seeds} seeds in {seconds:.1} s ({:.0} a second): {total:?}", seeds as f64 / seconds);
    assert!(end - first == 1 || total.resumed > seeds / 10, "a simulation that is not hostile shows nothing");
}

#[test]
fn a_seed_that_fails_stops_the_others() {
    const SEEDS: u64 = 1_000_000_000;
    let ran = AtomicU64::new(0);
    let swept = sweep(0..SEEDS, Duration::MAX, |seed| {
        ran.fetch_add(1, Ordering::Relaxed);
        if seed == 5 { Err(vec!["found".to_owned()]) } else { Ok(Report::default()) }
    });
    assert_eq!(swept, Err((5, vec!["found".to_owned()])));
    assert!(ran.into_inner() < SEEDS, "the others ran to the end");
}

#[test]
fn a_seed_is_a_run() {
    let _machine = machine::share();
    for seed in 1..20 {
        assert_eq!(run(seed, Break::Nothing), run(seed, Break::Nothing), "seed {seed}");
    }
}

#[test]
fn a_missing_check_is_found() {
    let _machine = machine::share();
    let queues = [
        Mutation::NoFence,
        Mutation::NoRenewal,
        Mutation::NoReclaim,
        Mutation::NoTicketCheck,
        Mutation::NoManifestFence,
        Mutation::AlwaysRecovers,
        Mutation::LateRenewalLoses,
    ];
    let runners = [Break::BehindRoom, Break::SecondRegistry];
    for broken in queues.map(Break::Queue).into_iter().chain(runners) {
        let found = (0..SEEDS_FOR_A_MUTATION).find_map(|seed| Some((seed, finds(seed, broken)?)));
        let (seed, found) = found.unwrap_or_else(|| panic!("{broken:?} goes unnoticed"));
        println!("{broken:?} is found after {} seeds: {}", seed + 1, found[0]);
    }
}

/// What a seed finds. The queue in memory panics if its indexes contradict each other: that is a find, too.
fn finds(seed: u64, broken: Break) -> Option<Vec<String>> {
    catch_unwind(|| run(seed, broken)).unwrap_or_else(|panic| Err(vec![panic_text(&*panic)])).err()
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default()
}
