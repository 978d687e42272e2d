//! What must be told although no event tells it: why a program ends, and panics.
//!
//! Invariants: where log lines are JSON, these are too; no filter hides them; they need neither settings nor a subscriber,
//! because settings may be what is wrong.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Display;
use std::io::{self, Write as _};
use std::panic::PanicHookInfo;

use jiff::Timestamp;
use serde_json::Value;

use crate::Program;

/// Says on standard error why the program ends, as the last of its log lines in JSON.
pub fn fatal(program: &Program, error: &dyn Display) {
    let message = format!("the {} ends with an error", program.noun);
    write(&line(program, &message, &[("error", error)]));
}

/// From now on, panics are told in JSON.
pub(super) fn tell_panics(program: Program) {
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        write(&panicked(&program, panic, thread.name().unwrap_or("unnamed"), &Backtrace::capture()));
    }));
}

fn panicked(program: &Program, panic: &PanicHookInfo<'_>, thread: &str, backtrace: &Backtrace) -> String {
    let reason = panic.payload_as_str().unwrap_or("a value that is no text");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let mut fields: Vec<(&str, &dyn Display)> =
        vec![("thread", &thread), ("location", &location), ("reason", &reason)];
    if backtrace.status() == BacktraceStatus::Captured {
        fields.push(("backtrace", backtrace));
    }
    line(program, "a thread panicked", &fields)
}

/// A line as the log's others.
fn line(program: &Program, message: &str, fields: &[(&str, &dyn Display)]) -> String {
    let mut line = format!(r#"{{"timestamp":"{:.6}","level":"ERROR""#, Timestamp::now());
    let own: [(&str, &dyn Display); 2] = [("target", &program.target()), ("message", &message)];
    for (name, value) in own.iter().chain(fields) {
        line += &format!(",\"{name}\":{}", Value::from(value.to_string()));
    }
    line + "}\n"
}

/// In one call, so that lines of other threads do not come between.
fn write(text: &str) {
    // A log that cannot be written has nobody to tell.
    let _ = io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::tests::SAMPLE;

    #[test]
    fn a_line_is_one_json_object_whatever_is_told() {
        let odd = "line 1 \"quoted\"\nline 2\u{7}";
        let text = line(&SAMPLE, "said", &[("error", &odd)]);
        assert_eq!(text.lines().count(), 1);
        let line: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            [&line["level"], &line["target"], &line["message"], &line["error"]],
            ["ERROR", "turnmill_sample", "said", odd].map(Value::from).each_ref()
        );
        assert_eq!(line["timestamp"].as_str().map(str::len), Some(27));
    }
}
