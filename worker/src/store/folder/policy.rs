//! Which segments leave a folder that is full: those that were used longest ago, tails before heads.
//!
//! A segment can be found only through all segments before it. So a head is worth more than any of its tails, and a tail
//! without its head is worth nothing.
//!
//! Invariants: pure, without I/O and clock, so that a recorded trace can be replayed through it; a segment never
//! outlives its parent; a use of a segment is a use of every segment before it; what cannot be found goes first.

use std::cmp::Reverse;

/// What comes before a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// Nothing: it is the first segment of its conversations.
    Root,
    /// The segment at this index of the same slice.
    At(usize),
    /// A segment that is not there, so this one cannot be found.
    Missing,
}

/// A stored segment, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// What comes before it.
    pub parent: Parent,
    /// Its size.
    pub bytes: u64,
    /// When it was last written or read, on any clock.
    pub last_use: u64,
}

/// How much may stay.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// At most this many bytes stay.
    pub limit: u64,
    /// If anything has to go, segments go until this many bytes are left, so that not every new one costs an old one.
    pub target: u64,
}

/// What to do about a full folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The indices of the segments that go, in the order in which they go.
    pub remove: Vec<usize>,
    /// Whether what stays is within the limit.
    pub fits: bool,
}

/// Everything before an index goes before everything from it on.
type Rank = (bool, u64, Reverse<usize>);

/// The indices of all segments in the order in which they would go.
pub fn eviction_order(segments: &[Segment]) -> Vec<usize> {
    let ranks = ranks(segments);
    let mut order: Vec<usize> = (0..segments.len()).collect();
    // Stable, so equal input gives every worker of a folder the same order.
    order.sort_by_key(|&index| ranks[index]);
    order
}

/// What has to go so that `segments` have `room`. The segment at `incoming`, which is still to be written, is never
/// removed, and neither is a segment that is wanted more: if that leaves too much, the plan does not fit.
pub fn plan(segments: &[Segment], incoming: Option<usize>, room: Room) -> Plan {
    let mut left: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let mut remove = Vec::new();
    if left > room.limit {
        let goes = eviction_order(segments).into_iter().take_while(|&index| Some(index) != incoming);
        for index in goes {
            if left <= room.target {
                break;
            }
            left -= segments[index].bytes;
            remove.push(index);
        }
    }
    Plan { remove, fits: left <= room.limit }
}

/// How much each segment is wanted: whether it can be found, when it or one behind it was last used, how near the start
/// it is.
fn ranks(segments: &[Segment]) -> Vec<Rank> {
    let parent = |index: usize| match segments[index].parent {
        Parent::At(parent) if parent < segments.len() => Some(parent),
        Parent::At(_) | Parent::Root | Parent::Missing => None,
    };
    let mut children = vec![Vec::new(); segments.len()];
    let mut heads_first = Vec::with_capacity(segments.len());
    for index in 0..segments.len() {
        match parent(index) {
            Some(parent) => children[parent].push(index),
            None => heads_first.push(index),
        }
    }
    // Parents come from bytes that anybody may have written: what is in a circle is never reached, and goes first.
    let mut ranks = vec![(false, 0, Reverse(usize::MAX)); segments.len()];
    let mut next = 0;
    while let Some(&index) = heads_first.get(next) {
        next += 1;
        let (found, depth) = match parent(index) {
            Some(parent) => (ranks[parent].0, ranks[parent].2.0 + 1),
            None => (segments[index].parent == Parent::Root, 0),
        };
        ranks[index] = (found, segments[index].last_use, Reverse(depth));
        heads_first.append(&mut children[index]);
    }
    for &index in heads_first.iter().rev() {
        if let Some(parent) = parent(index) {
            ranks[parent].1 = ranks[parent].1.max(ranks[index].1);
        }
    }
    ranks
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn segment(parent: Parent, last_use: u64) -> Segment {
        Segment { parent, bytes: 10, last_use }
    }

    #[test]
    fn the_tails_of_what_was_used_longest_ago_go_first() {
        // Written long ago and used through its second tail: a system prompt with two conversations.
        let shared = [
            segment(Parent::Root, 1),
            segment(Parent::At(0), 2),
            segment(Parent::At(0), 9),
            segment(Parent::Root, 3),
            segment(Parent::At(3), 3),
        ];
        assert_eq!(eviction_order(&shared), [1, 4, 3, 2, 0]);
        let room = Room { limit: 40, target: 30 };
        assert_eq!(plan(&shared, None, room), Plan { remove: vec![1, 4], fits: true });
        let room = Room { limit: 50, target: 30 };
        assert_eq!(plan(&shared, None, room), Plan { remove: vec![], fits: true });
    }

    #[test]
    fn what_cannot_be_found_goes_before_what_was_never_used() {
        let segments = [
            segment(Parent::Root, 0),
            segment(Parent::Missing, 9),
            segment(Parent::At(1), 8),
            segment(Parent::At(4), 9),
            segment(Parent::At(3), 9),
            segment(Parent::At(99), 7),
        ];
        let order = eviction_order(&segments);
        let (circle, rest) = order.split_at(2);
        assert_eq!((HashSet::from([circle[0], circle[1]]), rest), (HashSet::from([3, 4]), &[5, 2, 1, 0][..]));
    }

    /// Any forest, with circles and holes.
    fn forests() -> impl Strategy<Value = Vec<Segment>> {
        let parent = prop_oneof![
            2 => Just(Parent::Root),
            6 => (0usize..24).prop_map(Parent::At),
            1 => Just(Parent::Missing),
        ];
        let segment = (parent, 1u64..50, 0u64..20);
        prop::collection::vec(segment, 1..24).prop_map(|segments| {
            let segment = |(parent, bytes, last_use)| Segment { parent, bytes, last_use };
            segments.into_iter().map(segment).collect()
        })
    }

    /// The segments from `index` back to the first one; none if there is no first one.
    fn chain(segments: &[Segment], index: usize) -> Option<Vec<usize>> {
        let mut chain = vec![index];
        loop {
            match segments[*chain.last()?].parent {
                Parent::Root => return Some(chain),
                Parent::At(parent) if parent < segments.len() && !chain.contains(&parent) => {
                    chain.push(parent)
                }
                Parent::At(_) | Parent::Missing => return None,
            }
        }
    }

    proptest! {
        #[test]
        fn the_least_wanted_go_and_no_more_than_have_to(
            segments in forests(), limit in 0u64..600, target in 0u64..600, incoming in 0usize..24,
        ) {
            let room = Room { limit, target: target.min(limit) };
            let incoming = Some(incoming).filter(|incoming| *incoming < segments.len());
            let plan = plan(&segments, incoming, room);
            let gone: HashSet<usize> = plan.remove.iter().copied().collect();
            let stays = |index: &usize| !gone.contains(index);
            prop_assert_eq!(gone.len(), plan.remove.len(), "none goes twice");
            prop_assert!(incoming.is_none_or(|incoming| stays(&incoming)));

            let total = |of: &mut dyn Iterator<Item = usize>| of.map(|index| segments[index].bytes).sum::<u64>();
            let left = total(&mut (0..segments.len()).filter(stays));
            prop_assert_eq!(plan.fits, left <= room.limit);
            prop_assert!(plan.fits || incoming.is_some());
            if let Some(&last) = plan.remove.last() {
                prop_assert!(left + segments[last].bytes > room.target, "the last one need not have gone");
            }

            let chains: Vec<_> = (0..segments.len()).map(|index| chain(&segments, index)).collect();
            for index in (0..segments.len()).filter(stays) {
                if let Some(chain) = &chains[index] {
                    prop_assert!(chain.iter().all(stays), "{index} outlived one before it");
                }
            }
            // A use of a segment is a use of all before it.
            let used = |index: usize| {
                let behind = (0..segments.len()).filter(|other| chains[*other].iter().flatten().any(|i| *i == index));
                behind.map(|other| segments[other].last_use).max()
            };
            for goes in &plan.remove {
                for stays in (0..segments.len()).filter(stays) {
                    prop_assert!(used(*goes) <= used(stays), "{goes} was wanted more than {stays}");
                }
            }
        }
    }
}
