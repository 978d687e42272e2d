//! Log lines: text for people on a terminal, JSON for programs otherwise. They go to standard error, because
//! standard output belongs to what a command prints.

use std::io::{self, IsTerminal as _};

use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::ObserveError;
use crate::config::{LogFilter, LogFormat};

/// Sends this process's log lines to standard error from now on. Once a process.
pub fn init(format: LogFormat, filter: &LogFilter) -> Result<(), ObserveError> {
    let terminal = io::stderr().is_terminal();
    Ok(subscriber(format, filter, terminal, io::stderr).try_init()?)
}

fn subscriber<W>(
    format: LogFormat,
    filter: &LogFilter,
    terminal: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter.to_filter()).with_writer(writer);
    let json = match format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    if json {
        // Fields at the top level: that is where log collectors look for them.
        Box::new(builder.json().flatten_event(true).with_current_span(true).with_span_list(false).finish())
    } else {
        Box::new(builder.with_ansi(terminal).finish())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no test panics while it writes").write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, filter: &str, terminal: bool) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let filter = filter.parse().expect("a valid filter");
        tracing::subscriber::with_default(
            subscriber(format, &filter, terminal, move || writer.clone()),
            || {
                tracing::info!(turn = 7, "claimed");
                tracing::debug!("detail");
            },
        );
        let bytes = lines.0.lock().expect("no test panics while it writes").clone();
        String::from_utf8(bytes).expect("text")
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
        let text = logged(LogFormat::Text, "turnmill_worker=debug", false);
        assert!(text.contains("turn=7") && !text.contains('\u{1b}'), "no colours in files: {text}");
        assert_eq!(text.lines().count(), 2);
        assert_eq!(logged(LogFormat::Text, "warn", false), "");
    }
}
