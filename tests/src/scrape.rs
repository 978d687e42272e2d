//! One scrape of a worker's metrics.

use std::collections::BTreeMap;

use crate::worker::Worker;

/// The series that a worker told, with their values.
#[derive(Clone, Debug, Default)]
pub struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    /// What `worker` tells now.
    pub fn of(worker: &Worker) -> Self {
        Self::read(&worker.get("/metrics").1)
    }

    /// Reads Prometheus's text format. Panics where a line is no sample.
    pub fn read(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').expect("series and value");
            (series.to_owned(), value.parse().expect("a number"))
        };
        Self(samples.map(sample).collect())
    }

    /// The value of a series, as `name` or `name{label="value"}`.
    pub fn series(&self, series: &str) -> Option<f64> {
        self.0.get(series).copied()
    }

    /// The sum over all series of a metric, for a histogram its count; none where there are none.
    pub fn sum(&self, name: &str) -> Option<f64> {
        let of_it = |series: &str| {
            let own = series.split('{').next().unwrap_or_default();
            own == name || own.strip_prefix(name) == Some("_count")
        };
        let values = self.0.iter().filter(|(series, _)| of_it(series)).map(|(_, value)| *value);
        values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_and_sums_are_read() {
        let text = "# HELP a x\n# TYPE a counter\na{b=\"c\"} 1\na{b=\"d\"} 2.5\n\nh_bucket{le=\"1\"} 4\nh_sum 9\nh_count 4\n";
        let scrape = Scrape::read(text);
        assert_eq!((scrape.series("a{b=\"d\"}"), scrape.series("a")), (Some(2.5), None));
        assert_eq!((scrape.sum("a"), scrape.sum("h"), scrape.sum("x")), (Some(3.5), Some(4.0), None));
    }
}
