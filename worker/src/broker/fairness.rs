//! Which priority a read serves first, so that neither starves: the rule of every adapter.

use turnmill_schema::Priority;

/// Tickets of interactive agents to one of a batch agent, while both kinds wait.
const INTERACTIVE_A_BATCH: usize = 3;

/// What one worker's reads have served so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fairness {
    /// Interactive tickets since the last one of a batch agent.
    since_batch: usize,
}

impl Fairness {
    /// How many of `room` tickets are asked of batch agents first.
    pub fn batch_share(self, room: usize) -> usize {
        (self.since_batch + room) / (INTERACTIVE_A_BATCH + 1)
    }

    /// A read came to its end with tickets of these priorities.
    pub fn note(&mut self, tickets: impl IntoIterator<Item = Priority>) {
        let (mut interactive, mut batch) = (0, 0);
        for priority in tickets {
            match priority {
                Priority::Interactive => interactive += 1,
                Priority::Batch => batch += 1,
            }
        }
        let since = if batch > 0 { 0 } else { self.since_batch + interactive };
        // More would let a batch agent that comes later take several turns in a row.
        self.since_batch = since.min(INTERACTIVE_A_BATCH);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// While both kinds wait, a batch agent gets its ticket among every four, whatever room each read has.
        #[test]
        fn neither_priority_starves(rooms in prop::collection::vec(1usize..9, 1..60)) {
            let (mut fairness, mut interactive_in_a_row) = (Fairness::default(), 0);
            for room in rooms {
                let batch = fairness.batch_share(room);
                prop_assert!(batch <= room.div_ceil(INTERACTIVE_A_BATCH + 1), "{batch} of {room}");
                let of = |priority, count| std::iter::repeat_n(priority, count);
                fairness.note(of(Priority::Batch, batch).chain(of(Priority::Interactive, room - batch)));
                interactive_in_a_row = if batch > 0 { 0 } else { interactive_in_a_row + room };
                prop_assert!(interactive_in_a_row <= INTERACTIVE_A_BATCH, "{interactive_in_a_row}");
            }
        }
    }
}
