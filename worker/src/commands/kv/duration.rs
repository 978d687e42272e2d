//! How long, as people write it.

use std::time::Duration;

use jiff::{Span, SpanRelativeTo};

/// Reads `7d`, `12h`, `1h 30m`, `0s`. A day has 24 hours; months and years have no length.
pub fn parse(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is not a duration; give one as 7d, 12h, 1h 30m or 0s");
    let span: Span = text.parse().map_err(|_| invalid())?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| invalid())?;
    Duration::try_from(duration).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_or_refused() {
        let (minute, hour) = (60, 3600);
        for (text, seconds) in [
            ("7d", 7 * 24 * hour),
            ("12h", 12 * hour),
            ("1h 30m", hour + 30 * minute),
            ("0s", 0),
            ("1w", 168 * hour),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "7", "soon", "-1d", "2mo", "1y", "7d ago"] {
            let refused = parse(bad).expect_err(bad);
            assert!(refused.contains("give one as 7d"), "{refused}");
        }
    }
}
