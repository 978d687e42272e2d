//! How commands print.
//!
//! Invariants: a reader that goes away is no reason to panic, and none to end work half-way. What nobody reads is dropped,
//! and the exit status is that of the work. An output that cannot be written for another reason, such as a full disk, ends
//! the command with a sentence and exit status 1.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write as _};

/// As the standard library's, which panics if the output is closed.
macro_rules! print {
    ($($text:tt)*) => { $crate::output::out(format_args!($($text)*)) };
}

/// As the standard library's, which panics if the output is closed.
macro_rules! println {
    ($($text:tt)*) => { $crate::output::out(format_args!("{}\n", format_args!($($text)*))) };
}

/// As the standard library's, which panics if standard error is closed.
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::output::err(format_args!($($text)*)) };
}

/// Writes to standard output.
pub fn out(text: Arguments<'_>) {
    let mut stdout = io::stdout().lock();
    match stdout.write_fmt(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            err(format_args!("turnmill-worker: the output cannot be written: {error}"));
            std::process::exit(1);
        }
        _ => {}
    }
}

/// Writes a line to standard error. A failure has nobody to tell.
pub fn err(text: Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{text}");
}
