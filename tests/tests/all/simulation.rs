//! The seeded simulation, many seeds to a run: [`SEEDS`], or as many as [`LIMIT`] allows. `TURNMILL_SIM_SEED=n` runs one;
//! `TURNMILL_SIM_SEEDS=n` runs as many, however long that takes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use turnmill_tests::machine;
use turnmill_tests::simulation::{Report, run};
use turnmill_worker::broker::memory::Mutation;

/// Seeds of one run.
const SEEDS: u64 = 10_000;
/// After that no new seed is begun.
const LIMIT: Duration = Duration::from_secs(180);
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

#[test]
fn no_seed_breaks_a_promise() {
    let _machine = machine::alone();
    let started = Instant::now();
    let (first, end, limit) = asked();
    let next = AtomicU64::new(first);
    // What it ran, and how many seeds that were.
    let work = || {
        let mut total = (Report::default(), 0);
        while started.elapsed() < limit {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                break;
            }
            match run(seed, Mutation::None) {
                Ok(report) => total.0 += report,
                Err(found) => panic!("TURNMILL_SIM_SEED={seed} finds:\n{}", found.join("\n")),
            }
            total.1 += 1;
        }
        total
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (total, seeds) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().fold((Report::default(), 0), |(mut total, seeds), thread| {
            let (report, more) = thread.join().expect("a seed failed; its number is above");
            total += report;
            (total, seeds + more)
        })
    });
    let seconds = started.elapsed().as_secs_f64();
    println!("{seeds} seeds in {seconds:.1} s ({:.0} a second): {total:?}", seeds as f64 / seconds);
    assert!(end - first == 1 || total.resumed > seeds / 10, "a simulation that is not hostile shows nothing");
}

#[test]
fn a_seed_is_a_run() {
    for seed in 1..20 {
        assert_eq!(run(seed, Mutation::None), run(seed, Mutation::None), "seed {seed}");
    }
}

#[test]
fn a_missing_check_is_found() {
    let mutations = [
        Mutation::NoFence,
        Mutation::NoRenewal,
        Mutation::NoReclaim,
        Mutation::NoTicketCheck,
        Mutation::NoManifestFence,
    ];
    for mutation in mutations {
        let found = (1..=SEEDS_FOR_A_MUTATION).find_map(|seed| Some((seed, run(seed, mutation).err()?)));
        let (seed, found) = found.unwrap_or_else(|| panic!("{mutation:?} goes unnoticed"));
        println!("{mutation:?} is found after {seed} seeds: {}", found[0]);
    }
}
