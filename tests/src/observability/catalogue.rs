//! Metrics that exist, and the series that Prometheus makes of each.

use std::collections::{BTreeMap, BTreeSet};

use turnmill_worker::observe;

/// Names of labels.
pub type Labels = BTreeSet<String>;

/// What Prometheus' text format calls a metric's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// It only grows, and begins anew with its process.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Counters of values by upper bound, their number and their sum.
    Histogram,
}

#[derive(Clone, Debug)]
struct Metric {
    form: Form,
    labels: Labels,
    /// What its own labels may be; none listed: anything.
    values: Vec<String>,
}

/// A series' labels, and whether it only grows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// Whether a value of it means nothing until something like `rate` is applied.
    pub counts: bool,
    /// All labels that it may have.
    pub labels: Labels,
    /// What the labels that no target has may be; none listed: anything.
    pub values: Vec<String>,
}

/// Why a name has no series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSeries {
    /// There is no such metric.
    Unknown,
    /// It is a histogram's name, and only what is made of it has series: `_bucket`, `_sum`, `_count`.
    Histogram,
}

/// Metrics by name.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    metrics: BTreeMap<String, Metric>,
    /// What Prometheus adds to all that it scrapes.
    pub target_labels: Labels,
    /// What rules record: labels and all.
    recorded: BTreeMap<String, Labels>,
}

impl Catalogue {
    /// What a worker has, scraped from targets with these labels.
    pub fn of_worker(target_labels: Labels) -> Self {
        let mut catalogue = Self::new(target_labels);
        for described in observe::catalogue() {
            let form = match described.kind {
                observe::Kind::Counter => Form::Counter,
                // Processor time is told as a gauge, and only grows.
                observe::Kind::Gauge if described.name.ends_with("_total") => Form::Counter,
                observe::Kind::Gauge => Form::Gauge,
                observe::Kind::Histogram(_) => Form::Histogram,
            };
            catalogue.add_with(described.name, form, described.labels, described.values);
        }
        catalogue
    }

    /// Only what Prometheus itself has of each target.
    pub fn new(target_labels: Labels) -> Self {
        let mut catalogue = Self { target_labels, ..Self::default() };
        catalogue.add("up", Form::Gauge, &[]);
        catalogue
    }

    /// Adds a metric that is scraped, whose labels may be anything.
    pub fn add(&mut self, name: &str, form: Form, labels: &[&str]) {
        self.add_with(name, form, labels, &[]);
    }

    /// Adds a metric that is scraped, whose labels may be one of `values`.
    pub fn add_with(&mut self, name: &str, form: Form, labels: &[&str], values: &[&str]) {
        let labels = labels.iter().map(ToString::to_string).collect();
        let values = values.iter().map(ToString::to_string).collect();
        self.metrics.insert(name.to_owned(), Metric { form, labels, values });
    }

    /// Adds what a rule records.
    pub fn record(&mut self, name: &str, labels: Labels) {
        self.recorded.insert(name.to_owned(), labels);
    }

    /// The series of a name.
    pub fn series(&self, name: &str) -> Result<Series, NoSeries> {
        if let Some(labels) = self.recorded.get(name) {
            return Ok(Series { counts: false, labels: labels.clone(), values: Vec::new() });
        }
        if let Some(metric) = self.metrics.get(name) {
            return match metric.form {
                Form::Histogram => Err(NoSeries::Histogram),
                form => Ok(self.scraped(metric, form == Form::Counter, None)),
            };
        }
        let of_histogram = [("_bucket", Some("le")), ("_sum", None), ("_count", None)];
        let found = of_histogram.into_iter().find_map(|(suffix, label)| {
            let metric = self.metrics.get(name.strip_suffix(suffix)?)?;
            (metric.form == Form::Histogram).then(|| self.scraped(metric, true, label))
        });
        found.ok_or(NoSeries::Unknown)
    }

    /// Whether a text may mention the name: series, and histograms under their own name.
    pub fn knows(&self, name: &str) -> bool {
        self.series(name) != Err(NoSeries::Unknown)
    }

    fn scraped(&self, metric: &Metric, counts: bool, more: Option<&str>) -> Series {
        let labels = metric.labels.iter().chain(&self.target_labels).cloned();
        Series {
            counts,
            labels: labels.chain(more.map(str::to_owned)).collect(),
            values: metric.values.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_has_the_series_that_prometheus_makes_of_it_and_none_of_its_own_name() {
        let mut catalogue = Catalogue::new(Labels::from(["instance".to_owned()]));
        catalogue.add("a_seconds", Form::Histogram, &["kind"]);
        catalogue.add("b_total", Form::Counter, &[]);
        let labels = |name| catalogue.series(name).map(|series| Vec::from_iter(series.labels));
        assert_eq!(labels("a_seconds"), Err(NoSeries::Histogram));
        assert_eq!(labels("a_seconds_bucket").expect("a series"), ["instance", "kind", "le"]);
        assert_eq!(labels("a_seconds_count").expect("a series"), ["instance", "kind"]);
        assert_eq!(labels("b_total_bucket"), Err(NoSeries::Unknown));
        assert_eq!(labels("up").expect("a series"), ["instance"]);
        assert!(catalogue.knows("a_seconds") && !catalogue.knows("a_second"));
    }
}
