//! What a queue in Redis holds that belongs to nobody: looked for once every open turn is cancelled, so that whatever the test left
//! open is accounted for.

use std::collections::{BTreeMap, HashSet};

use redis::streams::{StreamId, StreamPendingReply, StreamRangeReply};
use redis::{Commands, Connection};
use turnmill_redis::steps::{Cancel, UnrunLimits};
use turnmill_redis::{Call, ItemStep};
use turnmill_schema::keys::{BacklogEntry, EndedEntry, GROUP, Keys};
use turnmill_schema::{AgentId, Priority};

/// Cancels every open turn of the shard, and panics if anything is left that belongs to nobody.
pub fn check(url: &str, keys: &Keys) {
    let client = redis::Client::open(url).expect("a URL");
    let mut redis = client.get_connection().expect("the server answers");
    if redis::cmd("PING").query::<String>(&mut redis).is_err() {
        // The test gave the server a password, and nobody can look.
        return;
    }
    cancel_all(&mut redis, keys);
    let mut left = of_keys(&mut redis, keys);
    left.extend(
        Priority::ALL.into_iter().filter_map(|priority| of_stream(&mut redis, &keys.ready(priority))),
    );
    left.extend(of_counters(&mut redis, keys));
    assert!(left.is_empty(), "every turn has ended, and this is left: {left:#?}");
}

fn cancel_all(redis: &mut Connection, keys: &Keys) {
    let agents: Vec<String> = redis.zrange(keys.open(), 0, -1).expect("ZRANGE");
    for agent in agents.into_iter().map(AgentId::from_wire) {
        let backlog: Vec<String> = redis.lrange(keys.backlog(&agent), 0, -1).expect("LRANGE");
        // From the last one on, so that nobody is made runnable in between.
        for text in backlog.into_iter().rev() {
            let mut call = Call::new(keys);
            Cancel::begin(&UnrunLimits { result_ttl_ms: 60_000, outcome_ttl_ms: 60_000 }, &mut call);
            let entry = BacklogEntry::parse(&text).expect("backlogs hold turns");
            Cancel { agent: agent.clone(), entry }.add(keys, &mut call);
            let script = redis::Script::new(Cancel::SCRIPT);
            let answer = script.key(&call.keys[..]).arg(&call.args[..]).invoke(redis);
            let (_, answers): (u64, Vec<Vec<String>>) = answer.expect("the step is answered");
            assert_eq!(answers[0][0], "done", "{text} of {agent}");
        }
    }
}

/// Keys that should be gone, or whose owner is.
fn of_keys(redis: &mut Connection, keys: &Keys) -> Vec<String> {
    let prefix = keys.open().strip_suffix("open").expect("the name of the key ends so").to_owned();
    let all: HashSet<String> = redis.keys(format!("{prefix}*")).expect("KEYS");
    let has = |kind: &str, id: &str| all.contains(&format!("{prefix}{kind}:{id}"));
    let mut field = |key: &str, field: &str| {
        redis.hget::<_, _, Option<String>>(key, field).expect("HGET").unwrap_or_default()
    };
    let mut is_owned = |key: &String| {
        let kind = &key[prefix.len()..];
        let (kind, id) = kind.split_once(':').unwrap_or((kind, ""));
        match kind {
            "agent" => {
                let state = field(key, "state");
                let rests = ["idle", "paused", "halted"].contains(&state.as_str());
                rests && field(key, "ticket").is_empty() && !AgentId::from_wire(id.to_owned()).is_lone()
            }
            "turn" => field(key, "state") == "ended",
            "transcript" => has("agent", id),
            "result" => has("turn", id),
            // Nothing is open, waits, or is running.
            "open" | "backlog" | "delayed" | "deadlines" | "parked" | "capped" => false,
            "ready" | "counters" | "dead" | "ended" | "streams" | "events" | "paused" | "sweeper"
            | "sweep-cursor" => true,
            "idem" | "workers" | "worker" | "order" | "collector" => true,
            _ => false,
        }
    };
    let mut left: Vec<String> = all.iter().filter(|key| !is_owned(key)).cloned().collect();
    left.sort();
    left
}

/// Entries of a ready stream, read or not.
fn of_stream(redis: &mut Connection, ready: &str) -> Option<String> {
    let entries: u64 = redis.xlen(ready).expect("XLEN");
    // Without a group nothing is pending.
    let pending = redis.xpending(ready, GROUP).map_or(0, |pending: StreamPendingReply| pending.count());
    (entries > 0 || pending > 0).then(|| format!("{ready}: {entries} entries, {pending} pending"))
}

/// Counters that do not say what the indexes say.
fn of_counters(redis: &mut Connection, keys: &Keys) -> Vec<String> {
    let mut counters: BTreeMap<String, u64> = redis.hgetall(keys.counters()).expect("HGETALL");
    counters.retain(|name, _| name != "enqueued" && !name.starts_with("ended:"));
    let ended: Vec<String> = redis.lrange(keys.ended(), 0, -1).expect("LRANGE");
    let of_turns: u64 =
        ended.iter().filter_map(|text| EndedEntry::parse(text)).map(|entry| entry.turn_bytes).sum();
    let streams: Vec<String> = redis.zrange(keys.streams(), 0, -1).expect("ZRANGE");
    let of_streams: u64 = streams.iter().filter_map(|text| text.split_once(' ')?.1.parse::<u64>().ok()).sum();
    let dead: StreamRangeReply = redis.xrange_all(keys.dead()).expect("XRANGE");
    let of_dead: u64 = dead.ids.iter().filter_map(|letter: &StreamId| letter.get::<u64>("bytes")).sum();
    let expected = [("dead_bytes", of_dead), ("retained_bytes", of_turns + of_streams)];
    let expected: BTreeMap<String, u64> = expected
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .collect();
    (counters != expected)
        .then(|| format!("counters are {counters:?}, and what is there is {expected:?}"))
        .into_iter()
        .collect()
}
