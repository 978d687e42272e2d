//! What events move: a recorder for the metrics of a catalogue.
//!
//! Rooms move metrics by name, with the macros of the crate `metrics`; the recorder is the process's.

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use super::{Catalogue, Described, Kind, process};
use crate::TelemetryError;

/// What was recorded. Clones are the same.
#[derive(Clone)]
pub struct Recorded(PrometheusHandle);

impl Recorded {
    /// In Prometheus's text format.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Drains samples of histograms into buckets. They are kept one by one until then, or until they are rendered.
    pub(crate) fn run_upkeep(&self) {
        self.0.run_upkeep();
    }
}

impl Catalogue {
    /// Makes this process record its metrics. Once a process.
    ///
    /// # Errors
    /// There is a recorder already.
    pub fn install(&self) -> Result<Recorded, TelemetryError> {
        let handle = self.builder()?.install_recorder()?;
        self.announce();
        process::describe();
        Ok(Recorded(handle))
    }

    /// What a process tells that records no metrics.
    ///
    /// # Errors
    /// A histogram without buckets.
    pub fn unrecorded(&self) -> Result<Recorded, TelemetryError> {
        Ok(Recorded(self.builder()?.build_recorder().handle()))
    }

    /// What is recorded on this thread while `record` runs, the process's numbers included. For tests: a recorder of its own
    /// is in force meanwhile.
    ///
    /// # Panics
    /// A histogram of the catalogue has no buckets.
    pub fn recorded_while(&self, record: impl FnOnce()) -> Recorded {
        let recorder = self.builder().expect("histograms have buckets").build_recorder();
        metrics::with_local_recorder(&recorder, || {
            self.announce();
            process::describe();
            process::collect();
            record();
        });
        Recorded(recorder.handle())
    }

    fn builder(&self) -> Result<PrometheusBuilder, BuildError> {
        self.recorded().try_fold(PrometheusBuilder::new(), |builder, metric| match metric.kind {
            Kind::Histogram(buckets) => {
                builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)
            }
            Kind::Counter | Kind::Gauge => Ok(builder),
        })
    }

    /// Gives every metric its help, and every counter and histogram its 0: a rate over a series that begins with
    /// its first event misses that event. Gauges appear with their first value; one whose label is the version has it.
    fn announce(&self) {
        for Described { name, kind, labels, values, help } in self.recorded() {
            match kind {
                Kind::Counter => describe_counter!(name, help),
                Kind::Gauge => describe_gauge!(name, help),
                Kind::Histogram(_) => describe_histogram!(name, help),
            }
            match (kind, labels.first()) {
                (Kind::Counter, None) => counter!(name).absolute(0),
                (Kind::Counter, Some(label)) => {
                    values.iter().for_each(|value| counter!(name, *label => *value).absolute(0));
                }
                (Kind::Histogram(_), _) => drop(histogram!(name)),
                (Kind::Gauge, Some(label)) if values.is_empty() => {
                    gauge!(name, *label => self.program.version).set(1.0);
                }
                (Kind::Gauge, _) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::recorded;
    use super::*;

    #[test]
    fn counters_and_histograms_begin_at_zero_and_gauges_are_absent_until_they_are_read() {
        let text = recorded(|| histogram!("sample_seconds").record(0.5)).render();
        for line in [
            "sample_build_info{version=\"1.2.3\"} 1",
            "sample_done_total 0",
            "turnmill_spans_dropped_total{reason=\"queue_full\"} 0",
            "sample_seconds_bucket{le=\"0.1\"} 0",
            "sample_seconds_bucket{le=\"1\"} 1",
            "# HELP sample_done_total What was done.",
        ] {
            assert!(text.lines().any(|said| said == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("sample_open "), "{text}");
        assert!(recorded(|| gauge!("sample_open").set(2.0)).render().contains("sample_open 2\n"));
    }

    #[test]
    fn a_process_that_records_nothing_tells_nothing() {
        let nothing = super::super::tests::SAMPLES.unrecorded().expect("buckets are there");
        counter!("sample_done_total").increment(1);
        assert_eq!(nothing.render(), "");
    }
}
