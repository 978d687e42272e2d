//! Reads Redis again and again.
//!
//! Invariants: a reading costs a bounded amount whatever the queue holds: some twenty short commands, [`MAX_RUNNING`] turns,
//! [`MAX_DEAD`] letters and the ends since the reading before, [`ENDS_KEPT`] at most; workers are those that were heard of
//! lately. No KEYS, no SCAN. Readings never overlap, and each ends after a command's timeout at the latest.

use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use turnmill_client::ClientError;
use turnmill_client::operate::Operator;
use turnmill_client::operate::ends::NewestEnds;

use super::model::{ENDS_KEPT, MAX_DEAD, MAX_RUNNING, Part, Snapshot};

/// What a reading came to.
pub type Reading = Result<Snapshot, ClientError>;

/// Reads one snapshot after the other.
pub struct Reader {
    operator: Operator,
    ends: NewestEnds,
}

/// Reads every `interval`, and when somebody asks for it, until nobody takes what was read.
pub async fn run(operator: Operator, interval: Duration, refresh: &Notify, readings: mpsc::Sender<Reading>) {
    let mut reader = Reader::new(operator);
    while readings.send(reader.read().await).await.is_ok() {
        // Either is as good: it is time, or somebody changed something.
        let _ = tokio::time::timeout(interval, refresh.notified()).await;
    }
}

impl Reader {
    pub fn new(operator: Operator) -> Self {
        let ends = operator.newest_ends(ENDS_KEPT);
        Self { operator, ends }
    }

    /// Reads everything. Fails where Redis is away, or gave nothing at all.
    pub async fn read(&mut self) -> Reading {
        let Self { operator, ends } = self;
        let (lag, workers, running, newest, dead) = tokio::join!(
            operator.client().lag(),
            operator.workers(),
            operator.running(MAX_RUNNING),
            ends.read(),
            operator.newest_dead_letters(MAX_DEAD),
        );
        let mut troubles = Troubles::default();
        let snapshot = Snapshot {
            lag: troubles.part(lag),
            workers: troubles.part(workers),
            running: troubles.part(running),
            ends: troubles.part(newest),
            dead: troubles.part(dead),
        };
        let reading = troubles.judge(snapshot);
        if reading.is_err() {
            // The Redis that comes back may hold other ends: they are counted from the start.
            self.ends = self.operator.newest_ends(ENDS_KEPT);
        }
        reading
    }
}

/// What went wrong with parts of a reading.
#[derive(Default)]
struct Troubles {
    parts: usize,
    errors: Vec<ClientError>,
}

impl Troubles {
    fn part<T>(&mut self, read: Result<T, ClientError>) -> Part<T> {
        self.parts += 1;
        read.map_err(|error| {
            let why = error.to_string();
            self.errors.push(error);
            why
        })
    }

    /// A reading is none where Redis is away, or where every part failed.
    fn judge(self, snapshot: Snapshot) -> Reading {
        let Self { parts, mut errors } = self;
        let away = errors.iter().position(ClientError::is_outage);
        match away {
            Some(away) => Err(errors.swap_remove(away)),
            None if errors.len() == parts => Err(errors.swap_remove(0)),
            None => Ok(snapshot),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::samples::snapshot;
    use turnmill_client::Fault;

    use super::*;

    fn refused() -> Result<(), ClientError> {
        Err(Fault::Unsuitable("this user may not".to_owned()).into())
    }

    fn away() -> Result<(), ClientError> {
        Err(Fault::Unreachable { address: "h:1".to_owned(), reason: "refused".to_owned() }.into())
    }

    #[test]
    fn one_part_may_fail_and_the_rest_is_shown() {
        let mut troubles = Troubles::default();
        assert_eq!(troubles.part(Ok(())), Ok(()));
        assert_eq!(troubles.part(refused()), Err("this user may not".to_owned()));
        assert!(troubles.judge(snapshot()).is_ok());
    }

    #[test]
    fn a_redis_that_is_away_is_no_reading() {
        let mut troubles = Troubles::default();
        for part in [Ok(()), refused(), away()] {
            let _ = troubles.part(part);
        }
        assert!(troubles.judge(snapshot()).is_err_and(|error| error.is_outage()));
        let mut troubles = Troubles::default();
        let _ = troubles.part(refused());
        assert!(troubles.judge(snapshot()).is_err_and(|error| !error.is_outage()), "nothing was read");
    }
}
