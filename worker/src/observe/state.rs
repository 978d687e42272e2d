//! What the lifecycle knows, as metrics. They are computed at each scrape, so they are true whether or not anybody polls a
//! probe.

use std::time::Instant;

use turnmill_telemetry::metrics::exposition::{head, labelled, sample};
use turnmill_telemetry::metrics::{Described, Kind};

use crate::lifecycle::{Lifecycle, Phase};

const PHASE: Described = Described {
    name: "turnmill_worker_phase",
    kind: Kind::Gauge,
    labels: &["phase"],
    values: &[
        Phase::Starting.as_str(),
        Phase::Ready.as_str(),
        Phase::Failing.as_str(),
        Phase::Draining.as_str(),
        Phase::Stopped.as_str(),
    ],
    help: "Where the worker is in its life: 1 for that phase, 0 for the others.",
};
const READY: Described = Described::gauge(
    "turnmill_worker_ready",
    "Whether `/health/ready` passes: the worker is to be given work.",
);
const REDIS_UP: Described = Described::gauge(
    "turnmill_redis_up",
    "Whether Redis served the queue to this worker when it was last asked.",
);
const STORE_UP: Described = Described::gauge(
    "turnmill_store_up",
    "Whether the object store does what it is asked; absent without a store.",
);

pub(super) const METRICS: &[Described] = &[PHASE, READY, REDIS_UP, STORE_UP];

/// The worker's state in Prometheus's text format.
pub(super) fn render(lifecycle: &Lifecycle, now: Instant) -> String {
    let mut text = String::new();
    let phase = lifecycle.phase().as_str();
    head(&mut text, &PHASE);
    for value in PHASE.values {
        labelled(&mut text, &PHASE, value, u8::from(*value == phase));
    }
    text.push('\n');
    sample(&mut text, &READY, Some(u8::from(lifecycle.ready(now).is_ok())));
    sample(&mut text, &REDIS_UP, Some(u8::from(lifecycle.redis_connected())));
    sample(&mut text, &STORE_UP, lifecycle.store_up().map(u8::from));
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::lifecycle::HeadroomLimits;

    #[test]
    fn the_state_is_told_as_it_is_now() {
        let now = Instant::now();
        let limits = HeadroomLimits { low: 0.05, high: 0.10 };
        let lifecycle = Lifecycle::new(limits, Duration::from_secs(30), now);
        let has = |lines: &[&str]| {
            let text = render(&lifecycle, now);
            for line in lines {
                assert!(text.lines().any(|l| l == format!("turnmill_{line}")), "{line} is missing in {text}");
            }
            text
        };
        let text = has(&["worker_phase{phase=\"starting\"} 1", "worker_ready 0", "redis_up 0"]);
        assert!(!text.contains("store_up"), "there is no store: {text}");

        lifecycle.advance(Phase::Ready);
        lifecycle.set_redis_connected(now);
        lifecycle.set_store_trouble(None);
        has(&["worker_phase{phase=\"starting\"} 0", "worker_phase{phase=\"ready\"} 1", "worker_ready 1"]);
        has(&["redis_up 1", "store_up 1"]);

        lifecycle.set_store_trouble(Some("no route".into()));
        lifecycle.set_redis_trouble("no route".into(), now);
        lifecycle.advance(Phase::Draining);
        has(&["worker_phase{phase=\"draining\"} 1", "worker_ready 0", "redis_up 0", "store_up 0"]);
    }
}
