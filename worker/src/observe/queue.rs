//! What the queue says about itself, as metrics that disappear when it says nothing.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use turnmill_schema::Outcome;
use turnmill_telemetry::metrics::exposition::{head, labelled, sample};
use turnmill_telemetry::metrics::{Described, Kind};

use crate::broker::QueueCounts;

const SOURCE_UP: Described = Described::gauge(
    "turnmill_queue_source_up",
    "Whether the queue could be asked just now; while 0 its other metrics are absent.",
);
const RUNNABLE: Described =
    Described::gauge("turnmill_queue_runnable_agents", "Agents with a turn to run that no worker holds.");
const LEASED: Described = Described::gauge(
    "turnmill_queue_leased_agents",
    "Agents whose turn a worker holds, dead workers included until their leases run out.",
);
const LAG: Described = Described::gauge(
    "turnmill_queue_lag_agents",
    "Redis's own count of the runnable agents, a cross-check; absent while Redis does not know it.",
);
const TURNS: Described = Described::gauge(
    "turnmill_queue_turns",
    "Turns that have not ended, those waiting behind others of their agent included.",
);
const DELAYED: Described = Described::gauge(
    "turnmill_queue_delayed_agents",
    "Agents that wait for a retry or for the time of a scheduled turn.",
);
const DEAD: Described = Described::gauge("turnmill_queue_dead_letters", "Dead letters that were not purged.");
const RETAINED: Described =
    Described::gauge("turnmill_queue_retained_bytes", "What ended turns take in Redis, roughly.");
const PAUSED: Described =
    Described::gauge("turnmill_queue_paused", "1 while an operator paused the queue, else 0.");
const ENQUEUED: Described = Described {
    kind: Kind::Counter,
    ..Described::gauge("turnmill_queue_enqueued_total", "Turns ever enqueued, by all producers.")
};
const ENDED: Described = Described {
    name: "turnmill_queue_ended_total",
    kind: Kind::Counter,
    labels: &["outcome"],
    values: &[
        Outcome::Completed.as_str(),
        Outcome::Failed.as_str(),
        Outcome::Cancelled.as_str(),
        Outcome::Expired.as_str(),
    ],
    help: "Turns ever ended, by outcome: ended by a worker, by an operator, or by a script that found them too late.",
};
const OLDEST: Described = Described::gauge(
    "turnmill_queue_oldest_seconds",
    "Age of the oldest turn at the head of an agent's backlog, running or not; 0 without one.",
);

pub(super) const METRICS: &[Described] =
    &[SOURCE_UP, RUNNABLE, LEASED, LAG, TURNS, DELAYED, DEAD, RETAINED, PAUSED, ENQUEUED, ENDED, OLDEST];

/// The queue's last answer. The task that asks the queue writes it; every scrape reads it.
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
        sample(&mut text, &SOURCE_UP, Some(u8::from(counts.is_some())));
        let Some(counts) = counts else { return text };
        let numbers = [
            (&RUNNABLE, Some(counts.runnable())),
            (&LEASED, Some(counts.leased())),
            (&LAG, counts.lag),
            (&TURNS, Some(counts.open())),
            (&DELAYED, Some(counts.delayed)),
            (&DEAD, Some(counts.dead)),
            (&RETAINED, Some(counts.retained_bytes)),
            (&PAUSED, Some(u64::from(counts.paused))),
            (&ENQUEUED, Some(counts.enqueued)),
        ];
        for (metric, value) in numbers {
            sample(&mut text, metric, value);
        }
        head(&mut text, &ENDED);
        for (outcome, count) in ENDED.values.iter().zip(counts.ended) {
            labelled(&mut text, &ENDED, outcome, count);
        }
        text.push('\n');
        let oldest = Duration::from_millis(counts.oldest_ms.unwrap_or(0)).as_secs_f64();
        sample(&mut text, &OLDEST, Some(oldest));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::PriorityCounts;

    const MAX_AGE: Duration = Duration::from_secs(10);
    const REST: [&str; 5] = [
        "enqueued_total 11",
        "dead_letters 4",
        "paused 1",
        "ended_total{outcome=\"completed\"} 5",
        "ended_total{outcome=\"cancelled\"} 1",
    ];

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
        let rest = QueueCounts {
            ended: [5, 0, 1, 0],
            enqueued: 11,
            dead: 4,
            paused: true,
            ..QueueCounts::default()
        };
        gauges.set(QueueCounts { priorities, oldest_ms: Some(1500), ..rest }, start);
        let text = gauges.render(start + MAX_AGE);
        assert!(!text.contains("_lag_"), "Redis does not know it: {text}");
        let lines = ["source_up 1", "runnable_agents 3", "leased_agents 2", "turns 9", "oldest_seconds 1.5"];
        for line in lines.into_iter().chain(REST) {
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
