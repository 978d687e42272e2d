//! Stored segments kept in memory, as they are in the store.
//!
//! Invariants: never more bytes than the budget; what is here was in the store when it was put here; it is verified
//! when it is taken, like anything else that was stored.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::kv::SegmentId;
use crate::observe::metrics;

/// The segments used last, up to a number of bytes.
#[derive(Debug)]
pub(super) struct HostCache {
    state: Mutex<State>,
    budget: usize,
}

#[derive(Debug, Default)]
struct State {
    /// Each object with the number of its last use.
    objects: HashMap<SegmentId, (Bytes, u64)>,
    by_use: BTreeMap<u64, SegmentId>,
    bytes: usize,
    uses: u64,
}

impl State {
    fn next_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    fn remove(&mut self, id: &SegmentId) {
        if let Some((object, used)) = self.objects.remove(id) {
            self.bytes -= object.len();
            self.by_use.remove(&used);
        }
    }

    fn oldest(&self) -> Option<SegmentId> {
        self.by_use.values().next().copied()
    }
}

impl HostCache {
    /// An empty cache of at most `budget` bytes; 0: it keeps nothing.
    pub fn new(budget: usize) -> Self {
        Self { state: Mutex::default(), budget }
    }

    /// Keeps `object`, and gives up what was used longest ago for it. One over the whole budget is not kept.
    pub fn insert(&self, id: SegmentId, object: Bytes) {
        if object.len() > self.budget {
            return;
        }
        let mut state = self.lock();
        state.remove(&id);
        while state.bytes + object.len() > self.budget
            && let Some(oldest) = state.oldest()
        {
            state.remove(&oldest);
        }
        let used = state.next_use();
        state.bytes += object.len();
        state.by_use.insert(used, id);
        state.objects.insert(id, (object, used));
        metrics::host_cache(state.bytes);
    }

    /// The object, which now is the one used last.
    pub fn get(&self, id: &SegmentId) -> Option<Bytes> {
        let mut state = self.lock();
        let used = state.next_use();
        let (object, last) = state.objects.get_mut(id)?;
        let (object, last) = (object.clone(), std::mem::replace(last, used));
        state.by_use.remove(&last);
        state.by_use.insert(used, *id);
        Some(object)
    }

    /// Whether it is here; asking is no use.
    pub fn contains(&self, id: &SegmentId) -> bool {
        self.lock().objects.contains_key(id)
    }

    /// Gives up an object that turned out to be damaged.
    pub fn remove(&self, id: &SegmentId) {
        let mut state = self.lock();
        state.remove(id);
        metrics::host_cache(state.bytes);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::blocks::tests::id;

    fn object(bytes: usize) -> Bytes {
        Bytes::from(vec![0; bytes])
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let cache = HostCache::new(30);
        (1..=3).for_each(|i| cache.insert(id(i), object(10)));
        assert!(cache.get(&id(1)).is_some());
        // Looking is no use.
        assert!(cache.contains(&id(2)));
        cache.insert(id(4), object(10));
        assert_eq!([1, 2, 3, 4].map(|i| cache.contains(&id(i))), [true, false, true, true]);
        cache.remove(&id(1));
        assert!(cache.get(&id(1)).is_none());
    }

    #[test]
    fn what_is_larger_than_everything_pushes_nothing_out() {
        let cache = HostCache::new(30);
        cache.insert(id(1), object(30));
        cache.insert(id(2), object(31));
        assert_eq!([1, 2].map(|i| cache.contains(&id(i))), [true, false]);
        let none = HostCache::new(0);
        none.insert(id(1), object(1));
        assert!(!none.contains(&id(1)));
    }

    proptest! {
        #[test]
        fn the_budget_holds_and_every_count_agrees(
            steps in prop::collection::vec((0u8..3, 0u8..8, 0usize..40), 0..100),
        ) {
            let cache = HostCache::new(100);
            for (step, i, bytes) in steps {
                match step {
                    0 => cache.insert(id(i), object(bytes)),
                    1 => drop(cache.get(&id(i))),
                    _ => cache.remove(&id(i)),
                }
                let state = cache.lock();
                prop_assert!(state.bytes <= 100);
                prop_assert_eq!(state.bytes, state.objects.values().map(|(object, _)| object.len()).sum::<usize>());
                prop_assert_eq!(state.objects.len(), state.by_use.len());
                prop_assert!(state.objects.iter().all(|(id, (_, used))| state.by_use.get(used) == Some(id)));
            }
        }
    }
}
