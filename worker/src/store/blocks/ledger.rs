//! Which segments are on their way to the store and which are there.
//!
//! Invariants: a segment is in the store only once the store said so; one that failed is unknown again, so that it may be
//! saved again; what is remembered of stored segments is bounded in number and in time, since others may remove them, and
//! forgetting one costs a put of what is there already.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::kv::{PrefixHash, SegmentId};
use crate::surroundings::Surroundings;

/// After this time a stored segment is put again if somebody has it: a bucket's rules, a collector or a folder's limit may have
/// removed it, and nobody tells.
const BELIEVED: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(super) struct Ledger {
    surroundings: Surroundings,
    state: Mutex<State>,
    /// Wakes those who wait, at every end of a write.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// Queued or being written; bounded by the save queue.
    pending: HashSet<SegmentId>,
    stored: Recent,
}

/// Ids of at least the last `limit` segments and of at most twice as many: when the young are `limit`, the old are
/// forgotten and the young grow old.
#[derive(Debug)]
struct Recent {
    /// Each with the moment at which it was known to be there.
    young: HashMap<SegmentId, Instant>,
    old: HashMap<SegmentId, Instant>,
    limit: usize,
}

impl Recent {
    fn insert(&mut self, id: SegmentId, now: Instant) {
        if self.young.len() >= self.limit && !self.young.contains_key(&id) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(id, now);
    }

    fn retain(&mut self, stays: impl Fn(&SegmentId, &Instant) -> bool) {
        self.young.retain(|id, at| stays(id, at));
        self.old.retain(|id, at| stays(id, at));
    }

    fn remove(&mut self, id: &SegmentId) {
        self.young.remove(id);
        self.old.remove(id);
    }

    fn contains(&self, id: &SegmentId, now: Instant) -> bool {
        let known = self.young.get(id).or_else(|| self.old.get(id));
        known.is_some_and(|at| now.saturating_duration_since(*at) < BELIEVED)
    }
}

impl Ledger {
    /// A ledger that remembers the last `limit` segments stored.
    pub fn new(limit: usize, surroundings: Surroundings) -> Self {
        let stored = Recent { young: HashMap::new(), old: HashMap::new(), limit };
        let state = Mutex::new(State { pending: HashSet::new(), stored });
        Self { surroundings, state, changed: Notify::new() }
    }

    /// The segment is to be written; false: it is stored or on its way.
    pub fn begin(&self, id: SegmentId) -> bool {
        let mut state = self.lock();
        !state.stored.contains(&id, self.surroundings.now()) && state.pending.insert(id)
    }

    /// The write of a segment that [began](Self::begin) is over.
    pub fn end(&self, id: SegmentId, stored: bool) {
        let mut state = self.lock();
        state.pending.remove(&id);
        if stored {
            state.stored.insert(id, self.surroundings.now());
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Somebody found the segment in the store.
    pub fn found(&self, id: SegmentId) {
        self.lock().stored.insert(id, self.surroundings.now());
        self.changed.notify_waiters();
    }

    /// Somebody looked and the segment was not there, or not whole. A write that is under way goes on.
    pub fn lost(&self, id: &SegmentId) {
        self.lock().stored.remove(id);
    }

    /// Somebody listed the store from `since` on and found only `these` last blocks' segments.
    pub fn listed(&self, these: &HashSet<PrefixHash>, since: Instant) {
        self.lock().stored.retain(|id, at| *at >= since || these.contains(&id.last));
    }

    /// Whether the segment is stored or on its way.
    pub fn is_known(&self, id: &SegmentId) -> bool {
        let state = self.lock();
        state.stored.contains(id, self.surroundings.now()) || state.pending.contains(id)
    }

    /// How many of `segments`, from the first on, are stored; an error while the one after them is on its way.
    fn leading(&self, segments: &[SegmentId]) -> Result<usize, StillPending> {
        let (state, now) = (self.lock(), self.surroundings.now());
        let stored = segments.iter().take_while(|id| state.stored.contains(id, now)).count();
        match segments.get(stored) {
            Some(next) if state.pending.contains(next) => Err(StillPending { stored }),
            _ => Ok(stored),
        }
    }

    /// How many of `segments`, from the first on, are stored, as soon as waiting changes nothing, or now that
    /// `enough` is over.
    pub async fn settled(&self, segments: &[SegmentId], enough: impl Future<Output = ()>) -> usize {
        let mut enough = std::pin::pin!(enough);
        loop {
            let changed = self.changed.notified();
            let stored = match self.leading(segments) {
                Ok(stored) => return stored,
                Err(StillPending { stored }) => stored,
            };
            // What is stored by now counts, though the time is over.
            tokio::select! {
                biased;
                () = changed => {}
                () = &mut enough => return stored,
            }
        }
    }

    /// Returns once nothing is on its way.
    pub async fn idle(&self) {
        loop {
            let changed = self.changed.notified();
            if self.lock().pending.is_empty() {
                return;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Sets of ids, each changed by one call: nothing can be half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A segment that is on its way follows on `stored` stored ones.
struct StillPending {
    stored: usize,
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;
    use crate::store::blocks::tests::id;

    #[tokio::test]
    async fn only_leading_segments_count_and_only_open_ones_are_waited_for() {
        let ledger = Ledger::new(10, Surroundings::machine());
        let segments = [1, 2, 3, 4].map(id);
        segments.iter().for_each(|id| assert!(ledger.begin(*id)));
        assert!(!ledger.begin(id(1)) && ledger.is_known(&id(1)));
        ledger.end(id(1), true);
        ledger.end(id(3), true);
        assert_eq!(ledger.settled(&segments, ready(())).await, 1, "enough");
        let waiting = ledger.settled(&segments, pending());
        let failing = async {
            tokio::task::yield_now().await;
            ledger.end(id(2), false);
        };
        // Whatever becomes of the fourth, two is lost.
        assert_eq!(tokio::join!(waiting, failing).0, 1);
        assert!(!ledger.is_known(&id(2)) && ledger.begin(id(2)), "it may be saved again");
        ledger.end(id(2), true);
        ledger.end(id(4), true);
        assert_eq!(ledger.settled(&segments, pending()).await, 4);
        assert_eq!(ledger.settled(&[id(1), id(9), id(2)], pending()).await, 1, "nobody saves nine");
        ledger.idle().await;
    }

    #[test]
    fn what_is_lost_may_be_saved_again_and_a_write_under_way_stays() {
        let ledger = Ledger::new(10, Surroundings::machine());
        ledger.found(id(1));
        assert!(!ledger.begin(id(1)));
        ledger.lost(&id(1));
        assert!(ledger.begin(id(1)));
        ledger.lost(&id(1));
        assert!(ledger.is_known(&id(1)));
    }

    #[test]
    fn what_a_listing_does_not_show_is_forgotten_unless_it_came_meanwhile() {
        let ledger = Ledger::new(10, Surroundings::machine());
        [1, 2].map(id).into_iter().for_each(|id| ledger.found(id));
        let since = Instant::now();
        ledger.found(id(3));
        ledger.listed(&HashSet::from([id(1).last]), since);
        assert_eq!([1, 2, 3].map(|number| ledger.is_known(&id(number))), [true, false, true]);
    }

    #[test]
    fn the_last_ones_are_remembered_and_memory_is_bounded() {
        let ledger = Ledger::new(10, Surroundings::machine());
        for i in 0..=99 {
            ledger.found(id(i));
            ledger.found(id(i));
            let state = ledger.lock();
            assert!(state.stored.young.len() + state.stored.old.len() <= 20);
            assert!((i.saturating_sub(9)..=i).all(|i| state.stored.contains(&id(i), Instant::now())));
        }
        assert!(!ledger.is_known(&id(0)));
    }
}
