//! Metrics: what a program counts, how it is recorded, and Prometheus's text format.
//!
//! Invariants: label values come from closed lists, so the number of series is fixed; a number that cannot be read is absent,
//! never 0.
//!
//! | file | owns |
//! |---|---|
//! | `catalogue` | every metric of a program by name, and its document |
//! | `recorder` | what events move |
//! | `exposition` | text for numbers that are read when somebody scrapes |
//! | `process` | memory, files and processor time |

mod catalogue;
pub mod exposition;
mod process;
mod recorder;

pub use catalogue::{Catalogue, Described, Group, Kind, Source};
pub use process::PROCESS;
pub(crate) use process::collect as collect_process;
pub use recorder::Recorded;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::program::tests::SAMPLE;
    use crate::traces;

    const WORK: &[Described] = &[
        Described { labels: &["version"], ..Described::gauge("sample_build_info", "Always 1.") },
        Described::gauge("sample_open", "What is open."),
        Described { kind: Kind::Counter, ..Described::gauge("sample_done_total", "What was done.") },
        Described {
            kind: Kind::Histogram(&[0.1, 1.0]),
            ..Described::gauge("sample_seconds", "How long it took.")
        },
    ];

    /// The metrics of a program that unit tests are about.
    pub const SAMPLES: Catalogue = Catalogue {
        program: SAMPLE,
        groups: &[
            Group {
                title: "Work",
                remark: "Its own.",
                source: Source::Events,
                metrics: &[WORK, traces::METRICS],
            },
            PROCESS,
        ],
    };

    /// What is recorded while `record` runs.
    pub fn recorded(record: impl FnOnce()) -> Recorded {
        SAMPLES.recorded_while(record)
    }
}
