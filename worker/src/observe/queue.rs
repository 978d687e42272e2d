//! What the queue says about itself, as metrics that disappear when it says nothing.

use std::fmt::{Display, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::broker::QueueCounts;

/// The queue's last answer. Whoever asks the queue writes it; every scrape reads it.
///
/// These gauges are written out here, and not kept by the recorder, because a gauge of the recorder stays for
/// ever: its last value would pass for the present one while Redis is away, and autoscaling would act on it.
#[derive(Debug)]
pub struct QueueGauges {
    last: Mutex<Option<(QueueCounts, Instant)>>,
    max_age: Duration,
}

impl QueueGauges {
    /// Gauges that are absent until the first answer, and once the last is older than `max_age`.
    pub fn new(max_age: Duration) -> Self {
        Self { last: Mutex::new(None), max_age }
    }

    /// The queue answered.
    pub fn set(&self, counts: QueueCounts, now: Instant) {
        self.store(Some((counts, now)));
    }

    /// The queue could not be asked.
    pub fn clear(&self) {
        self.store(None);
    }

    fn store(&self, last: Option<(QueueCounts, Instant)>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }

    /// The gauges in Prometheus's text format.
    pub fn render(&self, now: Instant) -> String {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |at: Instant| now.saturating_duration_since(at) <= self.max_age;
        let counts = last.filter(|(_, at)| fresh(*at)).map(|(counts, _)| counts);
        let mut text = String::new();
        let help = "Whether the queue could be asked just now; while 0 its other gauges are absent.";
        gauge(&mut text, "turnmill_queue_source_up", help, u8::from(counts.is_some()));
        if let Some(counts) = counts {
            let help = "Agents with a turn to run that no worker holds.";
            gauge(&mut text, "turnmill_queue_runnable_agents", help, counts.runnable());
            let help = "Agents whose turn a worker holds.";
            gauge(&mut text, "turnmill_queue_leased_agents", help, counts.leased());
            let help = "Turns that have not ended, those waiting behind others of their agent included.";
            gauge(&mut text, "turnmill_queue_turns", help, counts.open());
            let help =
                "Age of the oldest turn at the head of an agent's backlog, running or not; 0 without one.";
            let oldest = Duration::from_millis(counts.oldest_ms.unwrap_or(0)).as_secs_f64();
            gauge(&mut text, "turnmill_queue_oldest_seconds", help, oldest);
        }
        text
    }
}

fn gauge(text: &mut String, name: &str, help: &str, value: impl Display) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::PriorityCounts;

    const MAX_AGE: Duration = Duration::from_secs(10);

    #[test]
    fn counts_are_told_while_they_are_fresh_and_absent_otherwise() {
        let start = Instant::now();
        let gauges = QueueGauges::new(MAX_AGE);
        let is_absent = |text: &str| text.contains("source_up 0\n") && !text.contains("_agents");
        assert!(is_absent(&gauges.render(start)));

        let priorities = [
            PriorityCounts { runnable: 2, leased: 2, open: 8 },
            PriorityCounts { runnable: 1, leased: 0, open: 1 },
        ];
        gauges.set(QueueCounts { priorities, oldest_ms: Some(1500), ..QueueCounts::default() }, start);
        let text = gauges.render(start + MAX_AGE);
        for line in ["source_up 1", "runnable_agents 3", "leased_agents 2", "turns 9", "oldest_seconds 1.5"] {
            assert!(text.lines().any(|l| l == format!("turnmill_queue_{line}")), "{line}: {text}");
        }
        let late = start + MAX_AGE + Duration::from_millis(1);
        assert!(is_absent(&gauges.render(late)), "an old answer is none");
        gauges.clear();
        assert!(is_absent(&gauges.render(start)));
    }

    #[test]
    fn an_empty_queue_is_zero_and_not_absent() {
        let now = Instant::now();
        let gauges = QueueGauges::new(MAX_AGE);
        gauges.set(QueueCounts::default(), now);
        let text = gauges.render(now);
        assert!(text.contains("runnable_agents 0\n") && text.contains("oldest_seconds 0\n"), "{text}");
    }
}
