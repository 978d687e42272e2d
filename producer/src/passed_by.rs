//! Entries of streams that are not ours. Anybody may write there by mistake, and so may a newer version: such an entry is told,
//! counted and passed by.

use std::fmt::Display;

use turnmill_redis::{Entry, Found};
use turnmill_schema::{StreamId, TurnId};

/// Counts the entries that one reader could not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PassedBy {
    /// What the entries should have been.
    what: &'static str,
    turn: Option<TurnId>,
    count: u64,
}

impl PassedBy {
    /// Of a turn's result. If an entry held tokens, the next delta or the End shows the gap.
    pub(crate) fn of_turn(turn: TurnId) -> Self {
        Self { what: "an entry of a result", turn: Some(turn), count: 0 }
    }

    /// Of the stream of events.
    pub(crate) fn of_events() -> Self {
        Self { what: "an end", turn: None, count: 0 }
    }

    /// Of the stream of dead letters.
    pub(crate) fn of_dead_letters() -> Self {
        Self { what: "a dead letter", turn: None, count: 0 }
    }

    /// Counts one, and says so.
    pub(crate) fn note(&mut self, entry: StreamId, reason: &dyn Display) {
        self.count += 1;
        let (what, passed_by) = (self.what, self.count);
        let turn = self.turn.map(tracing::field::display);
        tracing::warn!(turn, %entry, %reason, passed_by, "{what} is not of this version; it is passed over");
    }

    /// What an entry holds; none if that is not ours, or was trimmed.
    pub(crate) fn ours<T>(&mut self, Entry { id, found }: Entry<T>) -> Option<(StreamId, T)> {
        match found {
            Found::Ours(record) => Some((id, record)),
            Found::Trimmed => None,
            Found::Foreign(reason) => {
                self.note(id, &reason);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged of entries that hold `found`, and which were ours.
    fn read(passed_by: &mut PassedBy, found: Vec<Found<u8>>) -> (String, Vec<u8>) {
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let entry = |found| Entry { id: StreamId { epoch: 7, sequence: 1 }, found };
        let ours = tracing::subscriber::with_default(subscriber, || {
            found
                .into_iter()
                .filter_map(|found| passed_by.ours(entry(found)))
                .map(|(_, record)| record)
                .collect()
        });
        let log = log.0.lock().expect("no panic").clone();
        (String::from_utf8(log).expect("a text"), ours)
    }

    #[test]
    fn what_is_not_ours_is_told_and_counted() {
        let turn = TurnId::new(0);
        for (mut passed_by, says) in [
            (PassedBy::of_events(), "an end is not of this version".to_owned()),
            (PassedBy::of_dead_letters(), "a dead letter is not of this version".to_owned()),
            (PassedBy::of_turn(turn), format!("turn={turn}")),
        ] {
            let foreign = || Found::Foreign("no turn".to_owned());
            let (log, ours) =
                read(&mut passed_by, vec![Found::Ours(1), foreign(), Found::Trimmed, Found::Ours(2)]);
            assert_eq!((ours, log.lines().count()), (vec![1, 2], 1), "{log}");
            for part in [&*says, "WARN", "entry=7-1", "reason=no turn", "passed_by=1"] {
                assert!(log.contains(part), "{part}: {log}");
            }
            let (log, _) = read(&mut passed_by, vec![foreign(), foreign()]);
            assert!(log.contains("passed_by=2") && log.contains("passed_by=3"), "{log}");
        }
    }
}
