//! What a program tells at `/metrics`: every metric by name, kind, labels and meaning. Its reference document is written from it,
//! and what alerts and dashboards name is looked up in it.
//!
//! Invariants: every metric that is told is here; label values come from closed lists, never from users.

use std::fmt::Write as _;

use crate::Program;

/// What kind of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only grows, until the process starts anew.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations in buckets of these upper bounds.
    Histogram(&'static [f64]),
}

impl Kind {
    /// Prometheus's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// One metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Described {
    /// Its name, ending in the base unit, counters in `_total` (Prometheus's convention).
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its labels, one at most.
    pub labels: &'static [&'static str],
    /// The values that the label may have; none listed: the program's version.
    pub values: &'static [&'static str],
    /// What it says, in a sentence.
    pub help: &'static str,
}

impl Described {
    /// A gauge without labels.
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Gauge, labels: &[], values: &[], help }
    }
}

/// Where the numbers of a group come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Events move them, and the recorder keeps them.
    Events,
    /// They are read at each scrape.
    Scrape,
}

/// Metrics that belong together in the document.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Its heading.
    pub title: &'static str,
    /// What holds for all of them.
    pub remark: &'static str,
    /// Where they come from.
    pub source: Source,
    /// The metrics, room by room.
    pub metrics: &'static [&'static [Described]],
}

/// Every metric of a program.
#[derive(Clone, Copy, Debug)]
pub struct Catalogue {
    /// Whose they are.
    pub program: Program,
    /// The metrics, in the order of the document.
    pub groups: &'static [Group],
}

impl Catalogue {
    /// Every metric.
    pub fn metrics(&self) -> impl Iterator<Item = Described> {
        self.groups.iter().flat_map(Group::all)
    }

    /// The metrics that the recorder keeps.
    pub(super) fn recorded(&self) -> impl Iterator<Item = Described> {
        self.groups.iter().filter(|group| group.source == Source::Events).flat_map(Group::all)
    }

    /// The catalogue in Markdown.
    pub fn document(&self) -> String {
        let Program { name, noun, .. } = self.program;
        let mut text = format!(
            "# Metrics\n\nWhat a {noun} tells at `/metrics`, in Prometheus's text format. This file is printed by `{name} metrics`; a \
             test compares the two.\n\nLabel values come from closed lists: no name of an agent, tenant, queue or model reaches a \
             label.\n"
        );
        for group in self.groups {
            let (title, remark) = (group.title, group.remark);
            // Writing to a String cannot fail.
            let _ = write!(text, "\n## {title}\n\n{remark}\n\n| name | kind | meaning |\n|---|---|---|\n");
            for Described { name, kind, labels, values, help } in group.all() {
                let label = match (labels.first(), values) {
                    (None, _) => String::new(),
                    (Some(label), []) => format!("{{{label}}}"),
                    (Some(label), values) => format!("{{{label}={}}}", values.join(", ")),
                };
                let _ = writeln!(text, "| `{name}{label}` | {} | {help} |", kind.as_str());
            }
        }
        text
    }
}

impl Group {
    fn all(&self) -> impl Iterator<Item = Described> + use<> {
        self.metrics.iter().copied().flatten().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::SAMPLES;

    #[test]
    fn the_document_names_every_metric_with_its_values() {
        let text = SAMPLES.document();
        assert!(text.starts_with("# Metrics\n\nWhat a sample tells at `/metrics`"), "{text}");
        assert!(text.contains("This file is printed by `turnmill-sample metrics`"), "{text}");
        for line in [
            "## Work",
            "| `sample_build_info{version}` | gauge | Always 1. |",
            "| `sample_seconds` | histogram | How long it took. |",
            "| `turnmill_spans_dropped_total{reason=queue_full, export_failed}` | counter | Spans that were not exported, by reason. |",
            "## Process",
        ] {
            assert!(text.lines().any(|said| said == line), "{line} is missing in\n{text}");
        }
    }
}
