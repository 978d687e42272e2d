//! Prometheus's text format, for metrics that are computed when somebody scrapes.

use std::fmt::{Display, Write as _};

use super::Described;

/// Adds a metric's head to `text`. Its samples follow.
pub fn head(text: &mut String, metric: &Described) {
    let Described { name, kind, help, .. } = metric;
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {}", kind.as_str());
}

/// Adds a metric of one sample to `text`; nothing, if nobody knows its value.
pub fn sample(text: &mut String, metric: &Described, value: Option<impl Display>) {
    if let Some(value) = value {
        head(text, metric);
        let _ = writeln!(text, "{} {value}\n", metric.name);
    }
}

/// Adds the sample for one value of the metric's label to `text`.
pub fn labelled(text: &mut String, metric: &Described, label_value: &str, value: impl Display) {
    for label in metric.labels {
        let _ = writeln!(text, "{}{{{label}=\"{label_value}\"}} {value}", metric.name);
    }
}
