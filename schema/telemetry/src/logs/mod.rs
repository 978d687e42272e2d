//! Log lines: text for people on a terminal, JSON for programs otherwise. They go to standard error, because
//! standard output belongs to what a command prints.
//!
//! Invariants: a line that is written in a span of ours at error carries the span's fields, whatever the filter says; in JSON all
//! fields are at the top level.
//!
//! | file | owns |
//! |---|---|
//! | `form` | the settings: format and filter |
//! | `json` | lines as JSON |
//! | `owners` | which spans are looked at whatever the filter says |
//! | `last_words` | why a process ends, and panics |

mod form;
mod json;
mod last_words;
mod owners;

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::Subscriber;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, fmt as text, reload};

pub use self::form::{InvalidFilter, LogFilter, LogFormat};
use self::json::JsonLines;
pub use self::last_words::fatal;
use self::owners::AlwaysOwners;
use crate::{Program, TelemetryError};

/// Puts another filter in force.
type Reload = Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

/// The filter in force, and the right to change it. Clones are the same.
#[derive(Clone)]
pub struct LogControl {
    filter: Arc<Mutex<LogFilter>>,
    reload: Reload,
}

impl LogControl {
    /// The filter in force.
    pub fn filter(&self) -> LogFilter {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts `filter` in force, until the next change or the process's end.
    ///
    /// # Errors
    /// The process is ending, and its log with it.
    pub fn set(&self, filter: LogFilter) -> Result<(), TelemetryError> {
        let mut now = self.filter.lock().unwrap_or_else(PoisonError::into_inner);
        (self.reload)(filter.to_filter())?;
        *now = filter;
        Ok(())
    }
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogControl").field("filter", &self.filter()).finish_non_exhaustive()
    }
}

/// Sends this process's log lines to standard error from now on. Once a process.
///
/// # Errors
/// There is a log already.
pub fn init(program: Program, format: LogFormat, filter: &LogFilter) -> Result<LogControl, TelemetryError> {
    let terminal = io::stderr().is_terminal();
    let (subscriber, control) = subscriber(format, filter, terminal, io::stderr);
    subscriber.try_init()?;
    if is_json(format, terminal) {
        last_words::tell_panics(program);
    }
    Ok(control)
}

/// Whether log lines of this process are JSON.
pub fn writes_json(format: LogFormat) -> bool {
    is_json(format, io::stderr().is_terminal())
}

fn is_json(format: LogFormat, terminal: bool) -> bool {
    match format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    }
}

/// A subscriber that writes to `writer`, and its control. `terminal`: whether people look.
pub(crate) fn subscriber<W>(
    format: LogFormat,
    filter: &LogFilter,
    terminal: bool,
    writer: W,
) -> (Box<dyn Subscriber + Send + Sync>, LogControl)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (reloadable, handle) = reload::Layer::<EnvFilter, Registry>::new(filter.to_filter());
    let control = LogControl {
        filter: Arc::new(Mutex::new(filter.clone())),
        reload: Arc::new(move |filter| handle.reload(filter)),
    };
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match is_json(format, terminal) {
        true => JsonLines::new(writer).boxed(),
        false => text::layer().with_ansi(terminal).with_writer(writer).boxed(),
    };
    let subscriber = Registry::default().with(lines.with_filter(AlwaysOwners(reloadable)));
    (Box::new(subscriber), control)
}

#[cfg(test)]
pub(crate) mod tests {
    use tracing::{debug, error_span, info};

    use super::*;

    /// What was written.
    #[derive(Clone, Default)]
    pub struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no test panics while it writes").write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        pub fn text(&self) -> String {
            let bytes = self.0.lock().expect("no test panics while it writes").clone();
            String::from_utf8(bytes).expect("text")
        }

        pub fn json(&self) -> Vec<serde_json::Value> {
            self.text().lines().map(|line| serde_json::from_str(line).expect(line)).collect()
        }
    }

    /// What `log` writes.
    pub fn written(format: LogFormat, filter: &str, terminal: bool, log: impl FnOnce(&LogControl)) -> Lines {
        let lines = Lines::default();
        let writer = lines.clone();
        let filter = filter.parse().expect("a valid filter");
        let (subscriber, control) = subscriber(format, &filter, terminal, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || log(&control));
        lines
    }

    fn logged(format: LogFormat, filter: &str, terminal: bool) -> String {
        let log = |_: &LogControl| {
            info!(turn = 7, "claimed");
            debug!("detail");
        };
        written(format, filter, terminal, log).text()
    }

    #[test]
    fn auto_is_json_unless_a_terminal_looks() {
        let line: serde_json::Value =
            serde_json::from_str(&logged(LogFormat::Auto, "info", false)).expect("JSON");
        assert_eq!((&line["message"], &line["turn"]), (&"claimed".into(), &7.into()));
        let text = logged(LogFormat::Auto, "info", true);
        assert!(text.contains("claimed") && !text.starts_with('{'), "{text}");
    }

    #[test]
    fn a_named_format_and_the_filter_hold_everywhere() {
        assert!(logged(LogFormat::Json, "info", true).starts_with('{'));
        let text = logged(LogFormat::Text, "turnmill_telemetry=debug", false);
        assert!(text.contains("turn=7") && !text.contains('\u{1b}'), "no colours in files: {text}");
        assert_eq!(text.lines().count(), 2);
        assert_eq!(logged(LogFormat::Text, "warn", false), "");
    }

    #[test]
    fn a_turns_fields_are_on_its_lines_at_any_level() {
        for (filter, lines) in [("error", 1), ("warn", 2), ("trace", 3)] {
            let written = written(LogFormat::Json, filter, false, |_| {
                let span = error_span!("turn", turn = "t", agent = "a", tenant = "x", request_id = "r");
                span.in_scope(|| {
                    tracing::error!("one");
                    tracing::warn!("two");
                    tracing::trace!("three");
                });
            });
            assert_eq!(written.json().len(), lines);
            for line in written.json() {
                for (field, value) in [("turn", "t"), ("agent", "a"), ("tenant", "x"), ("request_id", "r")] {
                    assert_eq!(line[field], value, "{line}");
                }
            }
        }
    }

    #[test]
    fn a_filter_that_hides_the_owners_span_leaves_its_fields() {
        let lines = written(LogFormat::Json, "elsewhere=info", false, |_| {
            let owner = error_span!("turn", turn = "t");
            let foreign = error_span!(target: "hyper", "connection", peer = "p");
            foreign.in_scope(|| owner.in_scope(|| info!(target: "elsewhere", "said")));
        });
        let lines = lines.json();
        assert_eq!((lines.len(), &lines[0]["turn"], lines[0].get("peer")), (1, &"t".into(), None));
    }

    #[test]
    fn the_filter_can_be_changed_while_lines_are_written() {
        let written = written(LogFormat::Json, "off", false, |control| {
            let span = error_span!("turn", turn = "t");
            span.in_scope(|| debug!("unheard"));
            control.set("turnmill_telemetry=debug".parse().expect("a filter")).expect("set");
            assert_eq!(control.filter().as_str(), "turnmill_telemetry=debug");
            span.in_scope(|| debug!("heard"));
            control.set("off".parse().expect("a filter")).expect("set");
            tracing::error!("silenced");
        });
        let lines = written.json();
        assert_eq!((lines.len(), &lines[0]["message"], &lines[0]["turn"]), (1, &"heard".into(), &"t".into()));
    }
}
