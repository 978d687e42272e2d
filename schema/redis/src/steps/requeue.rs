//! Giving leased turns back: each stays the head of its agent's backlog.

use redis::{ParsingError, Value};
use turnmill_schema::keys::Keys;

use super::finish::LeaseKey;
use super::script;
use crate::call::{Call, ItemStep};
use crate::reply::{Parts, unknown};

/// Who gives turns back, and what bounds their attempts.
#[derive(Clone, Debug)]
pub struct RequeueLimits {
    /// The worker that has the leases.
    pub worker: String,
    /// Attempts in a row without a new token after which a turn fails.
    pub max_attempts: u32,
    /// How long a failed turn's result stream stays, in milliseconds.
    pub result_ttl_ms: u64,
    /// How long its outcome stays, in milliseconds.
    pub outcome_ttl_ms: u64,
}

/// Gives a leased turn back. See `requeue.lua`.
#[derive(Clone, Debug)]
pub struct Requeue {
    /// The lease.
    pub lease: LeaseKey,
    /// The attempt failed: the next one starts this many milliseconds later. None: at once, and the attempt is not counted.
    pub delay_ms: Option<u64>,
    /// Why it failed, in one word.
    pub reason: &'static str,
    /// The same in one sentence.
    pub text: String,
    /// The agent's manifest in its envelope; empty: the old one stays.
    pub manifest: Vec<u8>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequeueAnswer {
    /// It waits again, now or by the same call before.
    Done,
    /// That was its last attempt: it has ended as failed.
    Dead,
    /// The lease was lost. Nothing was written.
    Fenced,
}

impl ItemStep for Requeue {
    const NAME: &'static str = "requeue";
    const SCRIPT: &'static str = script!(" flags=allow-oom" "conclude.lua" "requeue.lua");
    type Common = RequeueLimits;
    type Answer = RequeueAnswer;

    fn begin(common: &RequeueLimits, call: &mut Call) {
        call.text(&common.worker)
            .text(common.max_attempts)
            .text(common.result_ttl_ms)
            .text(common.outcome_ttl_ms);
    }

    fn add(&self, keys: &Keys, call: &mut Call) {
        self.lease.add(keys, call);
        call.text(self.delay_ms.map(|ms| ms.to_string()).unwrap_or_default());
        call.text(self.reason).text(&self.text).arg(self.manifest.as_slice());
    }

    fn read(answer: Value) -> Result<RequeueAnswer, ParsingError> {
        match Parts::of(answer)?.next::<String>()?.as_str() {
            "done" => Ok(RequeueAnswer::Done),
            "dead" => Ok(RequeueAnswer::Dead),
            "fenced" => Ok(RequeueAnswer::Fenced),
            kind => unknown(kind),
        }
    }
}
