//! The process as the system sees it, under the names every Prometheus client uses. Linux only.

#[cfg(target_os = "linux")]
use metrics_process::Collector;

use super::{Described, Group, Kind, Source};

const METRICS: &[Described] = &[
    Described {
        kind: Kind::Counter,
        ..Described::gauge("process_cpu_seconds_total", "Seconds of processor time that the process used.")
    },
    Described::gauge("process_start_time_seconds", "When the process started, in seconds since 1970."),
    Described::gauge("process_resident_memory_bytes", "Memory that the process has in RAM."),
    Described::gauge("process_virtual_memory_bytes", "Address space that the process has."),
    Described::gauge(
        "process_virtual_memory_max_bytes",
        "Address space that it may have; absent if there is no limit.",
    ),
    Described::gauge("process_open_fds", "Files and sockets that the process has open."),
    Described::gauge("process_max_fds", "Files and sockets that it may have open."),
    Described::gauge("process_threads", "Threads of the process."),
];

/// The group of a program's catalogue.
pub const PROCESS: Group = Group {
    title: "Process",
    remark: "The names every Prometheus client uses. Read from the system at each scrape, on Linux; elsewhere they are absent.",
    source: Source::Scrape,
    metrics: &[METRICS],
};

/// Gives the recorder their help.
pub(super) fn describe() {
    #[cfg(target_os = "linux")]
    Collector::default().describe();
}

/// Reads what the system says now into the recorder.
pub(crate) fn collect() {
    #[cfg(target_os = "linux")]
    Collector::default().collect();
}
