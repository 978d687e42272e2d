//! Keys that scripts declare: those that all agents of a shard share, and those of an agent and one of its turns.

use turnmill_schema::keys::{BacklogEntry, Keys};
use turnmill_schema::{AgentId, Priority, TurnId};

/// The KEYS that every script with `common.lua` begins with.
pub(crate) fn shared_keys(keys: &Keys) -> Vec<String> {
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
        keys.streams(),
        keys.deadlines(),
    ]
}

/// The ready streams of a shard, most urgent first.
pub fn ready_keys(keys: &Keys) -> [String; 2] {
    Priority::ALL.map(|priority| keys.ready(priority))
}

/// The KEYS of an item of a script with `conclude.lua`: everything an agent and one of its turns have. `turn` is the turn and
/// its idempotency key, as in its [`BacklogEntry`]. If the caller knows of none, as of a ticket that names no head, the
/// script answers which it is before it touches a key of the turn's.
pub(crate) fn turn_keys(keys: &Keys, agent: &AgentId, turn: Option<(TurnId, Option<&str>)>) -> [String; 7] {
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
pub(crate) fn entry_keys(keys: &Keys, agent: &AgentId, entry: &BacklogEntry) -> [String; 7] {
    turn_keys(keys, agent, Some((entry.turn, entry.idempotency.as_deref())))
}

/// The keys of an agent that waits for a time or a place.
pub(crate) fn waiting_keys(keys: &Keys, agent: &AgentId) -> [String; 3] {
    [keys.agent(agent), keys.backlog(agent), keys.parked(agent.tenant())]
}
