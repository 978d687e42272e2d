//! What a result stream says about a turn: Begin, Delta*, End.
//!
//! Invariants: a stream has exactly one End and it is last; deltas of all attempts together give every token
//! index once (a reader drops indices it has seen, after a Redis rollback for example).

use serde::{Deserialize, Serialize};

use crate::delta::Delta;

/// One entry of a result stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Event {
    /// A worker leased the turn; the first entry of each attempt.
    Begin(Begin),
    /// Tokens were made.
    Delta(Delta),
    /// The terminal result.
    End(End),
}

/// An attempt starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// The lease's epoch; entries of lower epochs are from workers that lost the turn.
    pub epoch: u64,
    /// How many tokens earlier attempts have published.
    pub resume_from: u32,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The worker's consumer id: its name, and what tells its process from others of that name.
    pub worker: String,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The reply is whole.
    Completed,
    /// It can not or could not be run; `error` says why.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
    /// Its deadline passed.
    Expired,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 4] = [Self::Completed, Self::Failed, Self::Cancelled, Self::Expired];

    /// The name used on the wire, in metrics and by the CLI.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

/// Why a turn became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeadReason {
    /// Its last attempts made no token: it kills its workers, or they cannot compute it.
    Attempts,
    /// It can never run: out of range, longer than context or pool.
    Rejected,
    /// Its envelope, payload or history cannot be read.
    Unreadable,
}

impl DeadReason {
    /// The name used on the wire, in metrics and by the CLI.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attempts => "attempts",
            Self::Rejected => "rejected",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Why generation ended (OpenAI's words).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// An end-of-sequence token, a stop token or a stop string.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
    /// The model called tools, and waits for their results.
    #[serde(rename = "tool_calls")]
    ToolCalls,
}

impl FinishReason {
    /// The name used on the wire and by the CLI.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

/// Which of a turn's stop rules ended its reply; the model's own end is none of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopRule {
    /// A stop string.
    Text(String),
    /// A stop token.
    Token(u32),
}

/// Token counts of a turn (OpenAI's words).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens the model had to know before its first new token, history included.
    pub prompt_tokens: u32,
    /// How many of those were found in the KV cache.
    pub cached_tokens: u32,
    /// Tokens made, the ending token included.
    pub completion_tokens: u32,
    /// How many of those are thoughts.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reasoning_tokens: u32,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Where a turn's time went, in milliseconds since it was enqueued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Until the lease of the attempt that ended it.
    pub queued_ms: u64,
    /// Until the first token of the reply was published; absent if none was.
    pub first_token_ms: Option<u64>,
    /// Until the end.
    pub total_ms: u64,
}

/// The terminal result. The text is that of the deltas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// How it ended.
    pub outcome: Outcome,
    /// Why generation ended, for completed turns.
    #[serde(default)]
    pub finish: Option<FinishReason>,
    /// Which stop string or stop token ended the reply, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<StopRule>,
    /// One sentence saying what was wrong and what to do, unless completed.
    #[serde(default)]
    pub error: Option<String>,
    /// Token counts.
    #[serde(default)]
    pub usage: Usage,
    /// Times.
    #[serde(default)]
    pub timing: Timing,
    /// The worker that ended it; absent where no worker had it.
    #[serde(default)]
    pub worker: Option<String>,
}
