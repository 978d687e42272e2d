//! Ending leased turns.

use redis::{ParsingError, Value};
use turnmill_schema::keys::Keys;
use turnmill_schema::{AgentId, TurnId};

use super::script;
use crate::call::{Call, ItemStep};
use crate::reply::{Parts, unknown};
use crate::shared_keys::turn_keys;

/// Who ends turns, and how long what is left of them stays, in milliseconds.
#[derive(Clone, Debug)]
pub struct FinishLimits {
    /// The worker that has the leases.
    pub worker: String,
    /// Result streams.
    pub result_ttl_ms: u64,
    /// Outcomes.
    pub outcome_ttl_ms: u64,
    /// Result streams of turns whose whole reply is kept with the outcome.
    pub keep_stream_ms: u64,
    /// How long a silence ends a lease.
    pub lease_ms: u64,
}

/// Which lease: whose, of which turn, and its fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseKey {
    /// Whose turn it is.
    pub agent: AgentId,
    /// The turn.
    pub turn: TurnId,
    /// Its idempotency key with its tenant, as in its [`turnmill_schema::keys::BacklogEntry`].
    pub idempotency: Option<String>,
    /// Grows with every lease of the agent.
    pub epoch: u64,
}

impl LeaseKey {
    /// Adds the lease's keys and the arguments that name it.
    pub(super) fn add(&self, keys: &Keys, call: &mut Call) {
        call.keys(turn_keys(keys, &self.agent, Some((self.turn, self.idempotency.as_deref()))));
        call.text(&self.agent).text(self.turn).text(self.epoch);
    }
}

/// Ends a leased turn. See `finish.lua`. What is in an envelope and empty is none.
#[derive(Clone, Debug)]
pub struct Finish {
    /// The lease.
    pub lease: LeaseKey,
    /// Tokens of the reply that the result stream must hold.
    pub published: u32,
    /// How it ended, by its name on the wire.
    pub outcome: &'static str,
    /// Why it is a dead letter, in one word; empty for the others.
    pub reason: &'static str,
    /// The End in its envelope.
    pub end: Vec<u8>,
    /// What a completed turn adds to its agent's transcript, in its envelope.
    pub entry: Vec<u8>,
    /// The whole reply as one Delta in its envelope; empty if it is long: then the stream stays for `result_ttl_ms`.
    pub reply: Vec<u8>,
    /// Turns in a row that the worker may take of the agent while others wait; 0: it takes no more.
    pub continues: u32,
    /// The agent's manifest in its envelope; empty: the old one stays, unless its history went.
    pub manifest: Vec<u8>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishAnswer {
    /// It is ended, now or by the same call before.
    Done,
    /// The same, and the ticket stands for the agent's next turn now, this head of its backlog, to be leased by this worker.
    Next(String),
    /// Another lease took over, or the turn ended otherwise. Nothing was written.
    Fenced,
    /// The result stream holds another number of tokens. Nothing was written.
    Gap(u32),
}

impl ItemStep for Finish {
    const NAME: &'static str = "finish";
    const SCRIPT: &'static str = script!(" flags=allow-oom" "conclude.lua" "finish.lua");
    type Common = FinishLimits;
    type Answer = FinishAnswer;

    fn begin(common: &FinishLimits, call: &mut Call) {
        call.text(&common.worker).text(common.result_ttl_ms).text(common.outcome_ttl_ms);
        call.text(common.keep_stream_ms).text(common.lease_ms);
    }

    fn add(&self, keys: &Keys, call: &mut Call) {
        self.lease.add(keys, call);
        call.text(self.published).text(self.outcome).text(self.reason).arg(self.end.as_slice());
        call.arg(self.entry.as_slice()).arg(self.reply.as_slice()).text(self.continues);
        call.arg(self.manifest.as_slice());
    }

    fn bytes(&self) -> usize {
        self.end.len() + self.entry.len() + self.reply.len() + self.manifest.len()
    }

    fn read(answer: Value) -> Result<FinishAnswer, ParsingError> {
        let mut parts = Parts::of(answer)?;
        match parts.next::<String>()?.as_str() {
            "done" => Ok(FinishAnswer::Done),
            "next" => parts.next().map(FinishAnswer::Next),
            "fenced" => Ok(FinishAnswer::Fenced),
            "gap" => parts.next().map(FinishAnswer::Gap),
            kind => unknown(kind),
        }
    }
}
