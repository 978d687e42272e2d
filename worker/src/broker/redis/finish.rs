//! Ending a turn, requeueing it, returning a ticket; and what is stored of it.

use std::time::Duration;

use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::envelope::{EnvelopeError, encode};
use turnmill_schema::keys::BacklogEntry;
use turnmill_schema::scripts::{self, Call};
use turnmill_schema::{DeadReason, Event, Manifest};

use super::batch::Item;
use super::{BrokerError, Ending, Lease, RedisBroker, Retry, Ticket};

impl RedisBroker {
    pub(super) async fn end_turn(
        &self,
        lease: &Lease,
        ending: &Ending,
    ) -> Result<Option<Ticket>, BrokerError> {
        let end = encode(&Event::End(ending.end.clone()))?;
        let entry = ending.entry.as_ref().map(encode).transpose()?.unwrap_or_default();
        let reply = ending.reply.clone().map(|delta| encode(&Event::Delta(delta))).transpose()?;
        let outcome = ending.end.outcome.as_str();
        let reason = ending.reason.map_or("", DeadReason::as_str);
        let published = ending.published.to_string();
        let mut args = self.lease_args(lease);
        args.extend([published, outcome.to_owned(), reason.to_owned()].map(String::into_bytes));
        let continues = if ending.continues { self.settings.max_continues } else { 0 };
        args.extend([end, entry, reply.unwrap_or_default(), continues.to_string().into_bytes()]);
        args.push(encode_manifest(ending.manifest.as_ref())?);
        let item = Item { keys: self.lease_keys(lease), args };
        let answer = self.batches(lease.ticket.shard)?.finish.call(item).await?;
        match FinishReply::from_redis_value(answer).map_err(|e| self.server.error("finish", &e.into()))? {
            FinishReply::Done => {
                self.held.forget(lease);
                Ok(None)
            }
            FinishReply::Next(head) => {
                let ours = self.held.continue_with_next(lease, BacklogEntry::parse(&head));
                Ok(ours.then(|| lease.ticket.clone()))
            }
            FinishReply::Fenced => Err(self.fenced(lease)),
            FinishReply::Gap(found) => {
                Err(BrokerError::Gap { turn: lease.turn, expected: ending.published, found })
            }
        }
    }

    pub(super) async fn requeue_turn(
        &self,
        lease: &Lease,
        manifest: Option<&Manifest>,
    ) -> Result<(), BrokerError> {
        self.call_requeue(lease, ["", "", ""], manifest).await.map(|_| ())
    }

    pub(super) async fn advance_manifest(
        &self,
        lease: &Lease,
        manifest: &Manifest,
    ) -> Result<(), BrokerError> {
        let keys = vec![self.keys(&lease.ticket).agent(&lease.ticket.agent)];
        let mut call = Call { keys, args: Vec::new() };
        call.text(lease.epoch).arg(encode_manifest(Some(manifest))?);
        // Written or ignored: there is nothing to do about either.
        self.server.run::<bool>(&self.steps.advance, &call).await.map(|_| ())
    }

    pub(super) async fn retry_later(
        &self,
        lease: &Lease,
        delay: Duration,
        reason: DeadReason,
        text: &str,
    ) -> Result<Retry, BrokerError> {
        self.call_requeue(lease, [&delay.as_millis().to_string(), reason.as_str(), text], None).await
    }

    async fn call_requeue(
        &self,
        lease: &Lease,
        failure: [&str; 3],
        manifest: Option<&Manifest>,
    ) -> Result<Retry, BrokerError> {
        let mut args = self.lease_args(lease);
        args.extend(failure.map(|arg| arg.as_bytes().to_vec()));
        args.push(encode_manifest(manifest)?);
        let item = Item { keys: self.lease_keys(lease), args };
        let answer = self.batches(lease.ticket.shard)?.requeue.call(item).await?;
        let (status,): (String,) =
            redis::from_redis_value(answer).map_err(|e| self.server.error("requeue", &e.into()))?;
        if status == "fenced" {
            return Err(self.fenced(lease));
        }
        self.held.forget(lease);
        Ok(if status == "dead" { Retry::Dead } else { Retry::Later })
    }

    pub(super) async fn return_unleased(&self, ticket: &Ticket) -> Result<(), BrokerError> {
        let keys = self.keys(ticket);
        let mut call = Call::new(&keys);
        call.keys([keys.agent(&ticket.agent), keys.backlog(&ticket.agent)]);
        call.text(&ticket.agent)
            .text(&ticket.entry)
            .text(ticket.priority.as_str())
            .text(&self.settings.worker);
        // Whether it was still ours or another's by then: it is not ours now.
        let _: bool = self.server.run(&self.steps.return_ticket, &call).await?;
        self.held.drop_ticket(ticket);
        Ok(())
    }

    /// Keys of a leased turn. Of one that this worker does not hold any more the idempotency key is not known, nor
    /// needed: nothing of it is written.
    fn lease_keys(&self, lease: &Lease) -> [String; 7] {
        let idempotency = self.held.idempotency(lease.turn);
        let turn = Some((lease.turn, idempotency.as_deref()));
        scripts::turn_keys(&self.keys(&lease.ticket), &lease.ticket.agent, turn)
    }

    /// The arguments that say which lease.
    fn lease_args(&self, lease: &Lease) -> Vec<Vec<u8>> {
        [lease.ticket.agent.to_string(), lease.turn.to_string(), lease.epoch.to_string()]
            .map(String::into_bytes)
            .into()
    }
}

/// A manifest as scripts take it; empty where there is none.
fn encode_manifest(manifest: Option<&Manifest>) -> Result<Vec<u8>, EnvelopeError> {
    manifest.map(encode).transpose().map(Option::unwrap_or_default)
}

enum FinishReply {
    Done,
    /// The ticket stands for the agent's next turn, which is this.
    Next(String),
    Fenced,
    Gap(u32),
}

impl FromRedisValue for FinishReply {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let parts: Vec<Value> = redis::from_redis_value(value)?;
        let mut parts = parts.into_iter();
        let mut next = || parts.next().unwrap_or(Value::Nil);
        let status: String = redis::from_redis_value(next())?;
        match status.as_str() {
            "done" => Ok(Self::Done),
            "next" => {
                // The ticket is the one that was leased with.
                let _ticket = next();
                redis::from_redis_value(next()).map(Self::Next)
            }
            "fenced" => Ok(Self::Fenced),
            _ => redis::from_redis_value(next()).map(Self::Gap),
        }
    }
}
