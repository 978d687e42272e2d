//! Texts and numbers as they are shown.

use ratatui::buffer::Buffer;
use ratatui::text::Span;

pub use crate::text::age;

/// What is shown for a number that cannot be read.
pub const UNKNOWN: &str = "unknown";

/// A value, where it is known.
pub fn known(value: Option<impl ToString>) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), |value| value.to_string())
}

/// Something a second, where it is known.
pub fn rate(rate: Option<f64>) -> String {
    known(rate.map(|rate| format!("{rate:.1}")))
}

/// A share, where it is known.
pub fn percent(share: Option<f64>) -> String {
    known(share.map(|share| format!("{:.1} %", share * 100.0)))
}

/// Columns that a text takes.
pub fn width(text: &str) -> u16 {
    Span::raw(text).width().try_into().unwrap_or(u16::MAX)
}

/// The text, or as much of it as fits and a mark that there is more.
pub fn fit(text: &str, columns: u16) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut kept = String::new();
    for character in text.chars() {
        kept.push(character);
        if width(&kept) >= columns {
            kept.pop();
            break;
        }
    }
    if columns > 0 {
        kept.push('…');
    }
    kept
}

/// The end of a text, with a mark that there is more before it.
pub fn end_of(text: &str, columns: u16) -> String {
    let length = text.chars().count();
    if length <= usize::from(columns) {
        return text.to_owned();
    }
    let skipped = length - usize::from(columns.saturating_sub(1));
    std::iter::once('…').chain(text.chars().skip(skipped)).collect()
}

/// A buffer's lines, without blanks at their ends.
pub fn lines(buffer: &Buffer) -> Vec<String> {
    let area = buffer.area;
    let line = |y| (area.left()..area.right()).map(|x| symbol(buffer, x, y)).collect::<String>();
    (area.top()..area.bottom()).map(|y| line(y).trim_end().to_owned()).collect()
}

/// What stands in a cell. The cell behind a wide character holds nothing of its own.
fn symbol(buffer: &Buffer, x: u16, y: u16) -> &str {
    let wide_before = x > buffer.area.left() && width(buffer[(x - 1, y)].symbol()) > 1;
    if wide_before { "" } else { buffer[(x, y)].symbol() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_says_so() {
        assert_eq!(fit("planner", 7), "planner");
        assert_eq!(fit("planner", 6), "plann…");
        assert_eq!(fit("planner", 1), "…");
        assert_eq!(fit("planner", 0), "");
        assert_eq!(fit("水車小屋", 5), "水車…", "wide characters are not halved");
        assert_eq!(end_of("01980000.0", 5), "…00.0");
        assert_eq!(end_of("a.0", 5), "a.0");
    }

    #[test]
    fn unknown_is_no_number() {
        assert_eq!(
            (rate(None), percent(None), known(None::<u64>)),
            ("unknown".into(), "unknown".into(), "unknown".into())
        );
        assert_eq!(
            (rate(Some(0.0)), percent(Some(0.631)), known(Some(0))),
            ("0.0".into(), "63.1 %".into(), "0".into())
        );
    }
}
