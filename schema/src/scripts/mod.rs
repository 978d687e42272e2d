//! The queue's atomic steps, in Lua. Each file documents its KEYS, ARGV and replies.
//!
//! Rules of all scripts: check everything (types, ids, epoch, owner), then write; the same call again gives
//! the same answer; every key is declared. What frees memory carries `allow-oom`, so that a full Redis
//! drains; enqueueing and leasing do not.

use crate::envelope::{EnvelopeError, encode_turn};
use crate::ids::{AgentId, TurnId};
use crate::keys::{Keys, idempotency_name};
use crate::turn::{Priority, Turn};

/// Enqueues turns of one shard, all or none. Call it with [`enqueue_call`].
///
/// Replies an array: `"ok"` followed by `id, fresh` (text, 0 or 1) for each turn in order, or `"full"`,
/// open turns, limit: then nothing was written.
pub const ENQUEUE: &str = concat!("#!lua\n", include_str!("common.lua"), include_str!("enqueue.lua"));

/// Leases the head of an agent's backlog; see `lease.lua`. KEYS: [`agent_keys`].
pub const LEASE: &str =
    concat!("#!lua\n", include_str!("common.lua"), include_str!("conclude.lua"), include_str!("lease.lua"));

/// Ends a leased turn; see `finish.lua`. KEYS: [`agent_keys`].
pub const FINISH: &str = concat!(
    "#!lua flags=allow-oom\n",
    include_str!("common.lua"),
    include_str!("conclude.lua"),
    include_str!("finish.lua")
);

/// Drops a token whose agent has nothing to run; see `discard.lua`.
pub const DISCARD: &str =
    concat!("#!lua flags=allow-oom\n", include_str!("common.lua"), include_str!("discard.lua"));

/// Keeps leases and tokens alive; see `heartbeat.lua`.
pub const HEARTBEAT: &str =
    concat!("#!lua flags=allow-oom\n", include_str!("common.lua"), include_str!("heartbeat.lua"));

/// Gives a leased turn back; see `release.lua`.
pub const RELEASE: &str =
    concat!("#!lua flags=allow-oom\n", include_str!("common.lua"), include_str!("release.lua"));

/// Gives an unleased token back; see `put_back.lua`.
pub const PUT_BACK: &str =
    concat!("#!lua flags=allow-oom\n", include_str!("common.lua"), include_str!("put_back.lua"));

/// Gives agents whose token was lost a new one; see `repair.lua`.
pub const REPAIR: &str =
    concat!("#!lua flags=allow-oom\n", include_str!("common.lua"), include_str!("repair.lua"));

/// Removes consumers of workers that are gone; see `consumers.lua`.
pub const CONSUMERS: &str =
    concat!("#!lua flags=allow-oom\n", include_str!("common.lua"), include_str!("consumers.lua"));

/// Counts the work; see `counts.lua`.
pub const COUNTS: &str =
    concat!("#!lua flags=no-writes\n", include_str!("common.lua"), include_str!("counts.lua"));

/// KEYS of [`LEASE`] and [`FINISH`]: everything an agent and its current turn have. `idempotency` is the turn's, as in
/// its [`crate::keys::BacklogEntry`].
pub fn agent_keys(keys: &Keys, agent: &AgentId, turn: TurnId, idempotency: Option<&str>) -> Vec<String> {
    let turn_key = keys.turn(turn);
    let [interactive, batch] = ready_keys(keys);
    vec![
        keys.agent(agent),
        keys.backlog(agent),
        keys.transcript(agent),
        turn_key.clone(),
        keys.result(turn),
        interactive,
        batch,
        keys.open(),
        keys.events(),
        keys.depth(),
        idempotency.map_or(turn_key, |name| keys.idempotency(name)),
    ]
}

/// The ready streams of a shard, most urgent first: KEYS that many scripts begin with.
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

/// KEYS and ARGV of [`ENQUEUE`] for turns whose ids are all in the shard of `keys`. `max_depth` is how many turns
/// of the shard may be open (waiting or running).
pub fn enqueue_call<'a>(
    keys: &Keys,
    max_depth: u64,
    turns: impl IntoIterator<Item = &'a Turn>,
) -> Result<Call, EnvelopeError> {
    let mut call = Call {
        keys: [&ready_keys(keys)[..], &[keys.open(), keys.depth()]].concat(),
        args: vec![max_depth.to_string().into_bytes()],
    };
    for turn in turns {
        let agent = turn.agent_id();
        let idempotency = turn.idempotency_key.as_ref().map(|key| idempotency_name(&turn.tenant, key));
        let turn_key = keys.turn(turn.id);
        let idempotency_key = idempotency.as_ref().map_or(turn_key.clone(), |name| keys.idempotency(name));
        call.keys.extend([keys.agent(&agent), keys.backlog(&agent), turn_key, idempotency_key]);
        call.args.extend([
            turn.id.to_string().into_bytes(),
            agent.as_str().into(),
            turn.priority.as_str().into(),
            turn.deadline_ms.unwrap_or(0).to_string().into_bytes(),
            u8::from(turn.new_session).to_string().into_bytes(),
            idempotency.unwrap_or_else(|| "-".into()).into_bytes(),
            encode_turn(turn)?,
        ]);
    }
    Ok(call)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shebang_is_the_first_line_and_stands_once() {
        let all = [ENQUEUE, LEASE, FINISH, DISCARD, HEARTBEAT, RELEASE, PUT_BACK, REPAIR, CONSUMERS, COUNTS];
        for script in all {
            assert!(script.starts_with("#!lua"), "{script}");
            assert_eq!(script.matches("#!").count(), 1, "{script}");
        }
    }
}
