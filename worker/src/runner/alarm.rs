//! Notices that a part of the worker ended that should go on: without it a worker whose renewals panicked would stay ready and
//! lose every lease.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// Raised once, by the first part that ends too early. Clones are the same alarm.
#[derive(Clone, Debug, Default)]
pub struct Alarm {
    raised: CancellationToken,
    what: Arc<OnceLock<&'static str>>,
}

/// Raises the alarm when it is dropped, however that comes.
struct Watched {
    alarm: Alarm,
    what: &'static str,
    stop: CancellationToken,
}

impl Alarm {
    /// `work`, which may end once `stop` is cancelled; if it ends or panics before, `what` it did is told.
    pub fn watch<F: Future<Output = ()>>(
        &self,
        what: &'static str,
        stop: CancellationToken,
        work: F,
    ) -> impl Future<Output = ()> + use<F> {
        let watched = Watched { alarm: self.clone(), what, stop };
        async move {
            let _watched = watched;
            work.await;
        }
    }

    /// Waits until a part ends too early; what it did.
    pub async fn raised(&self) -> &'static str {
        self.raised.cancelled().await;
        self.what.get().expect("what ended is noted before the alarm is raised")
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.stop.is_cancelled() {
            // The first part stands: others may end because of it.
            let _ = self.alarm.what.set(self.what);
            self.alarm.raised.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_panics_or_ends_raises_the_alarm_and_one_that_was_stopped_does_not() {
        let (alarm, stop) = (Alarm::default(), CancellationToken::new());
        let stopped = stop.clone();
        let waits =
            tokio::spawn(alarm.watch("waiting", stop.clone(), async move { stopped.cancelled().await }));
        stop.cancel();
        waits.await.expect("it does not panic");
        assert!(!alarm.raised.is_cancelled());

        let running = CancellationToken::new();
        let panics = tokio::spawn(alarm.watch("renewing", running.clone(), async { panic!("on purpose") }));
        assert!(panics.await.is_err_and(|error| error.is_panic()));
        assert_eq!(alarm.raised().await, "renewing");
        tokio::spawn(alarm.watch("sweeping", running, async {})).await.expect("it does not panic");
        assert_eq!(alarm.raised().await, "renewing", "the first");
    }
}
