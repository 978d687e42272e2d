//! The seeded simulation, many seeds to a run. `TURNMILL_SIM_SEED=n` runs one; `TURNMILL_SIM_SEEDS=n` says how many.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use turnmill_tests::machine;
use turnmill_tests::simulation::{Report, run};
use turnmill_worker::broker::memory::Mutation;

/// Seeds of one run of continuous integration.
const SEEDS: u64 = 10_000;
/// Seeds after which a mutation must have been found.
const SEEDS_FOR_A_MUTATION: u64 = 500;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}; it must be a number")))
}

#[test]
fn no_seed_breaks_a_promise() {
    let _machine = machine::alone();
    let started = Instant::now();
    let one = number("TURNMILL_SIM_SEED");
    let (first, end) =
        one.map_or((0, number("TURNMILL_SIM_SEEDS").unwrap_or(SEEDS)), |seed| (seed, seed + 1));
    let next = AtomicU64::new(first);
    let work = || {
        let mut total = Report::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return total;
            }
            match run(seed, Mutation::None) {
                Ok(report) => total += report,
                Err(found) => panic!("TURNMILL_SIM_SEED={seed} finds:\n{}", found.join("\n")),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let total = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().fold(Report::default(), |mut total, thread| {
            total += thread.join().expect("a seed failed; its number is above");
            total
        })
    });
    let (seeds, seconds) = (end - first, started.elapsed().as_secs_f64());
    println!("{seeds} seeds in {seconds:.1} s ({:.0} a second): {total:?}", seeds as f64 / seconds);
    assert!(one.is_some() || total.resumed > seeds / 10, "a simulation that is not hostile shows nothing");
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
        Mutation::NoOwnerCheck,
        Mutation::NoManifestFence,
    ];
    for mutation in mutations {
        let found = (1..=SEEDS_FOR_A_MUTATION).find_map(|seed| Some((seed, run(seed, mutation).err()?)));
        let (seed, found) = found.unwrap_or_else(|| panic!("{mutation:?} goes unnoticed"));
        println!("{mutation:?} is found after {seed} seeds: {}", found[0]);
    }
}
