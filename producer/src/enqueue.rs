//! Enqueueing: check everything, store what is too large for Redis, then one script call for up to 200 turns.

use std::time::Duration;

use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::scripts::{Call, DepthLimits, ENQUEUE, enqueue_call};
use turnmill_schema::{EncodedTurn, Turn, TurnId};

use crate::error::{Fate, ProducerError};
use crate::new_turn::NewTurn;
use crate::producer::Producer;

/// Turns in one script call: enough to make the round trip cheap, few enough that the call is short.
pub const BATCH_TURNS: usize = 200;

impl Producer {
    /// Enqueues one turn. Its id, or that of the turn enqueued earlier under the same idempotency key.
    pub async fn enqueue(&self, turn: NewTurn) -> Result<TurnId, ProducerError> {
        let turn = self.prepare(turn);
        let ids = self.enqueue_prepared(std::slice::from_ref(&turn)).await?;
        Ok(ids.first().copied().unwrap_or(turn.id))
    }

    /// Enqueues turns; ids in the order given. Turns of one agent run in that order.
    ///
    /// Nothing is written if one of them is invalid. One call to Redis takes [`BATCH_TURNS`], all of them or none. If a later
    /// call fails, the error is [`ProducerError::Partly`], which says what became of each turn. To repeat the call without
    /// enqueueing turns twice, use [`Producer::enqueue_prepared`].
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
            for places in places.chunks(BATCH_TURNS) {
                let stored = places.iter().map(|i| (&turns[*i], std::mem::take(&mut envelopes.bytes[*i])));
                let call = enqueue_call(&keys, self.depth_limits(), stored);
                match self.enqueue_call(&call, places.len()).await {
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

    async fn enqueue_call(&self, call: &Call, turns: usize) -> Result<Vec<TurnId>, ProducerError> {
        let reply = self.connection.script("enqueue", ENQUEUE, call).await?;
        self.enqueued(reply, turns)
    }

    fn depth_limits(&self) -> DepthLimits {
        DepthLimits { queue: self.settings.max_depth, tenant: self.settings.tenant_max_depth }
    }

    /// Reads the script's reply.
    fn enqueued(&self, reply: Value, turns: usize) -> Result<Vec<TurnId>, ProducerError> {
        let unreadable =
            |reason: String| ProducerError::Unreadable { what: "the answer to enqueue".into(), reason };
        let parts = Vec::<Value>::from_redis_value(reply).map_err(|error| unreadable(error.to_string()))?;
        match read_reply(parts).map_err(|error| unreadable(error.to_string()))? {
            Reply::Full { tenant, open, limit, retry_after } => {
                let queue = self.queue.name.to_string();
                Err(ProducerError::QueueFull { queue, tenant, open, limit, retry_after })
            }
            Reply::Enqueued(ids) if ids.len() == turns => Ok(ids),
            Reply::Enqueued(ids) => Err(unreadable(format!("{} ids for {turns} turns", ids.len()))),
        }
    }
}

/// What the script answers.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    /// The ids, in order.
    Enqueued(Vec<TurnId>),
    /// None of the call was written; see [`ProducerError::QueueFull`].
    Full { tenant: Option<String>, open: u64, limit: u64, retry_after: Duration },
}

fn read_reply(parts: Vec<Value>) -> Result<Reply, ParsingError> {
    let mut parts = parts.into_iter();
    let mut next = || parts.next().unwrap_or(Value::Nil);
    match String::from_redis_value(next())?.as_str() {
        "full" => Ok(Reply::Full {
            tenant: Some(String::from_redis_value(next())?).filter(|tenant| !tenant.is_empty()),
            open: u64::from_redis_value(next())?,
            limit: u64::from_redis_value(next())?,
            retry_after: Duration::from_millis(u64::from_redis_value(next())?),
        }),
        "ok" => {
            let mut ids = Vec::new();
            // Each id is followed by whether it is fresh, which callers have no use for.
            while let (Value::BulkString(id), Value::Int(_fresh)) = (next(), next()) {
                let id = String::from_utf8_lossy(&id).into_owned();
                ids.push(id.parse().map_err(|error| ParsingError::from(format!("{error}")))?);
            }
            Ok(Reply::Enqueued(ids))
        }
        other => Err(ParsingError::from(format!("it starts with {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: impl ToString) -> Value {
        Value::BulkString(text.to_string().into_bytes())
    }

    #[test]
    fn both_answers_are_read() {
        let (a, b) = (TurnId::new(0), TurnId::new(0));
        let ok = vec![text("ok"), text(a), Value::Int(1), text(b), Value::Int(0)];
        assert_eq!(read_reply(ok), Ok(Reply::Enqueued(vec![a, b])));
        for (whose, tenant) in [("", None), ("acme", Some("acme".to_owned()))] {
            let full = vec![text("full"), text(whose), Value::Int(7), Value::Int(8), Value::Int(250)];
            let retry_after = Duration::from_millis(250);
            assert_eq!(read_reply(full), Ok(Reply::Full { tenant, open: 7, limit: 8, retry_after }));
        }
    }

    #[test]
    fn any_other_answer_is_an_error() {
        for foreign in
            [vec![], vec![text("huh")], vec![text("full")], vec![text("ok"), text("x"), Value::Int(1)]]
        {
            assert!(read_reply(foreign.clone()).is_err(), "{foreign:?}");
        }
    }
}
