//! Ending turns that no worker ended: cancelling them, waiting or running, and ending waiting ones whose deadline has passed.

use redis::{ParsingError, Value};
use turnmill_schema::AgentId;
use turnmill_schema::keys::{BacklogEntry, Keys};

use super::script;
use crate::call::{Call, ItemStep};
use crate::reply::{Parts, unknown};
use crate::shared_keys::entry_keys;

/// How long what is left of turns stays that no worker ended, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct UnrunLimits {
    /// Result streams.
    pub result_ttl_ms: u64,
    /// Outcomes.
    pub outcome_ttl_ms: u64,
}

/// Cancels a turn. A running one ends at once too: its worker is fenced, and told. See `end_unrun.lua`.
#[derive(Clone, Debug)]
pub struct Cancel {
    /// Whose turn it is.
    pub agent: AgentId,
    /// Its place in the backlog.
    pub entry: BacklogEntry,
}

/// Ends a turn whose deadline has passed while it waited: behind a paused queue, a held agent, others of its agent, or for want
/// of a worker. See `end_unrun.lua`.
#[derive(Clone, Debug)]
pub struct Expire {
    /// Whose turn it is.
    pub agent: AgentId,
    /// Its place in the backlog.
    pub entry: BacklogEntry,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unrun {
    /// It is ended, now.
    Done,
    /// It had ended before, with this outcome.
    Ended(String),
    /// There is no such turn.
    Unknown,
    /// Its deadline has not passed, or its worker will see to it. Nothing was written.
    Early,
}

impl ItemStep for Cancel {
    const NAME: &'static str = "cancel";
    const SCRIPT: &'static str = script!(" flags=allow-oom" "conclude.lua" "end_unrun.lua");
    type Common = UnrunLimits;
    type Answer = Unrun;

    fn begin(common: &UnrunLimits, call: &mut Call) {
        begin(common, "cancelled", call);
    }

    fn add(&self, keys: &Keys, call: &mut Call) {
        add(keys, &self.agent, &self.entry, call);
    }

    fn read(answer: Value) -> Result<Unrun, ParsingError> {
        read(answer)
    }
}

impl ItemStep for Expire {
    const NAME: &'static str = "expire";
    const SCRIPT: &'static str = Cancel::SCRIPT;
    type Common = UnrunLimits;
    type Answer = Unrun;

    fn begin(common: &UnrunLimits, call: &mut Call) {
        begin(common, "expired", call);
    }

    fn add(&self, keys: &Keys, call: &mut Call) {
        add(keys, &self.agent, &self.entry, call);
    }

    fn read(answer: Value) -> Result<Unrun, ParsingError> {
        read(answer)
    }
}

fn begin(common: &UnrunLimits, outcome: &str, call: &mut Call) {
    call.text(common.result_ttl_ms).text(common.outcome_ttl_ms).text(outcome);
}

fn add(keys: &Keys, agent: &AgentId, entry: &BacklogEntry, call: &mut Call) {
    call.keys(entry_keys(keys, agent, entry));
    call.text(keys.notices()).text(agent).text(entry);
}

fn read(answer: Value) -> Result<Unrun, ParsingError> {
    let mut parts = Parts::of(answer)?;
    match parts.next::<String>()?.as_str() {
        "done" => Ok(Unrun::Done),
        "ended" => parts.next().map(Unrun::Ended),
        "unknown" => Ok(Unrun::Unknown),
        "early" => Ok(Unrun::Early),
        kind => unknown(kind),
    }
}
