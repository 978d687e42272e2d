//! What the worker tells at `/metrics`: every metric by name, kind, labels and meaning. docs/METRICS.md is written from it, and
//! what alerts and dashboards name is looked up in it.
//!
//! Invariants: every metric that is told is here; label values come from closed lists, never from users.

use turnmill_telemetry::metrics::{Catalogue, Described, Group, PROCESS, Source};
use turnmill_telemetry::traces;

use super::{metrics, queue, state};
use crate::PROGRAM;

/// The worker's metrics.
pub const CATALOGUE: Catalogue = Catalogue {
    program: PROGRAM,
    groups: &[
        Group {
            title: "Queue",
            remark: "Read from Redis every two seconds. Every worker tells the same numbers about the whole queue: take the `max`, \
                     never the `sum`. While Redis cannot be asked, all of them but `turnmill_queue_source_up` are absent; a number \
                     nobody can read is never 0.",
            source: Source::Scrape,
            metrics: &[queue::METRICS],
        },
        Group {
            title: "Worker",
            remark: "Computed at each scrape.",
            source: Source::Scrape,
            metrics: &[state::METRICS],
        },
        Group {
            title: "Work",
            remark: "This worker's own. Counters and histograms begin at 0 when it starts, all label values included, so that a rate \
                     misses no first event; gauges appear with their first value.",
            source: Source::Events,
            metrics: &[metrics::RECORDED, traces::METRICS],
        },
        PROCESS,
    ],
};

/// Every metric.
pub fn catalogue() -> impl Iterator<Item = Described> {
    CATALOGUE.metrics()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::{Duration, Instant};

    use turnmill_telemetry::metrics::Kind;

    use super::super::metrics::tests::every_event;
    use super::super::{QueueGauges, state};
    use super::*;
    use crate::broker::QueueCounts;
    use crate::lifecycle::{HeadroomLimits, Lifecycle};

    /// What a scrape tells of a worker to which everything has happened.
    fn scrape() -> String {
        let now = Instant::now();
        let queue = QueueGauges::new(Duration::from_secs(60));
        queue.set(QueueCounts { lag: Some(0), ..QueueCounts::default() }, now);
        let lifecycle = Lifecycle::new(HeadroomLimits { low: 0.05, high: 0.1 }, Duration::from_secs(60), now);
        lifecycle.set_store_trouble(None);
        let work = CATALOGUE.recorded_while(every_event);
        queue.render(now) + &state::render(&lifecycle, now) + &work.render()
    }

    /// The labels of a sample, each with its value.
    fn labels(sample: &str) -> Vec<(&str, &str)> {
        let Some((_, rest)) = sample.split_once('{') else { return Vec::new() };
        let (labels, _) = rest.rsplit_once('}').expect("a brace for each");
        labels
            .split(',')
            .map(|label| {
                let (name, value) = label.split_once('=').expect("a label has a value");
                (name, value.trim_matches('"'))
            })
            .collect()
    }

    #[test]
    fn a_scrape_tells_what_the_catalogue_says_and_nothing_else() {
        let (text, mut told) = (scrape(), HashSet::new());
        let mut current: Option<Described> = None;
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with("# HELP ")) {
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                let (name, kind) = declared.split_once(' ').expect("name and kind");
                let metric = catalogue().find(|metric| metric.name == name);
                let metric = metric.unwrap_or_else(|| panic!("the catalogue lacks {name}"));
                assert_eq!(kind, metric.kind.as_str(), "{name}");
                assert!(told.insert(name), "{name} is told twice");
                current = Some(metric);
                continue;
            }
            let metric = current.unwrap_or_else(|| panic!("{line} has no head"));
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let suffix =
                name.strip_prefix(metric.name).unwrap_or_else(|| panic!("{line} under {}", metric.name));
            let is_histogram = matches!(metric.kind, Kind::Histogram(_));
            let suffixes = if is_histogram { &["_bucket", "_sum", "_count"][..] } else { &[""] };
            assert!(suffixes.contains(&suffix), "{line}");
            for (label, value) in
                labels(line).into_iter().filter(|(label, _)| !is_histogram || *label != "le")
            {
                assert!(metric.labels.contains(&label), "{line}");
                assert!(metric.values.is_empty() || metric.values.contains(&value), "{line}");
            }
        }
        // What the system does not say of the process is absent.
        let is_certain = |metric: &Described| !metric.name.starts_with("process_");
        let untold: Vec<&str> = catalogue()
            .filter(|metric| is_certain(metric) && !told.contains(metric.name))
            .map(|metric| metric.name)
            .collect();
        assert!(untold.is_empty(), "{untold:?}");
    }

    #[test]
    fn names_are_unique_and_end_as_their_kind_asks() {
        let mut names = HashSet::new();
        for Described { name, kind, help, labels, .. } in catalogue() {
            assert!(names.insert(name), "{name} is there twice");
            assert!(name.starts_with("turnmill_") || name.starts_with("process_"), "{name}");
            assert!(help.ends_with('.') && labels.len() <= 1, "{name}");
            let unit = name.rsplit('_').next().unwrap_or_default();
            match kind {
                Kind::Counter => assert_eq!(unit, "total", "{name}"),
                Kind::Gauge => {}
                Kind::Histogram(buckets) => {
                    assert!(["seconds", "rows"].contains(&unit), "{name}");
                    assert!(buckets.is_sorted_by(|a, b| a < b), "{name}");
                }
            }
        }
        assert!(names.len() >= 30);
    }

    #[test]
    fn the_document_is_the_catalogue() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/METRICS.md");
        let kept = std::fs::read_to_string(path).expect("docs/METRICS.md can be read");
        assert!(
            kept == CATALOGUE.document(),
            "docs/METRICS.md is not what the code says; run: turnmill-worker metrics > docs/METRICS.md"
        );
    }
}
