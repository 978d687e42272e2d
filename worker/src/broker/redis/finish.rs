//! Ending a turn, giving it back, handing a token back.

use redis::{FromRedisValue, Value};
use turnmill_schema::envelope::encode;
use turnmill_schema::keys::BacklogEntry;
use turnmill_schema::{End, Event, TranscriptEntry, scripts};

use super::{BrokerError, Lease, ReadyToken, RedisBroker, steps};

impl RedisBroker {
    pub(super) async fn end_turn(
        &self,
        lease: &Lease,
        published: u32,
        end: &End,
        entry: Option<&TranscriptEntry>,
    ) -> Result<(), BrokerError> {
        let event = encode(&Event::End(end.clone()))?;
        let transcript = entry.map(encode).transpose()?.unwrap_or_default();
        // While the lease is ours the head is our turn; where it is another, the script finds out why.
        let head = self.head(&lease.token).await?;
        let head = head.as_deref().and_then(BacklogEntry::parse).filter(|head| head.turn == lease.turn);
        let idempotency = head.and_then(|head| head.idempotency);

        let token = &lease.token;
        let mut call = steps::FINISH.script.prepare_invoke();
        call.key(scripts::agent_keys(&self.keys(token), &token.agent, lease.turn, idempotency.as_deref()));
        call.arg(token.agent.as_str()).arg(lease.turn.to_string()).arg(&self.settings.worker);
        call.arg(lease.epoch).arg(published).arg(end.outcome.as_str()).arg(event).arg(transcript);
        call.arg(self.settings.result_ttl_ms).arg(self.settings.outcome_ttl_ms);
        match self.server.run(&steps::FINISH, &call).await? {
            FinishReply::Done => {
                self.held.give_up(token, lease.turn);
                Ok(())
            }
            FinishReply::Fenced => Err(self.fenced(lease)),
            FinishReply::Gap(found) => Err(BrokerError::Gap { turn: lease.turn, expected: published, found }),
        }
    }

    pub(super) async fn give_back(&self, lease: &Lease) -> Result<(), BrokerError> {
        let (token, keys) = (&lease.token, self.keys(&lease.token));
        let mut call = steps::RELEASE.script.prepare_invoke();
        call.key(keys.agent(&token.agent)).key(keys.turn(lease.turn));
        call.key(&scripts::ready_keys(&keys));
        call.arg(token.agent.as_str()).arg(&self.settings.worker).arg(lease.epoch);
        if self.server.run(&steps::RELEASE, &call).await? {
            self.held.give_up(token, lease.turn);
            Ok(())
        } else {
            Err(self.fenced(lease))
        }
    }

    pub(super) async fn hand_back(&self, token: &ReadyToken) -> Result<(), BrokerError> {
        let keys = self.keys(token);
        let mut call = steps::PUT_BACK.script.prepare_invoke();
        call.key(keys.agent(&token.agent)).key(keys.ready(token.priority));
        call.arg(token.agent.as_str()).arg(&token.entry).arg(token.priority.as_str());
        call.arg(&self.settings.worker);
        // Whether it was still ours or another's by then: it is not ours now.
        let _: bool = self.server.run(&steps::PUT_BACK, &call).await?;
        self.held.drop_token(token);
        Ok(())
    }
}

enum FinishReply {
    Done,
    Fenced,
    Gap(u32),
}

impl FromRedisValue for FinishReply {
    fn from_redis_value(value: Value) -> Result<Self, redis::ParsingError> {
        let parts: Vec<Value> = redis::from_redis_value(value)?;
        let mut parts = parts.into_iter();
        let status: String = redis::from_redis_value(parts.next().unwrap_or(Value::Nil))?;
        match status.as_str() {
            "done" => Ok(Self::Done),
            "fenced" => Ok(Self::Fenced),
            _ => redis::from_redis_value(parts.next().unwrap_or(Value::Nil)).map(Self::Gap),
        }
    }
}
