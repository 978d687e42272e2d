//! What people read: tables, fields, times.

use std::io::{Write, stdout};

use comfy_table::{Table, presets};
use jiff::Timestamp;

use crate::exit::Exit;
use crate::text::for_stdout;

/// Prints rows under a header.
pub fn print_table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Result<(), Exit> {
    Ok(writeln!(stdout(), "{}", table(header, rows))?)
}

/// Rows under a header, without a line end after the last one.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    rows.into_iter().for_each(|row| {
        table.add_row(row.iter().map(|cell| for_stdout(cell)));
    });
    table.trim_fmt()
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
    fn times_read_well() {
        assert_eq!(time(1_700_000_000_250), "2023-11-14T22:13:20.250Z");
        assert_eq!(time(u64::MAX), format!("{} ms", u64::MAX));
    }
}
