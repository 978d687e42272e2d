//! Ticks at a steady pace.

use std::time::{Duration, Instant};

use super::Surroundings;

/// A tick that comes this late counts as one that was missed. tokio allows its timers as much.
const LATE: Duration = Duration::from_millis(5);

/// See [`Surroundings::ticks`].
#[derive(Debug)]
pub struct Ticks {
    surroundings: Surroundings,
    period: Duration,
    next: Instant,
}

impl Ticks {
    pub(super) fn new(surroundings: Surroundings, period: Duration) -> Self {
        let next = surroundings.now();
        Self { surroundings, period, next }
    }

    /// Waits for the next tick. Dropping the future loses none.
    pub async fn tick(&mut self) {
        self.surroundings.sleep_until(self.next).await;
        let now = self.surroundings.now();
        let from = if now > self.next + LATE { now } else { self.next };
        self.next = from + self.period;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tick_that_was_missed_puts_the_later_ones_off() {
        let mut ticks = Surroundings::machine().ticks(Duration::from_secs(3600));
        let began = ticks.next;
        ticks.tick().await;
        assert_eq!(ticks.next, began + ticks.period);
        let long_ago = began.checked_sub(Duration::from_secs(1)).expect("the machine is up for a second");
        ticks.next = long_ago;
        ticks.tick().await;
        assert!(ticks.next >= began + ticks.period, "an hour from the late tick on");
    }
}
