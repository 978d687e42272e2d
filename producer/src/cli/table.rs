//! What people read: tables, times, ages.

use std::io::{Write, stdout};

use comfy_table::{Table, presets};
use jiff::Timestamp;

use super::Exit;
use super::terminal::for_stdout;

/// Prints rows under a header.
pub fn print_table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Result<(), Exit> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    rows.into_iter().for_each(|row| {
        table.add_row(row.iter().map(|cell| for_stdout(cell)));
    });
    Ok(writeln!(stdout(), "{}", table.trim_fmt())?)
}

/// Prints one thing: a name and a value a line, without those that have no value.
pub fn print_fields<'a>(fields: impl IntoIterator<Item = (&'a str, Option<String>)>) -> Result<(), Exit> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (name, value) in fields {
        if let Some(value) = value {
            table.add_row([format!("{name}:"), for_stdout(&value).into_owned()]);
        }
    }
    Ok(writeln!(stdout(), "{}", table.trim_fmt())?)
}

/// A duration, in the two units that say most.
pub fn age(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{:.1} s", ms as f64 / 1000.0),
        60..3600 => format!("{} m {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} m", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}

/// A moment, as RFC 3339 in UTC.
pub fn time(unix_ms: u64) -> String {
    let moment = i64::try_from(unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    moment.map_or_else(|| format!("{unix_ms} ms"), |moment| format!("{moment:.3}"))
}

/// A value, or a dash.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_times_read_well() {
        assert_eq!(age(2_340), "2.3 s");
        assert_eq!(age(61_000), "1 m 1 s");
        assert_eq!(age(7_260_000), "2 h 1 m");
        assert_eq!(age(90_000_000), "1 d 1 h");
        assert_eq!(time(1_700_000_000_250), "2023-11-14T22:13:20.250Z");
        assert_eq!(time(u64::MAX), format!("{} ms", u64::MAX));
    }
}
