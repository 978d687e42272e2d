//! Which faults come when: a pure function of seed, length and lease.
//!
//! Invariants: times ascend; faults of a kind are spread over the whole run, each at a random time of its share of
//! it; nothing is planned for the first and last moments, when there is nothing to hurt.

use std::time::Duration;

use super::Home;
use super::cut::Cut;
use super::dice::{Dice, Use};

/// Something that goes wrong. Random numbers choose the victim among those that qualify by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of a worker that holds a turn with a published token.
    Kill(u64),
    /// SIGSTOP of a worker that holds a turn, and SIGCONT after its lease has run out.
    Stop(u64, Duration),
    /// SIGTERM of a worker: it drains and ends.
    Drain(u64),
    /// `kill -9` of Redis, which is started again after a while.
    RestartRedis(Duration),
    /// The other Redis becomes the primary.
    FailOver,
    /// Connections are hurt.
    Cut(Cut),
}

/// A fault and when it comes, since the start of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// When.
    pub at: Duration,
    /// What.
    pub fault: Fault,
}

/// How many faults of each kind come in a minute, in the order of [`fault`]: somewhat more than the promised 30
/// kills, 10 stops and 3 restarts of Redis in 5 minutes, because now and then no worker qualifies.
const PER_MINUTE: [f64; 9] = [7.2, 2.6, 2.0, 0.8, 1.0, 4.0, 3.0, 1.4, 0.8];

/// Which of these kinds is what happens to Redis itself.
const TO_REDIS: usize = 3;

/// How many failovers come in a minute, in place of restarts of Redis: there and back.
const FAILOVERS_PER_MINUTE: f64 = 2.4;

/// Nothing happens before this share of the run, nor after what is left of it at the end.
const QUIET: f64 = 0.04;

/// The faults of a run of length `run` whose workers have leases of `lease`, and whose queue is at `home`.
pub fn plan(seed: u64, run: Duration, lease: Duration, home: Home) -> Vec<Planned> {
    let mut dice = Dice::new(seed, Use::Plan);
    let mut planned = Vec::new();
    for (kind, per_minute) in per_minute(home).iter().enumerate() {
        let count = (per_minute * run.as_secs_f64() / 60.0).round().max(1.0) as u32;
        for i in 0..count {
            let within = dice.between(0, 999) as f64 / 1000.0;
            let share = QUIET + (1.0 - 2.0 * QUIET) * (f64::from(i) + within) / f64::from(count);
            planned.push(Planned { at: run.mul_f64(share), fault: fault(kind, &mut dice, lease, home) });
        }
    }
    planned.sort_by_key(|planned| planned.at);
    planned
}

fn per_minute(home: Home) -> [f64; PER_MINUTE.len()] {
    let mut per_minute = PER_MINUTE;
    if home == Home::Proxy {
        per_minute[TO_REDIS] = FAILOVERS_PER_MINUTE;
    }
    per_minute
}

fn fault(kind: usize, dice: &mut Dice, lease: Duration, home: Home) -> Fault {
    let choice = dice.any();
    let millis = |dice: &mut Dice, low, high| Duration::from_millis(dice.between(low, high));
    // Long enough that others have reclaimed, sometimes barely, sometimes by far.
    let past_lease = |dice: &mut Dice| lease.mul_f64(dice.between(110, 240) as f64 / 100.0);
    match kind {
        0 => Fault::Kill(choice),
        1 => Fault::Stop(choice, past_lease(dice)),
        2 => Fault::Drain(choice),
        TO_REDIS if home == Home::Proxy => Fault::FailOver,
        TO_REDIS => Fault::RestartRedis(millis(dice, 50, 1500)),
        4 => Fault::Cut(Cut::All),
        5 => Fault::Cut(Cut::One(choice)),
        6 => Fault::Cut(Cut::LoseReplies(choice, millis(dice, 20, 700))),
        7 => Fault::Cut(Cut::Isolate(choice, past_lease(dice))),
        _ => Fault::Cut(Cut::Refuse(millis(dice, 50, 1000))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::mem;

    use super::*;

    const LEASE: Duration = Duration::from_secs(2);

    fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(60 * minutes)
    }

    fn count(plan: &[Planned], kind: fn(&Fault) -> bool) -> usize {
        plan.iter().filter(|planned| kind(&planned.fault)).count()
    }

    #[test]
    fn the_same_seed_gives_the_same_plan_and_another_another() {
        for home in [Home::Single, Home::Proxy] {
            let plan_of = |seed| plan(seed, minutes(5), LEASE, home);
            assert_eq!(plan_of(7), plan_of(7));
            assert_ne!(plan_of(7), plan_of(8));
        }
    }

    #[test]
    fn redis_dies_at_a_single_home_and_fails_over_behind_a_proxy() {
        let dies = |fault: &Fault| matches!(fault, Fault::RestartRedis(_));
        let fails_over = |fault: &Fault| matches!(fault, Fault::FailOver);
        for seed in 0..20 {
            let single = plan(seed, minutes(5), LEASE, Home::Single);
            assert!(count(&single, dies) > 0 && count(&single, fails_over) == 0);
            let proxy = plan(seed, minutes(5), LEASE, Home::Proxy);
            assert_eq!((count(&proxy, dies), count(&proxy, fails_over)), (0, 12));
            let short = plan(seed, minutes(1), LEASE, Home::Proxy);
            assert_eq!(count(&short, fails_over), 2, "there and back");
        }
    }

    #[test]
    fn five_minutes_hold_what_is_promised_and_half_a_minute_something_of_everything() {
        for seed in 0..20 {
            let long = plan(seed, minutes(5), LEASE, Home::Single);
            assert!(count(&long, |fault| matches!(fault, Fault::Kill(_))) >= 33);
            assert!(count(&long, |fault| matches!(fault, Fault::Stop(..))) >= 11);
            assert!(count(&long, |fault| matches!(fault, Fault::RestartRedis(_))) >= 3);
            let short = plan(seed, minutes(1), LEASE, Home::Single);
            assert!(count(&short, |fault| matches!(fault, Fault::Kill(_))) >= 6);
            assert!(count(&short, |fault| matches!(fault, Fault::Stop(..))) >= 2);
            let kind = |planned: &Planned| match planned.fault {
                Fault::Cut(cut) => (mem::discriminant(&planned.fault), Some(mem::discriminant(&cut))),
                _ => (mem::discriminant(&planned.fault), None),
            };
            for plan in [short, plan(seed, Duration::from_secs(30), LEASE, Home::Single)] {
                assert_eq!(plan.iter().map(kind).collect::<HashSet<_>>().len(), PER_MINUTE.len());
            }
        }
    }

    #[test]
    fn times_ascend_within_the_run_and_silences_outlast_the_lease() {
        for seed in 0..20 {
            let plan = plan(seed, minutes(2), LEASE, Home::Single);
            assert!(plan.is_sorted_by_key(|planned| planned.at));
            assert!(plan[0].at >= Duration::from_secs(4));
            assert!(plan[plan.len() - 1].at <= Duration::from_secs(116));
            for Planned { fault, .. } in plan {
                if let Fault::Stop(_, silence) | Fault::Cut(Cut::Isolate(_, silence)) = fault {
                    assert!(silence > LEASE);
                }
            }
        }
    }
}
