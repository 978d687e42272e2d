//! The queue's atomic steps, in Lua. Each file documents its KEYS, ARGV and replies.
//!
//! Rules of all scripts: check everything (types, ids, epoch, owner), then write; the same call again gives
//! the same answer; every key is declared. What lets a full Redis drain carries `allow-oom`; enqueueing does not.
//! Steps that many turns take at once ([`LEASE`], [`FINISH`], …) take many items to a call and answer each: one
//! that cannot be read costs the others nothing.

use crate::ids::{AgentId, TurnId};
use crate::keys::{BacklogEntry, Keys, idempotency_name};
use crate::turn::{Priority, Turn};

/// A script: its flags, then its files.
macro_rules! script {
    ($flags:literal $($file:literal)+) => {
        concat!("#!lua", $flags, "\n", include_str!("common.lua"), $(include_str!($file)),+)
    };
}

/// Enqueues turns of one shard, all or none. Call it with [`enqueue_call`].
///
/// Replies an array: `"ok"` followed by `id, fresh` (text, 0 or 1) for each turn in order, or `"full"`, whose
/// (empty: everybody's, else a tenant), open turns, limit, retry_after_ms: then nothing was written.
pub const ENQUEUE: &str = script!("" "enqueue.lua");
/// Leases heads of agents' backlogs; see `lease.lua`.
pub const LEASE: &str = script!(" flags=allow-oom" "conclude.lua" "lease.lua");
/// Ends leased turns; see `finish.lua`.
pub const FINISH: &str = script!(" flags=allow-oom" "conclude.lua" "finish.lua");
/// Requeues leased turns, at once or for a later attempt; see `requeue.lua`.
pub const REQUEUE: &str = script!(" flags=allow-oom" "conclude.lua" "requeue.lua");
/// Cancels turns; see `cancel.lua`.
pub const CANCEL: &str = script!(" flags=allow-oom" "conclude.lua" "cancel.lua");
/// Keeps leases and tickets alive; see `renew.lua`.
pub const RENEW: &str = script!(" flags=allow-oom" "renew.lua");
/// Returns an unleased ticket; see `return_ticket.lua`.
pub const RETURN_TICKET: &str = script!(" flags=allow-oom" "return_ticket.lua");
/// Gives agents that waited for a time or a place a ticket; see `promote.lua`.
pub const PROMOTE: &str = script!(" flags=allow-oom" "promote.lua");
/// Gives agents whose ticket was lost a new one; see `repair.lua`.
pub const REPAIR: &str = script!(" flags=allow-oom" "repair.lua");
/// Removes consumers of workers that are gone; see `consumers.lua`.
pub const CONSUMERS: &str = script!(" flags=allow-oom" "consumers.lua");
/// Forgets ended turns; see `trim.lua`.
pub const TRIM: &str = script!(" flags=allow-oom" "trim.lua");
/// Forgets dead letters; see `purge.lua`.
pub const PURGE: &str = script!(" flags=allow-oom" "purge.lua");
/// Pauses or resumes an agent, forgets its history or the end of it; see `agent.lua`. Call it with [`agent_call`] or
/// [`rollback_call`].
pub const AGENT: &str = script!(" flags=allow-oom" "agent.lua");
/// Gives an agent that has none a history; see `seed.lua`.
pub const SEED: &str = script!("" "seed.lua");
/// Counts the work; see `counts.lua`.
pub const COUNTS: &str = script!(" flags=no-writes" "counts.lua");
/// Publishes a delta where Redis is full; see `append.lua`, which needs no other file.
pub const APPEND: &str = concat!("#!lua flags=allow-oom\n", include_str!("append.lua"));

/// Commits a manifest during or after a lease; see `advance.lua`, which needs no other file.
pub const ADVANCE: &str = concat!("#!lua flags=allow-oom\n", include_str!("advance.lua"));

/// Keeps or gives up the right to remove garbage from the object store; see `collector.lua`, which needs no other file.
pub const COLLECTOR: &str = concat!("#!lua flags=allow-oom\n", include_str!("collector.lua"));

/// The KEYS that every script but [`APPEND`], [`ADVANCE`] and [`COLLECTOR`] begins with: those that all agents of a shard share.
pub fn shared_keys(keys: &Keys) -> Vec<String> {
    let [interactive, batch] = ready_keys(keys);
    vec![
        interactive,
        batch,
        keys.open(),
        keys.counters(),
        keys.delayed(),
        keys.events(),
        keys.dead(),
        keys.ended(),
        keys.capped(),
        keys.paused(),
    ]
}

/// The KEYS of an item of [`LEASE`], [`FINISH`], [`REQUEUE`] and [`CANCEL`]: everything an agent and one of its turns
/// have. `turn` is the turn and its idempotency key, as in its [`BacklogEntry`]; where the caller knows of none, as
/// of a ticket that names no head, the script answers which it is before it touches a key of the turn's.
pub fn turn_keys(keys: &Keys, agent: &AgentId, turn: Option<(TurnId, Option<&str>)>) -> [String; 7] {
    let agent_key = keys.agent(agent);
    let (turn_key, result) = match turn {
        Some((turn, _)) => (keys.turn(turn), keys.result(turn)),
        None => (agent_key.clone(), agent_key.clone()),
    };
    let idempotency = turn.and_then(|(_, name)| name).map(|name| keys.idempotency(name));
    [
        agent_key,
        keys.backlog(agent),
        keys.transcript(agent),
        turn_key.clone(),
        result,
        idempotency.unwrap_or(turn_key),
        keys.parked(agent.tenant()),
    ]
}

/// [`turn_keys`] of a turn in its backlog.
pub fn entry_keys(keys: &Keys, agent: &AgentId, entry: &BacklogEntry) -> [String; 7] {
    turn_keys(keys, agent, Some((entry.turn, entry.idempotency.as_deref())))
}

/// The ready streams of a shard, most urgent first.
pub fn ready_keys(keys: &Keys) -> [String; 2] {
    Priority::ALL.map(|priority| keys.ready(priority))
}

/// KEYS and ARGV of a script.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// KEYS, all in one slot.
    pub keys: Vec<String>,
    /// ARGV.
    pub args: Vec<Vec<u8>>,
}

impl Call {
    /// A call with the shared keys of a shard and no arguments yet.
    pub fn new(keys: &Keys) -> Self {
        Self { keys: shared_keys(keys), args: Vec::new() }
    }

    /// Adds keys.
    pub fn keys(&mut self, keys: impl IntoIterator<Item = String>) -> &mut Self {
        self.keys.extend(keys);
        self
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: impl Into<Vec<u8>>) -> &mut Self {
        self.args.push(arg.into());
        self
    }

    /// Adds an argument as text.
    pub fn text(&mut self, arg: impl ToString) -> &mut Self {
        self.arg(arg.to_string())
    }
}

/// What an operator does to an agent: an argument of [`AGENT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentAction {
    /// No more of its turns are leased; one that runs goes on.
    Pause,
    /// Turns of a paused or halted agent are leased again.
    Resume,
    /// Its later turns wait for an operator when one becomes a dead letter.
    Halt,
    /// Its later turns go on when one becomes a dead letter.
    Skip,
    /// Its history and its manifest are forgotten; refused while a turn runs, which would write to it, or waits that has
    /// published tokens, which would go on after another history.
    Reset,
}

impl AgentAction {
    /// The name used on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Halt => "halt",
            Self::Skip => "skip",
            Self::Reset => "reset",
        }
    }
}

/// Which end of an agent's history is to be forgotten, and what the caller knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rollback {
    /// How many entries stay, at least one.
    pub stay: usize,
    /// The turn of the last entry that stays.
    pub to: TurnId,
    /// How many entries there are.
    pub entries: usize,
    /// The turn of the last one.
    pub last: TurnId,
}

/// KEYS and ARGV of [`AGENT`]. `head`: the head of the agent's backlog that the caller knows of; where that is another
/// one, and matters, the script says which.
pub fn agent_call(keys: &Keys, agent: &AgentId, action: AgentAction, head: Option<&BacklogEntry>) -> Call {
    act_call(keys, agent, action.as_str(), head)
}

/// The same for forgetting the end of an agent's history.
pub fn rollback_call(keys: &Keys, agent: &AgentId, rollback: Rollback, head: Option<&BacklogEntry>) -> Call {
    let Rollback { stay, to, entries, last } = rollback;
    let mut call = act_call(keys, agent, "rollback", head);
    call.text(stay).text(to).text(entries).text(last);
    call
}

fn act_call(keys: &Keys, agent: &AgentId, action: &str, head: Option<&BacklogEntry>) -> Call {
    let agent_key = keys.agent(agent);
    let result = head.map_or_else(|| agent_key.clone(), |head| keys.result(head.turn));
    let mut call = Call::new(keys);
    call.keys([agent_key, keys.backlog(agent), keys.parked(agent.tenant()), keys.transcript(agent), result]);
    call.text(agent).text(action).text(head.map(ToString::to_string).unwrap_or_default());
    call
}

/// How many turns may be open (waiting or running) in a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DepthLimits {
    /// Of everybody.
    pub queue: u64,
    /// Of one tenant.
    pub tenant: u64,
}

/// KEYS and ARGV of [`ENQUEUE`] for turns whose ids are all in the shard of `keys`, each with its stored form
/// ([`crate::envelope::encode_turn`]).
pub fn enqueue_call<'a>(
    keys: &Keys,
    limits: DepthLimits,
    turns: impl IntoIterator<Item = (&'a Turn, Vec<u8>)>,
) -> Call {
    let mut call = Call::new(keys);
    call.text(limits.queue).text(limits.tenant);
    for (turn, stored) in turns {
        let agent = turn.agent_id();
        let idempotency = turn.idempotency_key.as_ref().map(|key| idempotency_name(&turn.tenant, key));
        let turn_key = keys.turn(turn.id);
        let idempotency_key = idempotency.as_ref().map_or(turn_key.clone(), |name| keys.idempotency(name));
        call.keys([keys.agent(&agent), keys.backlog(&agent), turn_key, idempotency_key]);
        call.text(turn.id).text(&agent).text(turn.priority.as_str());
        call.text(turn.deadline_ms.unwrap_or(0)).text(turn.not_before_ms.unwrap_or(0));
        call.text(u8::from(turn.new_session)).arg(idempotency.unwrap_or_else(|| "-".into())).arg(stored);
    }
    call
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shebang_is_the_first_line_and_stands_once() {
        let all = [
            ENQUEUE,
            LEASE,
            FINISH,
            REQUEUE,
            CANCEL,
            RENEW,
            RETURN_TICKET,
            PROMOTE,
            REPAIR,
            CONSUMERS,
            TRIM,
            PURGE,
            AGENT,
            SEED,
            COUNTS,
            APPEND,
            ADVANCE,
            COLLECTOR,
        ];
        for script in all {
            assert!(script.starts_with("#!lua"), "{script}");
            assert_eq!(script.matches("#!").count(), 1, "{script}");
        }
    }
}
