//! Enqueueing: check everything, store what is too large for Redis, then script calls for many turns each.

use turnmill_redis::Advice;
use turnmill_redis::steps::{self, DepthLimits, Enqueue, EnqueueTurn};
use turnmill_schema::TurnId;
use turnmill_schema::keys::Keys;

use crate::batch::{BatchError, Enqueued, Fate};
use crate::client::Client;
use crate::connection::Tried;
use crate::error::ClientError;
use crate::new_turn::NewTurn;
use crate::pieces::{Bounds, pieces};
use crate::prepared::PreparedTurn;

/// Turns in one script call at most: enough to make the round trip cheap, few enough that the call is short.
pub const BATCH_TURNS: usize = 200;
/// Bytes of turns in one script call at most. Redis serves nobody else during a call, and copies about half a megabyte in a
/// millisecond.
pub const BATCH_BYTES: usize = 1 << 20;

const BATCH: Bounds = Bounds { items: BATCH_TURNS, weight: BATCH_BYTES };

/// Turns of one call are not in the queue, as far as that is known.
struct Refused {
    error: ClientError,
    /// The turn whose fault it is. Those before it have no such fault.
    place: Option<usize>,
    /// What became of them.
    fate: Fate,
}

impl Client {
    /// Enqueues one turn.
    ///
    /// If the error is [`ClientError::Unsure`], the turn may be in the queue; calling this again is safe only for a turn with an
    /// idempotency key.
    pub async fn enqueue(&self, turn: NewTurn) -> Result<Enqueued, ClientError> {
        let turn = self.prepare(turn);
        let id = turn.id();
        match self.enqueue_new(vec![turn]).await {
            Ok(enqueued) => Ok(enqueued.first().copied().unwrap_or(Enqueued { turn: id, fresh: true })),
            Err(error) => Err(error.of_one(id)),
        }
    }

    /// Enqueues turns; what became of each, in the order given. Turns of one agent run in that order.
    ///
    /// Nothing is written if one of them is invalid. One call to Redis takes at most [`BATCH_TURNS`] turns, of at most
    /// [`BATCH_BYTES`] together, and enqueues all of them or none. If a later call fails, the earlier ones stand; the error says
    /// what became of each turn. To repeat the call without enqueueing turns twice, use [`Client::enqueue_prepared`].
    pub async fn enqueue_batch(&self, turns: Vec<NewTurn>) -> Result<Vec<Enqueued>, BatchError> {
        self.enqueue_new(turns.into_iter().map(|turn| self.prepare(turn)).collect()).await
    }

    /// Enqueues turns that nobody else knows of: what is certainly not in the queue then leaves nothing in the store.
    pub(crate) async fn enqueue_new(
        &self,
        mut turns: Vec<PreparedTurn>,
    ) -> Result<Vec<Enqueued>, BatchError> {
        let enqueued = self.enqueue_prepared(&mut turns).await;
        if enqueued.is_err() {
            self.discard(turns).await;
        }
        enqueued
    }

    /// Enqueues turns that have their ids. Repeating the call with the same turns enqueues none of them twice, also if nobody knows
    /// what became of an earlier call, and sends to the store only what is not there yet. [`Client::discard`] turns that are given
    /// up.
    pub async fn enqueue_prepared(&self, turns: &mut [PreparedTurn]) -> Result<Vec<Enqueued>, BatchError> {
        let mut fates: Vec<Fate> = turns.iter().map(PreparedTurn::fate).collect();
        if let Err((place, error)) = self.pack(turns).await {
            let place = (error.advice() == Advice::Reject).then_some(place);
            return Err(BatchError::new(fates, place, error));
        }
        for keys in self.queue.all_keys() {
            let places: Vec<usize> =
                (0..turns.len()).filter(|i| turns[*i].id().shard() == keys.shard()).collect();
            for places in pieces(&places, BATCH, |i| turns[*i].bytes().len()) {
                // If this future is dropped, nobody knows.
                places.iter().for_each(|i| turns[*i].set_may_be_enqueued(true));
                match self.enqueue_step(&keys, turns, places).await {
                    Ok(ids) => {
                        for (turn, i) in ids.iter().zip(places) {
                            let fresh = *turn == turns[*i].id();
                            fates[*i] = Fate::Enqueued(Enqueued { turn: *turn, fresh });
                        }
                        self.remove_unused(turns, places, &ids).await;
                    }
                    Err(Refused { error, place, fate: Fate::NotEnqueued }) => {
                        // Says nothing of an earlier try that had no answer.
                        places.iter().for_each(|i| turns[*i].set_may_be_enqueued(fates[*i] == Fate::Unknown));
                        return Err(BatchError::new(fates, place, error));
                    }
                    Err(Refused { error, place, fate }) => {
                        places.iter().for_each(|i| fates[*i] = fate);
                        return Err(BatchError::new(fates, place, error));
                    }
                }
            }
        }
        Ok(fates.iter().filter_map(Fate::enqueued).collect())
    }

    fn depth_limits(&self) -> DepthLimits {
        DepthLimits { queue: self.settings.max_depth, tenant: self.settings.tenant_max_depth }
    }

    /// Enqueues the turns at some places, which are of one shard: all of them or none. Their ids, in order.
    async fn enqueue_step(
        &self,
        keys: &Keys,
        turns: &[PreparedTurn],
        places: &[usize],
    ) -> Result<Vec<TurnId>, Refused> {
        let of = places.iter().map(|i| &turns[*i]);
        let of = of.map(|prepared| EnqueueTurn {
            after: prepared.after(),
            ..EnqueueTurn::new(prepared.turn(), prepared.bytes().to_vec())
        });
        let step = Enqueue { limits: self.depth_limits(), turns: of.collect() };
        let Tried { answer, unsure } = self.connection.try_step(keys, &step).await;
        let ids = match answer {
            Ok(enqueued) => self.ids_of(enqueued, &step, places),
            Err(fault) => Err((None, fault.into())),
        };
        ids.map_err(|(place, error)| {
            // What the last try says does not hold for one before it that had no answer: that may be carried out yet.
            let fate = if unsure { Fate::Unknown } else { error.fate() };
            Refused { error, place, fate }
        })
    }

    /// The ids; or why there are none, and the turn whose fault that is.
    fn ids_of(
        &self,
        enqueued: steps::Enqueued,
        step: &Enqueue<'_>,
        places: &[usize],
    ) -> Result<Vec<TurnId>, (Option<usize>, ClientError)> {
        let unreadable =
            |reason: String| (None, ClientError::Unreadable { what: "the answer to enqueue".into(), reason });
        match enqueued {
            steps::Enqueued::Full { tenant, open, limit, retry_after } => {
                let queue = self.queue.name.to_string();
                Err((None, ClientError::QueueFull { queue, tenant, open, limit, retry_after }))
            }
            steps::Enqueued::Conflict { place, first } => {
                let found = step.turns.get(place).zip(places.get(place));
                let keyed = found.and_then(|(EnqueueTurn { turn, .. }, place)| {
                    let key = turn.idempotency_key.clone()?;
                    Some((Some(*place), ClientError::KeyTaken { key, turn: turn.id, first }))
                });
                Err(keyed.unwrap_or_else(|| unreadable(format!("no turn with a key is at place {place}"))))
            }
            steps::Enqueued::Stale { place, head } => {
                let found = step.turns.get(place).zip(places.get(place));
                let stale = found.and_then(|(EnqueueTurn { turn, after, .. }, place)| {
                    Some((Some(*place), ClientError::StaleHead { turn: turn.id, after: (*after)?, head }))
                });
                Err(stale
                    .unwrap_or_else(|| unreadable(format!("no turn that follows one is at place {place}"))))
            }
            steps::Enqueued::Done { known } => step.ids(&known).ok_or_else(|| {
                unreadable(format!("it names a place beyond those of {} turns", step.turns.len()))
            }),
        }
    }

    /// Removes the objects of those turns that were enqueued before, as another turn, under their idempotency key.
    async fn remove_unused(&self, turns: &[PreparedTurn], places: &[usize], ids: &[TurnId]) {
        let is_other = |(i, id): &(&usize, &TurnId)| turns[**i].id() != **id;
        let unused = places.iter().zip(ids).filter(is_other).filter_map(|(i, _)| turns[*i].object());
        self.remove_objects(&unused.collect::<Vec<_>>()).await;
    }
}

#[cfg(test)]
mod tests {
    use turnmill_schema::envelope::MAX_INLINE_BYTES;

    use super::*;

    #[test]
    fn large_turns_share_a_call_with_few_others() {
        for (bytes, expected) in [
            (vec![300; 450], vec![200, 200, 50]),
            (vec![MAX_INLINE_BYTES; 10], vec![4, 4, 2]),
            ([vec![300; 199], vec![MAX_INLINE_BYTES; 5]].concat(), vec![200, 4]),
        ] {
            let calls = pieces(&bytes, BATCH, |bytes| *bytes);
            assert_eq!(calls.iter().map(|call| call.len()).collect::<Vec<_>>(), expected);
        }
    }
}
