//! Enqueueing: check everything, store what is too large for Redis, then script calls for many turns each.

use turnmill_redis::steps::{DepthLimits, Enqueue, Enqueued};
use turnmill_schema::keys::Keys;
use turnmill_schema::{EncodedTurn, Turn, TurnId};

use crate::error::{Fate, ProducerError};
use crate::new_turn::NewTurn;
use crate::pieces::{Bounds, pieces};
use crate::producer::Producer;

/// Turns in one script call at most: enough to make the round trip cheap, few enough that the call is short.
pub const BATCH_TURNS: usize = 200;
/// Bytes of turns in one script call at most. Redis serves nobody else during a call, and copies about half a megabyte in a
/// millisecond.
pub const BATCH_BYTES: usize = 1 << 20;

const BATCH: Bounds = Bounds { items: BATCH_TURNS, weight: BATCH_BYTES };

impl Producer {
    /// Enqueues one turn. Its id, or that of the turn enqueued earlier under the same idempotency key.
    pub async fn enqueue(&self, turn: NewTurn) -> Result<TurnId, ProducerError> {
        let turn = self.prepare(turn);
        let ids = self.enqueue_prepared(std::slice::from_ref(&turn)).await?;
        Ok(ids.first().copied().unwrap_or(turn.id))
    }

    /// Enqueues turns; ids in the order given. Turns of one agent run in that order.
    ///
    /// Nothing is written if one of them is invalid. One call to Redis takes at most [`BATCH_TURNS`] turns, of at most
    /// [`BATCH_BYTES`] together, and enqueues all of them or none. If a later call fails, the error is
    /// [`ProducerError::Partly`], which says what became of each turn. To repeat the call without enqueueing turns twice, use
    /// [`Producer::enqueue_prepared`].
    pub async fn enqueue_batch(&self, turns: Vec<NewTurn>) -> Result<Vec<TurnId>, ProducerError> {
        let turns: Vec<Turn> = turns.into_iter().map(|turn| self.prepare(turn)).collect();
        self.enqueue_prepared(&turns).await
    }

    /// Enqueues turns that have their ids. Repeating the call with the same turns enqueues none of them twice.
    pub async fn enqueue_prepared(&self, turns: &[Turn]) -> Result<Vec<TurnId>, ProducerError> {
        turns.iter().try_for_each(Turn::validate)?;
        let mut envelopes = self.envelopes(turns).await?;
        let mut fates = vec![Fate::NotEnqueued; turns.len()];
        for keys in self.queue.all_keys() {
            let places: Vec<usize> =
                (0..turns.len()).filter(|i| turns[*i].id.shard() == keys.shard()).collect();
            for places in pieces(&places, BATCH, |i| envelopes.bytes[*i].len()) {
                let stored = places.iter().map(|i| (&turns[*i], std::mem::take(&mut envelopes.bytes[*i])));
                match self.enqueue_step(&keys, stored.collect()).await {
                    Ok(ids) => ids.iter().zip(places).for_each(|(id, i)| fates[*i] = Fate::Enqueued(*id)),
                    Err(error) => {
                        let these = error.fates(places.len());
                        these.iter().zip(places).for_each(|(fate, i)| fates[*i] = *fate);
                        return Err(error.after(fates));
                    }
                }
            }
        }
        let ids: Vec<TurnId> = fates.iter().filter_map(Fate::enqueued).collect();
        self.remove_unused(&envelopes, &ids).await;
        Ok(ids)
    }

    /// Whether the turn could be enqueued, as far as that can be said without Redis: [`Turn::validate`], and its size.
    pub fn check(&self, turn: &Turn) -> Result<(), ProducerError> {
        turn.validate()?;
        match EncodedTurn::new(turn)? {
            EncodedTurn::Large { reference, .. } if self.payloads.is_none() => {
                Err(ProducerError::NoStore { turn: reference.turn, bytes: reference.bytes })
            }
            _ => Ok(()),
        }
    }

    fn depth_limits(&self) -> DepthLimits {
        DepthLimits { queue: self.settings.max_depth, tenant: self.settings.tenant_max_depth }
    }

    /// Enqueues turns of one shard, all of them or none; their ids, in order.
    async fn enqueue_step(
        &self,
        keys: &Keys,
        turns: Vec<(&Turn, Vec<u8>)>,
    ) -> Result<Vec<TurnId>, ProducerError> {
        let step = Enqueue { limits: self.depth_limits(), turns };
        match self.connection.run(keys, &step).await? {
            Enqueued::Full { tenant, open, limit, retry_after } => {
                let queue = self.queue.name.to_string();
                Err(ProducerError::QueueFull { queue, tenant, open, limit, retry_after })
            }
            Enqueued::Conflict { place, first } => {
                let turn = step.turns.get(place).map_or(first, |(turn, _)| turn.id);
                Err(ProducerError::KeyTaken { turn, first })
            }
            Enqueued::Done { known } => step.ids(&known).ok_or_else(|| ProducerError::Unreadable {
                what: "the answer to enqueue".into(),
                reason: format!("it names a place beyond those of {} turns", step.turns.len()),
            }),
        }
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
