//! One JSON object a line: when, how bad, whence, then the event's fields, then those of the spans it happened in.
//!
//! Invariants: all fields are at the top level, where collectors look for them; of equal names the innermost counts, so
//! that no key stands twice; a line is written in one call.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::io::Write as _;

use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// Keys that every line has.
const RESERVED: [&str; 3] = ["timestamp", "level", "target"];

/// Writes lines to `W`.
pub(super) struct JsonLines<W> {
    writer: W,
}

impl<W> JsonLines<W> {
    pub fn new(writer: W) -> Self {
        Self { writer }
    }
}

/// Fields with their values as JSON. Of a span: kept with it, so that a line copies them.
#[derive(Default)]
struct Fields(Vec<(&'static str, String)>);

impl<S, W> Layer<S> for JsonLines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, cx: Context<'_, S>) {
        let Some(span) = cx.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, cx: Context<'_, S>) {
        let Some(span) = cx.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, cx: Context<'_, S>) {
        thread_local! {
            static LINE: RefCell<String> = const { RefCell::new(String::new()) };
        }
        // Taken out while it is filled: writing a value may log in turn.
        let mut line = LINE.take();
        line.clear();
        compose(&mut line, event, &cx);
        // A log that cannot be written has nobody to tell.
        let _ = self.writer.make_writer_for(event.metadata()).write_all(line.as_bytes());
        LINE.set(line);
    }
}

fn compose<S>(line: &mut String, event: &Event<'_>, cx: &Context<'_, S>)
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let metadata = event.metadata();
    // Writing to a String cannot fail.
    let _ = write!(line, r#"{{"timestamp":"{:.6}","level":"{}""#, Timestamp::now(), metadata.level());
    let _ = write!(line, r#","target":{}"#, json(metadata.target()));
    let mut own = Fields::default();
    event.record(&mut own);
    let mut names = RESERVED.to_vec();
    own.add_to(line, &mut names);
    for span in cx.event_scope(event).into_iter().flatten() {
        if let Some(fields) = span.extensions().get::<Fields>() {
            fields.add_to(line, &mut names);
        }
    }
    line.push_str("}\n");
}

impl Fields {
    /// Writes those whose names are new, and notes their names.
    fn add_to(&self, line: &mut String, names: &mut Vec<&'static str>) {
        for (name, value) in &self.0 {
            if !names.contains(name) {
                names.push(name);
                let _ = write!(line, ",\"{name}\":{value}");
            }
        }
    }

    fn set(&mut self, field: &Field, value: String) {
        let name = field.name();
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, json(&format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, json(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.to_string());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has neither NaN nor infinities; they become null.
        self.set(field, serde_json::Value::from(value).to_string());
    }
}

/// A text as JSON.
fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use tracing::{error_span, field, info};

    use super::super::tests::written;
    use crate::logs::LogFormat;

    #[test]
    fn values_keep_their_kinds_and_texts_are_escaped() {
        let lines = written(LogFormat::Json, "info", false, |_| {
            let odd = "a \"b\"\n\u{1b}ü";
            info!(count = 3u64, below = -1, share = 0.5, odd, nan = f64::NAN, yes = true, kind = ?Some(1), "done");
        });
        let [line] = &lines.json()[..] else { panic!("one line: {}", lines.text()) };
        let kinds =
            [&line["count"], &line["below"], &line["share"], &line["nan"], &line["yes"], &line["kind"]];
        let wanted: [serde_json::Value; 6] =
            [3.into(), (-1).into(), 0.5.into(), ().into(), true.into(), "Some(1)".into()];
        assert_eq!(kinds, wanted.each_ref());
        assert_eq!((&line["odd"], &line["message"]), (&"a \"b\"\n\u{1b}ü".into(), &"done".into()));
        assert_eq!((&line["level"], &line["target"]), (&"INFO".into(), &module_path!().into()));
        let at = line["timestamp"].as_str().expect("text");
        assert!(at.len() == 27 && at.ends_with('Z'), "a time in microseconds: {at}");
    }

    #[test]
    fn the_innermost_of_equal_names_counts_and_none_stands_twice() {
        let lines = written(LogFormat::Json, "info", false, |_| {
            let outer = error_span!("turn", turn = "outer", agent = "a", late = field::Empty);
            let _outer = outer.enter();
            let _inner = error_span!("turn", turn = "inner").entered();
            outer.record("late", 1);
            outer.record("late", 2);
            info!(agent = "b", level = "mine", "said");
        });
        let text = lines.text();
        let line = &lines.json()[0];
        assert_eq!(
            [&line["turn"], &line["agent"]],
            [&"inner", &"b"].map(|text| serde_json::Value::from(*text)).each_ref()
        );
        assert_eq!((&line["late"], &line["level"]), (&2.into(), &"INFO".into()));
        for key in ["turn", "agent", "late", "level"] {
            assert_eq!(text.matches(&format!("\"{key}\":")).count(), 1, "{text}");
        }
    }
}
