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
    /// The turns.
    pub turns: Vec<EnqueueTurn<'a>>,
}

/// A turn to be enqueued.
#[derive(Clone, Debug)]
pub struct EnqueueTurn<'a> {
    /// The turn.
    pub turn: &'a Turn,
    /// What the queue keeps of it ([`turnmill_schema::envelope::encode_turn`]).
    pub stored: Vec<u8>,
    /// The turn that it must follow: what the caller takes for the newest turn of the agent. A call may name a turn that stands
    /// before this one in it. A turn that stands alone follows none, so nothing can be named for it.
    pub after: Option<TurnId>,
}

impl<'a> EnqueueTurn<'a> {
    /// A turn that may follow any other one.
    pub fn new(turn: &'a Turn, stored: Vec<u8>) -> Self {
        Self { turn, stored, after: None }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// All are in the queue. See [`Enqueue::ids`].
    Done {
        /// The turns that are not new: the place of each, from 0, and the id of the turn that was enqueued earlier under its
        /// idempotency key, or its own if it was enqueued before itself.
        known: Vec<(usize, TurnId)>,
    },
    /// A turn has the idempotency key of an earlier one that asks for something else. Nothing was written.
    Conflict {
        /// Its place among the turns, from 0.
        place: usize,
        /// The earlier turn.
        first: TurnId,
    },
    /// A turn would follow another one than it must ([`EnqueueTurn::after`]). Nothing was written.
    ///
    /// A turn that is in the queue already is never stale, whatever came after it.
    Stale {
        /// Its place among the turns, from 0.
        place: usize,
        /// The newest turn of its agent: the last one that has not ended, else the last one that completed; none: there is
        /// neither.
        head: Option<TurnId>,
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

impl Enqueue<'_> {
    /// The id of each turn, or that of the turn that was enqueued in its place; none if a place is not one of these turns.
    pub fn ids(&self, known: &[(usize, TurnId)]) -> Option<Vec<TurnId>> {
        let mut ids: Vec<TurnId> = self.turns.iter().map(|of| of.turn.id).collect();
        for (place, id) in known {
            *ids.get_mut(*place)? = *id;
        }
        Some(ids)
    }
}

impl Step for Enqueue<'_> {
    const NAME: &'static str = "enqueue";
    const SCRIPT: &'static str = script!("" "transcript.lua" "enqueue.lua");
    type Reply = Enqueued;

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::new(keys);
        call.text(self.limits.queue).text(self.limits.tenant);
        for EnqueueTurn { turn, stored, after } in &self.turns {
            let agent = turn.agent_id();
            let idempotency = turn.idempotency_key.as_ref().map(|key| idempotency_name(&turn.tenant, key));
            call.keys([keys.agent(&agent), keys.backlog(&agent), keys.turn(turn.id)]);
            call.keys(idempotency.iter().map(|name| keys.idempotency(name)));
            call.keys(after.map(|_| keys.transcript(&agent)));
            call.text(turn.id).text(&agent).text(asked_for(turn, idempotency.as_deref(), *after));
            call.arg(stored.as_slice());
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
            "stale" => {
                let (place, head) = (parts.next()?, parts.text()?);
                Ok(Enqueued::Stale { place, head: head.as_deref().map(parse_turn).transpose()? })
            }
            "ok" => {
                let known = parts.rest().chunks(2).map(read_known).collect::<Result<_, _>>()?;
                Ok(Enqueued::Done { known })
            }
            kind => unknown(kind),
        }
    }
}

/// The priority, and all that most turns do not have if there is anything of it, as the script takes it.
fn asked_for(turn: &Turn, idempotency: Option<&str>, after: Option<TurnId>) -> String {
    let priority = turn.priority.as_str();
    let (deadline_ms, not_before_ms) = (turn.deadline_ms.unwrap_or(0), turn.not_before_ms.unwrap_or(0));
    if (deadline_ms, not_before_ms, turn.new_session, idempotency, after) == (0, 0, false, None, None) {
        return priority.to_owned();
    }
    // Nothing is compared if there is no key.
    let digest = idempotency.map(|_| turn.asked_digest()).unwrap_or_default();
    let (new_session, name) = (u8::from(turn.new_session), idempotency.unwrap_or("-"));
    let after = after.map(|turn| turn.to_string()).unwrap_or_default();
    format!("{priority} {deadline_ms} {not_before_ms} {new_session} {name} {digest} {after}")
}

/// A place and the id of the turn there.
fn read_known(pair: &[Value]) -> Result<(usize, TurnId), ParsingError> {
    let (place, id): (usize, String) = redis::from_redis_value(Value::Array(pair.to_vec()))?;
    Ok((place, parse_turn(&id)?))
}

fn parse_turn(id: &str) -> Result<TurnId, ParsingError> {
    id.parse().map_err(|error| ParsingError::from(format!("{error}")))
}

#[cfg(test)]
mod tests {
    use turnmill_schema::TenantName;

    use super::*;

    fn text(text: impl ToString) -> Value {
        Value::BulkString(text.to_string().into_bytes())
    }

    fn read(parts: Vec<Value>) -> Result<Enqueued, ParsingError> {
        Enqueue::read(Value::Array(parts))
    }

    #[test]
    fn every_answer_is_read() {
        let (a, b) = (TurnId::new(0), TurnId::new(0));
        assert_eq!(read(vec![text("ok")]), Ok(Enqueued::Done { known: vec![] }));
        for head in [None, Some(a)] {
            let stale =
                vec![text("stale"), Value::Int(3), text(head.map(|id| id.to_string()).unwrap_or_default())];
            assert_eq!(read(stale), Ok(Enqueued::Stale { place: 3, head }));
        }
        let ok = vec![text("ok"), Value::Int(0), text(a), Value::Int(7), text(b)];
        assert_eq!(read(ok), Ok(Enqueued::Done { known: vec![(0, a), (7, b)] }));
        for (whose, tenant) in [("", None), ("acme", Some("acme".to_owned()))] {
            let full = vec![text("full"), text(whose), Value::Int(7), Value::Int(8), Value::Int(250)];
            let retry_after = Duration::from_millis(250);
            assert_eq!(read(full), Ok(Enqueued::Full { tenant, open: 7, limit: 8, retry_after }));
        }
    }

    #[test]
    fn what_was_known_stands_at_its_place() {
        let turns: Vec<Turn> = (0..3)
            .map(|_| Turn::new(TurnId::new(0), TenantName::new("t").expect("a name"), vec![]))
            .collect();
        let limits = DepthLimits { queue: 9, tenant: 9 };
        let step =
            Enqueue { limits, turns: turns.iter().map(|turn| EnqueueTurn::new(turn, vec![])).collect() };
        let first = TurnId::new(0);
        assert_eq!(step.ids(&[(1, first)]), Some(vec![turns[0].id, first, turns[2].id]));
        assert_eq!(step.ids(&[(3, first)]), None);
    }

    #[test]
    fn any_other_answer_is_an_error() {
        let stale = vec![text("stale"), Value::Int(0), text("x")];
        for foreign in
            [stale, vec![], vec![text("huh")], vec![text("full")], vec![text("ok"), Value::Int(1), text("x")]]
        {
            assert!(read(foreign.clone()).is_err(), "{foreign:?}");
        }
    }
}
