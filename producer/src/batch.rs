//! What became of turns that were to be enqueued.

use turnmill_redis::Advice;
use turnmill_schema::TurnId;

use crate::error::ClientError;

/// A turn in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Enqueued {
    /// Its id: that of the turn given, or of an earlier one with the same idempotency key.
    pub turn: TurnId,
    /// It is the turn given. False: an earlier turn has its idempotency key, and nothing new was enqueued.
    pub fresh: bool,
}

/// What became of a turn in a call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It is in the queue.
    Enqueued(Enqueued),
    /// Redis did not say. Enqueueing the prepared turn again, with the same id, is safe; so is enqueueing a turn again that has an
    /// idempotency key.
    Unknown,
    /// It is not in the queue.
    NotEnqueued,
}

impl Fate {
    /// The turn in the queue, if it is there for certain.
    pub fn enqueued(&self) -> Option<Enqueued> {
        match self {
            Self::Enqueued(enqueued) => Some(*enqueued),
            Self::Unknown | Self::NotEnqueued => None,
        }
    }
}

/// A call that enqueues several turns failed. It says what became of each.
#[derive(Debug, thiserror::Error)]
#[error("{}{source}", self.prefix())]
#[non_exhaustive]
pub struct BatchError {
    /// What became of each turn, in the order given.
    pub fates: Vec<Fate>,
    /// Whose fault it is: the place of a turn, from 0. None: not that of a single turn.
    pub place: Option<usize>,
    /// Why not all of them are in the queue.
    pub source: Box<ClientError>,
}

impl BatchError {
    pub(crate) fn new(fates: Vec<Fate>, place: Option<usize>, source: ClientError) -> Self {
        Self { fates, place, source: Box::new(source) }
    }

    /// How many turns had which fate: `200 of 450 turns are in the queue; the others are not`.
    pub fn summary(&self) -> String {
        let count = |of: fn(&Fate) -> bool| self.fates.iter().filter(|fate| of(fate)).count();
        let enqueued = count(|fate| matches!(fate, Fate::Enqueued(_)));
        let unknown = match count(|fate| *fate == Fate::Unknown) {
            0 => String::new(),
            unknown => format!(", {unknown} may be"),
        };
        let others = match count(|fate| *fate == Fate::NotEnqueued) {
            0 => "",
            _ => "; the others are not",
        };
        format!("{enqueued} of {} turns are in the queue{unknown}{others}", self.fates.len())
    }

    /// What stands before the reason. If no turn is in the queue, the reason says enough.
    fn prefix(&self) -> String {
        let summary = match self.fates.iter().all(|fate| *fate == Fate::NotEnqueued) {
            true => String::new(),
            false => format!("{}: ", self.summary()),
        };
        match self.place {
            Some(place) => format!("{summary}turn {} of {}: ", place + 1, self.fates.len()),
            None => summary,
        }
    }

    /// Retry, reject or stop. Enqueueing again needs an idempotency key, or prepared turns, to be safe.
    pub fn advice(&self) -> Advice {
        self.source.advice()
    }

    /// Whether Redis is away, or is not the queue's now: every call is told the same.
    pub fn is_outage(&self) -> bool {
        self.source.is_outage()
    }

    /// The error of a call for one turn.
    pub(crate) fn of_one(self, turn: TurnId) -> ClientError {
        match self.fates.first() {
            Some(Fate::Unknown) => ClientError::Unsure { turn, source: self.source },
            _ => *self.source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_counts_the_fates_unless_no_turn_is_in_the_queue() {
        let turn = TurnId::new(0);
        let enqueued = Fate::Enqueued(Enqueued { turn, fresh: true });
        for (fates, place, said) in [
            (vec![Fate::NotEnqueued; 2], None, "the reason"),
            (vec![Fate::NotEnqueued; 2], Some(1), "turn 2 of 2: the reason"),
            (
                vec![enqueued, Fate::NotEnqueued],
                None,
                "1 of 2 turns are in the queue; the others are not: the reason",
            ),
            (
                vec![enqueued, Fate::NotEnqueued],
                Some(1),
                "1 of 2 turns are in the queue; the others are not: turn 2 of 2: the reason",
            ),
            (vec![enqueued, Fate::Unknown], None, "1 of 2 turns are in the queue, 1 may be: the reason"),
            (vec![Fate::Unknown], None, "0 of 1 turns are in the queue, 1 may be: the reason"),
        ] {
            let error = BatchError::new(fates, place, ClientError::InvalidUrl("the reason".to_owned()));
            assert_eq!(error.to_string(), said);
        }
    }

    #[test]
    fn one_turn_that_may_be_in_the_queue_is_named() {
        let turn = TurnId::new(0);
        let error =
            |fate| BatchError::new(vec![fate], None, ClientError::InvalidUrl("the reason".to_owned()));
        assert!(matches!(error(Fate::NotEnqueued).of_one(turn), ClientError::InvalidUrl(_)));
        let unsure = error(Fate::Unknown).of_one(turn);
        assert_eq!(unsure.to_string(), format!("turn {turn} may be in the queue: the reason"));
    }
}
