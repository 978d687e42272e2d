//! The sequences that hold no blocks yet, or no more.
//!
//! Rule: first in, first out within a priority; interactive before batch, but after [`INTERACTIVE_IN_A_ROW`]
//! interactive ones in a row that passed a waiting batch one, the next is a batch one. The head is chosen
//! whether or not it fits yet, and nobody behind it goes first for being smaller: small turns do not
//! starve a large one.

use std::collections::VecDeque;

use turnmill_schema::Priority;

use super::SequenceId;
use super::sequence::Sequence;

/// How many interactive sequences may pass a waiting batch one. Batch then gets a fifth of the admissions at
/// least.
pub(super) const INTERACTIVE_IN_A_ROW: u32 = 4;

/// Two queues, oldest first.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    interactive: VecDeque<Sequence>,
    batch: VecDeque<Sequence>,
    interactive_in_a_row: u32,
    arrivals: u64,
}

impl Waiting {
    /// Queues a new sequence behind those of its priority.
    pub fn push(&mut self, mut sequence: Sequence) {
        sequence.arrival = self.arrivals;
        self.arrivals += 1;
        match sequence.priority {
            Priority::Interactive => self.interactive.push_back(sequence),
            Priority::Batch => self.batch.push_back(sequence),
        }
    }

    /// Queues a preempted sequence: an interactive one goes back by its age, which is to the head. A batch
    /// one comes back as an interactive one that arrived just now: nothing older is preempted for it, and nothing
    /// younger can push it out again, so it is not starved by a stream of interactive turns.
    pub fn put_back(&mut self, mut sequence: Sequence) {
        match sequence.priority {
            Priority::Interactive => self.put_first(sequence),
            Priority::Batch => {
                sequence.priority = Priority::Interactive;
                self.push(sequence);
            }
        }
    }

    /// Takes back a sequence that was admitted and computed nothing: it goes on before those that came after it.
    pub fn put_first(&mut self, sequence: Sequence) {
        let queue = match sequence.priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Batch => &mut self.batch,
        };
        let place = queue.partition_point(|other| other.arrival < sequence.arrival);
        queue.insert(place, sequence);
    }

    /// The one to be admitted next.
    pub fn head(&mut self) -> Option<&mut Sequence> {
        let queue = if self.is_batch_next() { &mut self.batch } else { &mut self.interactive };
        queue.front_mut()
    }

    /// Takes the one that [`Self::head`] shows.
    pub fn take_head(&mut self) -> Option<Sequence> {
        if self.is_batch_next() {
            self.interactive_in_a_row = 0;
            return self.batch.pop_front();
        }
        self.interactive_in_a_row = if self.batch.is_empty() { 0 } else { self.interactive_in_a_row + 1 };
        self.interactive.pop_front()
    }

    /// Shows a sequence, wherever it stands.
    pub fn find(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.interactive.iter_mut().chain(&mut self.batch).find(|sequence| sequence.id == id)
    }

    /// Takes out a sequence.
    pub fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        [&mut self.interactive, &mut self.batch]
            .into_iter()
            .find_map(|queue| queue.remove(queue.iter().position(|sequence| sequence.id == id)?))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.interactive.iter().chain(&self.batch)
    }

    pub fn len(&self) -> usize {
        self.interactive.len() + self.batch.len()
    }

    fn is_batch_next(&self) -> bool {
        let its_turn = self.interactive.is_empty() || self.interactive_in_a_row >= INTERACTIVE_IN_A_ROW;
        its_turn && !self.batch.is_empty()
    }
}
