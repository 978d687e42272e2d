//! Seeded randomness: the same seed and use give the same numbers on every machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What the numbers are for: each use has a sequence of its own, so that a change to one leaves the others alone.
#[derive(Clone, Copy, Debug)]
pub enum Use {
    /// The schedule of faults.
    Plan,
    /// What the session of this number says.
    Session(u32),
}

/// A sequence of random numbers.
#[derive(Debug)]
pub struct Dice(ChaCha8Rng);

impl Dice {
    /// The sequence of `seed` for `what`.
    pub fn new(seed: u64, what: Use) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(match what {
            Use::Plan => 0,
            Use::Session(number) => 1 + u64::from(number),
        });
        Self(generator)
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number from `low` to `high`, both included. Modulo prefers small ones, unmeasurably for ranges like ours.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.any() % (high - low + 1)
    }

    /// One of `options`, which are not empty.
    pub fn one_of<'a, T>(&mut self, options: &'a [T]) -> &'a T {
        &options[(self.any() % options.len() as u64) as usize]
    }
}
