//! All chance of a simulation: one generator, one seed.

use std::sync::{Arc, Mutex};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Clones throw the same dice.
#[derive(Clone, Debug)]
pub struct Dice(Arc<Mutex<ChaCha8Rng>>);

impl Dice {
    /// The dice of a seed.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(ChaCha8Rng::seed_from_u64(seed))))
    }

    /// A number below `end`, or 0.
    pub fn below(&self, end: u64) -> u64 {
        let number = self.0.lock().expect("not poisoned").next_u64();
        // Slightly uneven for large ends, which nothing here minds.
        if end == 0 { 0 } else { number % end }
    }

    /// A number from `start` to `end`, both included.
    pub fn between(&self, start: u64, end: u64) -> u64 {
        start + self.below(end - start + 1)
    }

    /// True so often in a thousand times.
    pub fn chance(&self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// One of them.
    pub fn pick<'a, T>(&self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.below(of.len() as u64) as usize)
    }
}
