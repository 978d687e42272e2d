//! Enqueueing turns of one shard: all of them, or none.

use std::time::Duration;

use redis::{ParsingError, Value};
use turnmill_schema::keys::{Keys, idempotency_name};
use turnmill_schema::{Turn, TurnId};

use super::script;
use crate::call::{Call, Step};
use crate::reply::{Parts, unknown};

/// How many turns may be open (waiting or running) in a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DepthLimits {
    /// Of everybody.
    pub queue: u64,
    /// Of one tenant.
    pub tenant: u64,
}

/// Enqueues turns whose ids are all in one shard. See `enqueue.lua`.
#[derive(Clone, Debug)]
pub struct Enqueue<'a> {
    /// How many may be open.
    pub limits: DepthLimits,
    /// The turns, each with its stored form ([`turnmill_schema::envelope::encode_turn`]).
    pub turns: Vec<(&'a Turn, Vec<u8>)>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// For each turn its id, or that of the turn enqueued earlier under its idempotency key, and whether it is new.
    Done(Vec<(TurnId, bool)>),
    /// A turn has the idempotency key of an earlier one that asks for something else. Nothing was written.
    Conflict {
        /// Its place among the turns, from 0.
        place: usize,
        /// The earlier turn.
        first: TurnId,
    },
    /// There is no room. Nothing was written.
    Full {
        /// The tenant whose own limit it was; none: everybody's.
        tenant: Option<String>,
        /// How many turns wait or run.
        open: u64,
        /// How many may.
        limit: u64,
        /// When there should be room, at the pace at which turns ended lately.
        retry_after: Duration,
    },
}

impl Step for Enqueue<'_> {
    const NAME: &'static str = "enqueue";
    const SCRIPT: &'static str = script!("" "enqueue.lua");
    type Reply = Enqueued;

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::new(keys);
        call.text(self.limits.queue).text(self.limits.tenant);
        for (turn, stored) in &self.turns {
            let agent = turn.agent_id();
            let idempotency = turn.idempotency_key.as_ref().map(|key| idempotency_name(&turn.tenant, key));
            let turn_key = keys.turn(turn.id);
            let idempotency_key =
                idempotency.as_ref().map_or(turn_key.clone(), |name| keys.idempotency(name));
            call.keys([keys.agent(&agent), keys.backlog(&agent), turn_key, idempotency_key]);
            call.text(turn.id).text(&agent).text(turn.priority.as_str());
            call.text(turn.deadline_ms.unwrap_or(0)).text(turn.not_before_ms.unwrap_or(0));
            call.text(u8::from(turn.new_session));
            // Nothing is compared where there is no key.
            let digest = idempotency.as_ref().map(|_| turn.asked_digest()).unwrap_or_default();
            call.arg(idempotency.unwrap_or_else(|| "-".into()));
            call.text(digest).arg(stored.as_slice());
        }
        call
    }

    fn read(reply: Value) -> Result<Enqueued, ParsingError> {
        let mut parts = Parts::of(reply)?;
        match parts.next::<String>()?.as_str() {
            "full" => Ok(Enqueued::Full {
                tenant: parts.text()?,
                open: parts.next()?,
                limit: parts.next()?,
                retry_after: Duration::from_millis(parts.next()?),
            }),
            "conflict" => {
                Ok(Enqueued::Conflict { place: parts.next()?, first: parse_turn(&parts.next::<String>()?)? })
            }
            "ok" => parts.rest().chunks(2).map(read_turn).collect::<Result<_, _>>().map(Enqueued::Done),
            kind => unknown(kind),
        }
    }
}

/// An id and whether it is fresh.
fn read_turn(pair: &[Value]) -> Result<(TurnId, bool), ParsingError> {
    let (id, fresh): (String, bool) = redis::from_redis_value(Value::Array(pair.to_vec()))?;
    Ok((parse_turn(&id)?, fresh))
}

fn parse_turn(id: &str) -> Result<TurnId, ParsingError> {
    id.parse().map_err(|error| ParsingError::from(format!("{error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: impl ToString) -> Value {
        Value::BulkString(text.to_string().into_bytes())
    }

    fn read(parts: Vec<Value>) -> Result<Enqueued, ParsingError> {
        Enqueue::read(Value::Array(parts))
    }

    #[test]
    fn both_answers_are_read() {
        let (a, b) = (TurnId::new(0), TurnId::new(0));
        let ok = vec![text("ok"), text(a), Value::Int(1), text(b), Value::Int(0)];
        assert_eq!(read(ok), Ok(Enqueued::Done(vec![(a, true), (b, false)])));
        for (whose, tenant) in [("", None), ("acme", Some("acme".to_owned()))] {
            let full = vec![text("full"), text(whose), Value::Int(7), Value::Int(8), Value::Int(250)];
            let retry_after = Duration::from_millis(250);
            assert_eq!(read(full), Ok(Enqueued::Full { tenant, open: 7, limit: 8, retry_after }));
        }
    }

    #[test]
    fn any_other_answer_is_an_error() {
        for foreign in
            [vec![], vec![text("huh")], vec![text("full")], vec![text("ok"), text("x"), Value::Int(1)]]
        {
            assert!(read(foreign.clone()).is_err(), "{foreign:?}");
        }
    }
}
