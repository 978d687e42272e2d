//! Enqueueing: check everything, store what is too large for Redis, then script calls for many turns each.

use turnmill_redis::steps::{DepthLimits, Enqueue, Enqueued};
use turnmill_schema::keys::Keys;
use turnmill_schema::{EncodedTurn, Turn, TurnId};

use crate::client::Client;
use crate::connection::Tried;
use crate::error::{ClientError, Fate};
use crate::new_turn::NewTurn;
use crate::packed::PackedTurn;
use crate::pieces::{Bounds, pieces};

/// Turns in one script call at most: enough to make the round trip cheap, few enough that the call is short.
pub const BATCH_TURNS: usize = 200;
/// Bytes of turns in one script call at most. Redis serves nobody else during a call, and copies about half a megabyte in a
/// millisecond.
pub const BATCH_BYTES: usize = 1 << 20;

const BATCH: Bounds = Bounds { items: BATCH_TURNS, weight: BATCH_BYTES };

impl Client {
    /// Enqueues one turn. Its id, or that of the turn enqueued earlier under the same idempotency key.
    ///
    /// If an error leaves the turn's fate unknown ([`ClientError::fates`]), calling this again is safe only for a turn with an
    /// idempotency key.
    pub async fn enqueue(&self, turn: NewTurn) -> Result<TurnId, ClientError> {
        let turn = self.prepare(turn);
        let id = turn.id;
        let ids = self.enqueue_new(vec![turn.into()]).await?;
        Ok(ids.first().copied().unwrap_or(id))
    }

    /// Enqueues turns; ids in the order given. Turns of one agent run in that order.
    ///
    /// Nothing is written if one of them is invalid. One call to Redis takes at most [`BATCH_TURNS`] turns, of at most
    /// [`BATCH_BYTES`] together, and enqueues all of them or none. If a later call fails, the error is
    /// [`ClientError::Partly`], which says what became of each turn. To repeat the call without enqueueing turns twice, use
    /// [`Client::enqueue_prepared`].
    pub async fn enqueue_batch(&self, turns: Vec<NewTurn>) -> Result<Vec<TurnId>, ClientError> {
        self.enqueue_new(turns.into_iter().map(|turn| self.prepare(turn).into()).collect()).await
    }

    /// Enqueues turns that nobody else knows of: what is certainly not in the queue then leaves nothing in the store.
    pub(crate) async fn enqueue_new(
        &self,
        mut turns: Vec<PackedTurn<'_>>,
    ) -> Result<Vec<TurnId>, ClientError> {
        let enqueued = self.enqueue_packed(&mut turns).await;
        if enqueued.is_err() {
            self.discard(turns).await;
        }
        enqueued
    }

    /// Enqueues turns that have their ids. Repeating the call with the same turns enqueues none of them twice.
    pub async fn enqueue_prepared(&self, turns: &[Turn]) -> Result<Vec<TurnId>, ClientError> {
        // The objects of turns that are refused stay: an earlier call may have enqueued them.
        self.enqueue_packed(&mut turns.iter().map(PackedTurn::from).collect::<Vec<_>>()).await
    }

    /// As [`Client::enqueue_prepared`], for one who tries the same turns again, such as until a full queue has room: a turn is
    /// encoded once, and its object is written to the store once. [`Client::discard`] those that are given up.
    pub async fn enqueue_packed(&self, turns: &mut [PackedTurn<'_>]) -> Result<Vec<TurnId>, ClientError> {
        self.pack(turns).await?;
        let mut fates = vec![Fate::NotEnqueued; turns.len()];
        for keys in self.queue.all_keys() {
            let places: Vec<usize> =
                (0..turns.len()).filter(|i| turns[*i].turn().id.shard() == keys.shard()).collect();
            for places in pieces(&places, BATCH, |i| turns[*i].bytes().len()) {
                // If this future is dropped, nobody knows.
                let before: Vec<bool> = places.iter().map(|i| turns[*i].set_may_be_enqueued(true)).collect();
                match self.enqueue_step(&keys, turns, places).await {
                    Ok(ids) => {
                        ids.iter().zip(places).for_each(|(id, i)| fates[*i] = Fate::Enqueued(*id));
                        self.remove_unused(turns, places, &ids).await;
                    }
                    Err((error, these)) => {
                        for ((fate, i), before) in these.iter().zip(places).zip(before) {
                            fates[*i] = *fate;
                            turns[*i].set_may_be_enqueued(before || *fate != Fate::NotEnqueued);
                        }
                        return Err(error.after(fates));
                    }
                }
            }
        }
        Ok(fates.iter().filter_map(Fate::enqueued).collect())
    }

    /// Whether the turn could be enqueued, as far as that can be said without Redis: [`Turn::validate`], and its size.
    pub fn check(&self, turn: &Turn) -> Result<(), ClientError> {
        turn.validate()?;
        match EncodedTurn::new(turn)? {
            EncodedTurn::Large { reference, .. } if self.payloads.is_none() => {
                Err(ClientError::NoStore { turn: reference.turn, bytes: reference.bytes })
            }
            _ => Ok(()),
        }
    }

    fn depth_limits(&self) -> DepthLimits {
        DepthLimits { queue: self.settings.max_depth, tenant: self.settings.tenant_max_depth }
    }

    /// Enqueues the turns at some places, which are of one shard: all of them or none. Their ids, in order; or why they are not
    /// in the queue, as far as that is known.
    async fn enqueue_step(
        &self,
        keys: &Keys,
        turns: &[PackedTurn<'_>],
        places: &[usize],
    ) -> Result<Vec<TurnId>, (ClientError, Vec<Fate>)> {
        let stored = places.iter().map(|i| (turns[*i].turn(), turns[*i].bytes().to_vec()));
        let step = Enqueue { limits: self.depth_limits(), turns: stored.collect() };
        let Tried { answer, unsure } = self.connection.try_step(keys, &step).await;
        let ids = match answer {
            Ok(enqueued) => self.ids_of(enqueued, &step, places),
            Err(fault) => Err(fault.into()),
        };
        ids.map_err(|error| {
            // What the last try says does not hold for one before it that had no answer: that may be carried out yet.
            let fates = if unsure { vec![Fate::Unknown; places.len()] } else { error.fates(places.len()) };
            (error, fates)
        })
    }

    fn ids_of(
        &self,
        enqueued: Enqueued,
        step: &Enqueue<'_>,
        places: &[usize],
    ) -> Result<Vec<TurnId>, ClientError> {
        let unreadable =
            |reason: String| ClientError::Unreadable { what: "the answer to enqueue".into(), reason };
        match enqueued {
            Enqueued::Full { tenant, open, limit, retry_after } => {
                let queue = self.queue.name.to_string();
                Err(ClientError::QueueFull { queue, tenant, open, limit, retry_after })
            }
            Enqueued::Conflict { place, first } => {
                let found = step.turns.get(place).zip(places.get(place));
                let keyed = found.and_then(|((turn, _), place)| {
                    let key = turn.idempotency_key.clone()?;
                    Some(ClientError::KeyTaken { key, turn: turn.id, place: *place, first })
                });
                Err(keyed.unwrap_or_else(|| unreadable(format!("no turn with a key is at place {place}"))))
            }
            Enqueued::Done { known } => step.ids(&known).ok_or_else(|| {
                unreadable(format!("it names a place beyond those of {} turns", step.turns.len()))
            }),
        }
    }

    /// Removes the objects of those turns that were enqueued before, as another turn, under their idempotency key.
    async fn remove_unused(&self, turns: &[PackedTurn<'_>], places: &[usize], ids: &[TurnId]) {
        let is_other = |(i, id): &(&usize, &TurnId)| turns[**i].turn().id != **id;
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
