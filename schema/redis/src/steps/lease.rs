//! Leasing the heads of agents' backlogs, with everything their run needs.

use redis::streams::StreamId as RawEntry;
use redis::streams::StreamRangeReply;
use redis::{ParsingError, Value};
use turnmill_schema::keys::{BacklogEntry, FIELD_AT, FIELD_EVENT, Keys};
use turnmill_schema::{AgentId, Priority};

use super::script;
use crate::call::{Call, ItemStep};
use crate::reply::{Parts, unknown};
use crate::shared_keys::turn_keys;

/// Who leases, and what bounds it.
#[derive(Clone, Debug)]
pub struct LeaseLimits {
    /// The worker that has the tickets.
    pub worker: String,
    /// Attempts in a row without a new token after which a turn fails.
    pub max_attempts: u32,
    /// How long the result stream of a turn that ends instead stays, in milliseconds.
    pub result_ttl_ms: u64,
    /// How long its outcome stays, in milliseconds.
    pub outcome_ttl_ms: u64,
    /// Turns of one tenant that may run at once in the shard; 0: no limit.
    pub tenant_max_running: u64,
}

/// Leases the head of the agent whose ticket the worker has. See `lease.lua`.
#[derive(Clone, Debug)]
pub struct LeaseHead {
    /// Whose.
    pub agent: AgentId,
    /// The ticket's entry id.
    pub ticket: String,
    /// The ready stream it came from.
    pub priority: Priority,
    /// The head that the caller knows of.
    pub head: Option<BacklogEntry>,
    /// What the caller knows of its history, and need not be told again.
    pub known: Option<KnownHistory>,
}

/// The first entries of an agent's transcript, which a worker knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownHistory {
    /// How many there are; at least one.
    pub entries: u64,
    /// What the last one begins with: enough of it to tell it from any other one ([`turnmill_schema::MarkedEntry::START_BYTES`]).
    pub last_begins: Vec<u8>,
    /// The agent's [`Grant::seeding`] when they were read.
    pub seeding: String,
}

/// What came of it.
#[derive(Clone, Debug)]
pub enum LeaseAnswer {
    /// The head is the worker's to run.
    Leased(Box<Grant>),
    /// The head is this one: call again with it.
    Head(String),
    /// The ticket was not the caller's, or no turn is left, or the agent's tenant runs as many as it may.
    Gone,
    /// The answers of this call were large enough without it: call again.
    Later,
    /// The queue is paused; return the ticket.
    Paused,
}

/// A lease that was granted. Texts of the protocol are in their envelopes.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The fence.
    pub epoch: u64,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The last two attempts made no token.
    pub alone: bool,
    /// In Unix milliseconds; 0: none.
    pub deadline_ms: u64,
    /// The turn; empty: it is missing.
    pub envelope: Vec<u8>,
    /// What earlier attempts left in the result stream.
    pub published: Vec<ResultEntry>,
    /// The agent's history, one entry a completed turn, without the first ones that are left out.
    pub transcript: Vec<Vec<u8>>,
    /// How many entries are left out, because they are those of [`LeaseHead::known`]; 0: the whole history is here.
    pub left_out: u64,
    /// Which call of [`super::Seed`] gave the agent a history; empty: none.
    pub seeding: String,
    /// The agent's manifest; empty: none.
    pub manifest: Vec<u8>,
}

impl KnownHistory {
    /// As the script takes it: what is known, and the seeding.
    fn arguments(&self) -> (Vec<u8>, &str) {
        let Self { entries, last_begins, seeding } = self;
        ([format!("{entries} ").as_bytes(), last_begins].concat(), seeding)
    }
}

/// An entry of a result stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultEntry {
    /// `<epoch>-<tokens published with it>`.
    pub id: String,
    /// The event in its envelope; empty: there is none.
    pub event: Vec<u8>,
    /// When it was made, in Unix milliseconds.
    pub at_ms: Option<u64>,
}

impl From<RawEntry> for ResultEntry {
    fn from(entry: RawEntry) -> Self {
        let (event, at_ms) = (entry.get(FIELD_EVENT).unwrap_or_default(), entry.get(FIELD_AT));
        Self { id: entry.id, event, at_ms }
    }
}

impl ItemStep for LeaseHead {
    const NAME: &'static str = "lease";
    const SCRIPT: &'static str = script!(" flags=allow-oom" "conclude.lua" "lease.lua");
    type Common = LeaseLimits;
    type Answer = LeaseAnswer;

    fn begin(common: &LeaseLimits, call: &mut Call) {
        call.text(&common.worker)
            .text(common.max_attempts)
            .text(common.result_ttl_ms)
            .text(common.outcome_ttl_ms);
        call.text(common.tenant_max_running);
    }

    fn add(&self, keys: &Keys, call: &mut Call) {
        let turn = self.head.as_ref().map(|entry| (entry.turn, entry.idempotency.as_deref()));
        call.keys(turn_keys(keys, &self.agent, turn));
        call.text(&self.agent).text(&self.ticket).text(self.priority.as_str());
        call.text(self.head.as_ref().map(ToString::to_string).unwrap_or_default());
        let (known, seeding) = self.known.as_ref().map(KnownHistory::arguments).unwrap_or_default();
        call.arg(known).text(seeding);
    }

    fn read(answer: Value) -> Result<LeaseAnswer, ParsingError> {
        let mut parts = Parts::of(answer)?;
        match parts.next::<String>()?.as_str() {
            "gone" => Ok(LeaseAnswer::Gone),
            "later" => Ok(LeaseAnswer::Later),
            "paused" => Ok(LeaseAnswer::Paused),
            "head" => parts.next().map(LeaseAnswer::Head),
            "leased" => Ok(LeaseAnswer::Leased(Box::new(Grant {
                epoch: parts.next()?,
                attempt: parts.next()?,
                alone: parts.next()?,
                deadline_ms: parts.next()?,
                envelope: parts.next()?,
                published: parts.next::<StreamRangeReply>()?.ids.into_iter().map(ResultEntry::from).collect(),
                transcript: parts.next()?,
                manifest: parts.next()?,
                left_out: parts.next()?,
                seeding: parts.next()?,
            }))),
            kind => unknown(kind),
        }
    }
}
