//! Whether turns fail on this worker that other workers complete. If they do, the fault is this worker's (its template, its
//! settings, its machine), and it stops claiming before it uses up the attempts of every turn in the queue.
//!
//! Invariants: only failures count that the worker itself can be blamed for ([`Blame`]); a completed turn ends the row; and a
//! worker stops only if others completed the very turns that failed here. So a lone worker never stops for this, and turns
//! that fail everywhere stop nobody.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, error};
use turnmill_schema::TurnId;

use super::Runner;
use super::turn::Attempt;
use crate::broker::Broker;
use crate::engine::EngineHandle;
use crate::lifecycle::Phase;

/// Turns that have to fail in a row before others are looked at. One odd turn has as many attempts, and counts once.
const IN_A_ROW: usize = 5;
/// Failed turns that are remembered; the oldest are forgotten first. About 20 bytes each.
const REMEMBERED: usize = 10_000;
/// The newest ends of a shard in which to look for them: about 60 KB.
const ENDS: usize = 200;
/// Time between two looks, while turns go on to fail.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Who may be to blame for an attempt that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// Something outside of the worker, such as the store, or a newer version that wrote the turn.
    Elsewhere,
    /// The worker.
    Worker,
    /// The worker's engine, or a turn that took its neighbours down: a step fails with every turn in it.
    Step,
}

/// Turns that failed in a row on this worker.
#[derive(Debug, Default)]
pub(super) struct Fitness(Mutex<Row>);

#[derive(Debug, Default)]
struct Row {
    turns: BTreeSet<TurnId>,
    /// When a turn failed last because of a step.
    step: Option<Instant>,
    looked: Option<Instant>,
    /// It is known, and was said, that others complete them.
    over: bool,
}

/// When an attempt began and when it failed.
type Times = (Instant, Instant);

impl Fitness {
    /// A turn was completed.
    pub(super) fn completed(&self) {
        let mut row = self.lock();
        *row = Row { over: row.over, ..Row::default() };
    }

    /// An attempt at a turn failed. True: find out whether others completed what failed here.
    fn failed(&self, turn: TurnId, blame: Blame, (began, now): Times) -> bool {
        let mut row = self.lock();
        match blame {
            Blame::Elsewhere => return false,
            Blame::Worker => {}
            // Turns that began before the last step that failed may have been in it: together they count once.
            Blame::Step if row.step.is_some_and(|last| began <= last) => return false,
            Blame::Step => row.step = Some(now),
        }
        row.turns.insert(turn);
        if row.turns.len() > REMEMBERED {
            row.turns.pop_first();
        }
        let looked = row.looked.is_some_and(|last| now.saturating_duration_since(last) < LOOK_EVERY);
        let looks = row.turns.len() >= IN_A_ROW && !looked && !row.over;
        if looks {
            row.looked = Some(now);
        }
        looks
    }

    /// How many turns have failed in a row here, if others completed one of them. Once.
    fn is_to_blame(&self, completed_by_others: &[TurnId]) -> Option<usize> {
        let mut row = self.lock();
        let others_can = completed_by_others.iter().any(|turn| row.turns.contains(turn));
        let tells = others_can && row.turns.len() >= IN_A_ROW && !row.over;
        row.over |= tells;
        tells.then_some(row.turns.len())
    }

    fn lock(&self) -> MutexGuard<'_, Row> {
        // Every change leaves a whole value, so a panic elsewhere left nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Broker, E: EngineHandle> Runner<B, E> {
    /// An attempt failed, for a `reason` that the log may say. If the worker is to blame, it stops claiming.
    pub(super) async fn count_failure(&self, attempt: &Attempt, blame: Blame, reason: &str) {
        let times = (attempt.leased, self.surroundings.now());
        if !self.fitness.failed(attempt.lease.turn, blame, times) || self.stop_claiming.is_cancelled() {
            return;
        }
        let completed = match self.broker.completed_by_others(ENDS).await {
            Ok(completed) => completed,
            Err(error) => {
                // The next failure asks again.
                debug!(error = error.without_content(), "it is not known what other workers completed");
                return;
            }
        };
        let Some(turns) = self.fitness.is_to_blame(&completed) else { return };
        self.lifecycle.advance(Phase::Failing);
        self.stop_claiming.cancel();
        error!(
            turns,
            reason,
            "turns failed in a row on this worker, and others completed them; it claims nothing more: compare its model, chat \
             template and settings with theirs, and restart it"
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Seconds after some beginning.
    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    fn turns(count: usize) -> Vec<TurnId> {
        (0..count).map(|_| TurnId::new(0)).collect()
    }

    /// Fails turns one after the other, a turn in two seconds; after how many others were looked at.
    fn looks(fitness: &Fitness, turns: &[TurnId], blame: Blame) -> Vec<usize> {
        let start = Instant::now();
        let looks = |index: usize| {
            let second = 2 * index as u64;
            fitness.failed(turns[index], blame, (at(start, second), at(start, second + 1)))
        };
        (0..turns.len()).filter(|index| looks(*index)).map(|index| index + 1).collect()
    }

    #[test]
    fn five_turns_in_a_row_are_looked_into_and_others_success_with_them_tells_once() {
        for blame in [Blame::Worker, Blame::Step] {
            let (fitness, failed) = (Fitness::default(), turns(7));
            assert_eq!(looks(&fitness, &failed, blame), [5, 6, 7]);
            assert_eq!(fitness.is_to_blame(&[]), None, "nobody else completes anything");
            assert_eq!(fitness.is_to_blame(&turns(3)), None, "others complete other turns");
            assert_eq!(fitness.is_to_blame(&failed[2..3]), Some(7));
            assert_eq!(fitness.is_to_blame(&failed), None, "it was said");
            fitness.completed();
            assert_eq!(looks(&fitness, &turns(7), blame), [0; 0]);
        }
    }

    #[test]
    fn what_is_not_the_workers_fault_does_not_count_and_neither_does_a_turn_again() {
        let (fitness, failed) = (Fitness::default(), turns(9));
        assert_eq!(looks(&fitness, &failed, Blame::Elsewhere), [0; 0]);
        assert_eq!(looks(&fitness, &[failed[0]; 9], Blame::Worker), [0; 0]);
        assert_eq!(fitness.is_to_blame(&failed), None);
    }

    #[test]
    fn turns_of_one_step_count_once() {
        let (fitness, start) = (Fitness::default(), Instant::now());
        for turn in turns(9) {
            assert!(!fitness.failed(turn, Blame::Step, (start, at(start, 1))));
        }
        assert_eq!(fitness.lock().turns.len(), 1);
    }

    #[test]
    fn others_are_looked_at_once_a_second() {
        let (fitness, start) = (Fitness::default(), Instant::now());
        let fails = |turn, millis| {
            fitness.failed(turn, Blame::Worker, (start, start + Duration::from_millis(millis)))
        };
        let looked: Vec<u64> = (0..30)
            .map(|i| 100 * i)
            .zip(turns(30))
            .filter(|(i, turn)| fails(*turn, *i))
            .map(|(i, _)| i)
            .collect();
        assert_eq!(looked, [400, 1400, 2400]);
    }

    proptest! {
        /// Whatever failed and was completed before, the last completed turn ends the row.
        #[test]
        fn a_completed_turn_ends_the_row(fails in prop::collection::vec(any::<bool>(), 0..40)) {
            let fitness = Fitness::default();
            let mut row = Vec::new();
            for fail in fails {
                if fail {
                    row.push(TurnId::new(0));
                    let now = Instant::now();
                    fitness.failed(row[row.len() - 1], Blame::Worker, (now, now));
                } else {
                    fitness.completed();
                    row.clear();
                }
            }
            let expected = (row.len() >= IN_A_ROW).then_some(row.len());
            prop_assert_eq!(fitness.is_to_blame(&row), expected);
        }
    }
}
