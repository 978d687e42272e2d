//! Reads go before writes: a turn waits for a read, nobody waits for most writes.
//!
//! Invariant: a write waits for reads at most [`LONGEST`], so that reads without end cannot starve it.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::surroundings::Surroundings;

/// What a write waits for reads. Two writers of 6 MB each still write 48 MB/s past reads without end.
const LONGEST: Duration = Duration::from_millis(250);

/// Counts the reads under way.
#[derive(Debug)]
pub(super) struct ReadsFirst {
    reads: AtomicUsize,
    /// Wakes writers after the last read, in the order in which they came; a `watch` channel draws the order by chance, and a seed of a
    /// simulation must be a run.
    quiet: Notify,
    surroundings: Surroundings,
}

impl ReadsFirst {
    pub fn new(surroundings: Surroundings) -> Self {
        Self { reads: AtomicUsize::new(0), quiet: Notify::new(), surroundings }
    }

    /// A read is under way until this is dropped.
    pub fn begin(&self) -> Reading<'_> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        Reading(self)
    }

    /// Waits while reads are under way, but not for long.
    pub async fn give_way(&self) {
        let quiet = async {
            loop {
                let mut quiet = pin!(self.quiet.notified());
                // From here on the end of the last read is not missed.
                quiet.as_mut().enable();
                if self.reads.load(Ordering::SeqCst) == 0 {
                    return;
                }
                quiet.await;
            }
        };
        // Over time, it is the write's turn.
        let _ = self.surroundings.timeout(LONGEST, quiet).await;
    }
}

/// A read under way.
pub(super) struct Reading<'a>(&'a ReadsFirst);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if self.0.reads.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.quiet.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn a_write_waits_for_the_last_read() {
        let gate = ReadsFirst::new(Surroundings::machine());
        gate.give_way().await;
        let (first, second) = (gate.begin(), gate.begin());
        let mut write = pin!(gate.give_way());
        drop(first);
        assert!(poll!(&mut write).is_pending());
        drop(second);
        assert!(poll!(&mut write).is_ready());
    }

    #[tokio::test]
    async fn reads_without_end_do_not_starve_it() {
        let gate = ReadsFirst::new(Surroundings::machine());
        let _endless = gate.begin();
        gate.give_way().await;
    }
}
