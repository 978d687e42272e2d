//! When a consumer looks for ends that others of its group were given and do not deal with, and for consumers that are gone.

use std::time::{Duration, Instant};

use turnmill_schema::StreamId;

/// How long an end is left to the consumer that it was delivered to. After that another consumer of the group takes it over.
pub const CLAIM_AFTER: Duration = Duration::from_secs(60);
/// How long a consumer with nothing to acknowledge is silent until another one of the group takes it off the list. Names are made
/// up anew by some who read (a container's, a process's), and each would stay for ever.
pub const REMOVE_AFTER: Duration = Duration::from_secs(24 * 3600);
/// How long after one look for consumers that are gone the next one begins.
const PAUSE_OF_REMOVAL: Duration = Duration::from_secs(3600);
/// How long after one look at everything the next one begins.
const PAUSE: Duration = Duration::from_secs(10);

/// Where the look at a group's delivered ends stands.
#[derive(Debug)]
pub(crate) struct Claims {
    /// The first end that is not looked at yet.
    from: StreamId,
    due: Instant,
    removal_due: Instant,
}

impl Claims {
    /// Looks at once.
    pub(crate) fn new(now: Instant) -> Self {
        Self { from: StreamId::START, due: now, removal_due: now }
    }

    /// Where to look on, if it is time to.
    pub(crate) fn due(&self, now: Instant) -> Option<StreamId> {
        (self.due <= now).then_some(self.from)
    }

    /// Whether it is time to look for consumers that are gone.
    pub(crate) fn is_removal_due(&self, now: Instant) -> bool {
        self.removal_due <= now
    }

    /// Consumers that are gone were looked for.
    pub(crate) fn removed(&mut self, now: Instant) {
        self.removal_due = now + PAUSE_OF_REMOVAL;
    }

    /// Everything before `next` was looked at; [`StreamId::START`]: all there is.
    pub(crate) fn looked(&mut self, next: StreamId, now: Instant) {
        self.from = next;
        self.due = if next == StreamId::START { now + PAUSE } else { now };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_goes_on_to_the_end_and_then_rests() {
        let start = Instant::now();
        let mut claims = Claims::new(start);
        assert_eq!(claims.due(start), Some(StreamId::START));
        let next = StreamId { epoch: 7, sequence: 1 };
        claims.looked(next, start);
        assert_eq!(claims.due(start), Some(next), "it goes on at once");
        claims.looked(StreamId::START, start);
        assert_eq!(claims.due(start + PAUSE - Duration::from_millis(1)), None, "it rests");
        assert_eq!(claims.due(start + PAUSE), Some(StreamId::START));
    }

    #[test]
    fn consumers_that_are_gone_are_looked_for_at_once_and_then_rarely() {
        let start = Instant::now();
        let mut claims = Claims::new(start);
        assert!(claims.is_removal_due(start));
        claims.removed(start);
        claims.looked(StreamId::START, start);
        assert!(!claims.is_removal_due(start + PAUSE));
        assert!(claims.is_removal_due(start + PAUSE_OF_REMOVAL));
        assert!(REMOVE_AFTER > CLAIM_AFTER, "its ends went to others before");
    }
}
