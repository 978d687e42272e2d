//! What a worker says of itself in the queue's registry.

use std::collections::HashMap;

/// A worker as the registry shows it; a hash of texts, so that any Redis client can read it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerStatus {
    /// Its name, as results give it.
    pub name: String,
    /// `starting`, `ready`, `failing` (turns fail there that others complete), `draining` or `stopped`.
    pub state: String,
    /// Its model's name.
    pub model: String,
    /// Its version.
    pub version: String,
    /// When it started, in Unix milliseconds by its own clock.
    pub started_ms: u64,
    /// Turns that it runs.
    pub running: u64,
    /// Turns that it may run at once.
    pub capacity: u64,
    /// Free share of its block pool, in percent.
    pub headroom_percent: u64,
    /// How often it says so, in milliseconds; 0: it does not tell.
    pub beat_ms: u64,
}

impl WorkerStatus {
    /// Whether a worker that was last heard of this many milliseconds ago has missed two of its beats.
    pub fn is_silent(&self, heard_ms: u64) -> bool {
        self.beat_ms > 0 && heard_ms > self.beat_ms.saturating_mul(5) / 2
    }

    /// Fields of the worker's hash.
    pub fn to_fields(&self) -> [(&'static str, String); 9] {
        [
            ("name", self.name.clone()),
            ("state", self.state.clone()),
            ("model", self.model.clone()),
            ("version", self.version.clone()),
            ("started_ms", self.started_ms.to_string()),
            ("running", self.running.to_string()),
            ("capacity", self.capacity.to_string()),
            ("headroom_percent", self.headroom_percent.to_string()),
            ("beat_ms", self.beat_ms.to_string()),
        ]
    }

    /// Reads a worker's hash. What is missing is empty or 0: an older worker says less.
    pub fn from_fields(fields: &HashMap<String, String>) -> Self {
        let text = |name| fields.get(name).cloned().unwrap_or_default();
        let number = |name| fields.get(name).and_then(|text| text.parse().ok()).unwrap_or(0);
        Self {
            name: text("name"),
            state: text("state"),
            model: text("model"),
            version: text("version"),
            started_ms: number("started_ms"),
            running: number("running"),
            capacity: number("capacity"),
            headroom_percent: number("headroom_percent"),
            beat_ms: number("beat_ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_they_were_written() {
        let status = WorkerStatus {
            name: "w".into(),
            state: "ready".into(),
            model: "m".into(),
            version: "1".into(),
            started_ms: 1,
            running: 2,
            capacity: 3,
            headroom_percent: 4,
            beat_ms: 5,
        };
        let fields = status.to_fields().map(|(name, value)| (name.to_owned(), value));
        assert_eq!(WorkerStatus::from_fields(&fields.into()), status);
        assert_eq!(WorkerStatus::from_fields(&HashMap::new()), WorkerStatus::default());
    }

    #[test]
    fn who_misses_two_beats_is_silent() {
        let status = WorkerStatus { beat_ms: 1000, ..WorkerStatus::default() };
        for (heard_ms, is_silent) in
            [(0, false), (2000, false), (2500, false), (2501, true), (u64::MAX, true)]
        {
            assert_eq!(status.is_silent(heard_ms), is_silent, "{heard_ms}");
        }
        assert!(!WorkerStatus::default().is_silent(u64::MAX), "an older worker does not tell its beat");
    }
}
