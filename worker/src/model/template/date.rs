//! The date as templates write it: Python's `strftime`.

use jiff::fmt::strtime::{BrokenDownTime, Config, PosixCustom};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use minijinja::{Error, ErrorKind};

/// A time, in milliseconds since 1970, as `format` says, in UTC, with Python's directives in the C locale. Unknown directives are
/// written as they are, as Python does.
pub(super) fn strftime(ms: u64, format: &str) -> Result<String, Error> {
    let wrong = |e: jiff::Error| Error::new(ErrorKind::InvalidOperation, e.to_string());
    let moment = i64::try_from(ms).map(Timestamp::from_millisecond);
    let moment =
        moment.map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))?.map_err(wrong)?;
    let time = BrokenDownTime::from(&Zoned::new(moment, TimeZone::UTC));
    let config = Config::new().custom(PosixCustom::new()).lenient(true);
    time.to_string_with_config(&config, format).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_python_writes_them() {
        // 2026-03-07 05:09:01 UTC, a Saturday; what Python 3.11 says on Linux.
        let ms = 1_772_860_141_000;
        for (format, expected) in [
            ("%Y-%m-%d", "2026-03-07"),
            ("%d %b %Y", "07 Mar 2026"),
            ("%B %d, %Y", "March 07, 2026"),
            ("%A, %-d %B %Y", "Saturday, 7 March 2026"),
            ("%a %e %y %j", "Sat  7 26 066"),
            ("%H:%M:%S %I %p", "05:09:01 05 AM"),
            ("%c", "Sat Mar  7 05:09:01 2026"),
            ("%x %X %D %F %T", "03/07/26 05:09:01 03/07/26 2026-03-07 05:09:01"),
            ("100%% é", "100% é"),
            ("", ""),
        ] {
            assert_eq!(strftime(ms, format).expect("a date"), expected, "{format}");
        }
        assert_eq!(strftime(ms, "%K").expect("kept"), "%K");
        assert!(strftime(u64::MAX, "%Y").is_err());
    }
}
