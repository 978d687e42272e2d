//! Cancelling turns, waiting or running.

use redis::{ParsingError, Value};
use turnmill_schema::AgentId;
use turnmill_schema::keys::{BacklogEntry, Keys};

use super::script;
use crate::call::{Call, ItemStep};
use crate::reply::{Parts, unknown};
use crate::shared_keys::entry_keys;

/// How long what is left of cancelled turns stays, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct CancelLimits {
    /// Result streams.
    pub result_ttl_ms: u64,
    /// Outcomes.
    pub outcome_ttl_ms: u64,
}

/// Cancels a turn. A running one ends at once too: its worker is fenced, and told. See `cancel.lua`.
#[derive(Clone, Debug)]
pub struct Cancel {
    /// Whose turn it is.
    pub agent: AgentId,
    /// Its place in the backlog.
    pub entry: BacklogEntry,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CancelAnswer {
    /// It is cancelled, now.
    Cancelled,
    /// It had ended before, with this outcome.
    Ended(String),
    /// There is no such turn.
    Unknown,
}

impl ItemStep for Cancel {
    const NAME: &'static str = "cancel";
    const SCRIPT: &'static str = script!(" flags=allow-oom" "conclude.lua" "cancel.lua");
    type Common = CancelLimits;
    type Answer = CancelAnswer;

    fn begin(common: &CancelLimits, call: &mut Call) {
        call.text(common.result_ttl_ms).text(common.outcome_ttl_ms);
    }

    fn add(&self, keys: &Keys, call: &mut Call) {
        call.keys(entry_keys(keys, &self.agent, &self.entry));
        call.text(keys.notices()).text(&self.agent).text(&self.entry);
    }

    fn read(answer: Value) -> Result<CancelAnswer, ParsingError> {
        let mut parts = Parts::of(answer)?;
        match parts.next::<String>()?.as_str() {
            "cancelled" => Ok(CancelAnswer::Cancelled),
            "ended" => parts.next().map(CancelAnswer::Ended),
            "unknown" => Ok(CancelAnswer::Unknown),
            kind => unknown(kind),
        }
    }
}
