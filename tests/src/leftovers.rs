//! What a queue in Redis holds that belongs to nobody.
//!
//! [`left`] looks at a queue at rest: every turn has ended, and the one who looks is alone with it. [`check`] is for tests: it first
//! cancels every open turn, so that whatever the test left open is accounted for.

use std::collections::{BTreeMap, HashSet};

use redis::streams::{StreamId, StreamPendingReply, StreamRangeReply};
use redis::{Commands, Connection, RedisResult};
use turnmill_redis::steps::{Cancel, UnrunLimits};
use turnmill_redis::{Call, ItemStep};
use turnmill_schema::keys::{BacklogEntry, EndedEntry, GROUP, Keys};
use turnmill_schema::{AgentId, Priority};

/// Cancels every open turn of the shard, and panics if anything is left that belongs to nobody, or if nobody may look: a test that
/// locks itself out, or breaks keys on purpose, says so and does not come here (see [`crate::redis_queue::RedisQueue::broken`]).
pub fn check(url: &str, keys: &Keys) {
    let client = redis::Client::open(url).expect("a URL");
    let mut redis = client.get_connection().expect("the server answers");
    if let Err(error) = redis::cmd("PING").query::<String>(&mut redis) {
        panic!("nobody can look what is left ({error}); a test that means this says so with broken()");
    }
    cancel_all(&mut redis, keys);
    let left = of(&mut redis, keys).expect("the server answers");
    assert!(left.is_empty(), "every turn has ended, and this is left: {left:#?}");
}

/// What the shard in the Redis at `url` holds that belongs to nobody if every turn has ended: keys, entries of ready streams, and
/// counts of what is not there. Each in words.
///
/// # Errors
/// Redis does not answer, or a key is of another type than ours are.
pub fn left(url: &str, keys: &Keys) -> RedisResult<Vec<String>> {
    of(&mut redis::Client::open(url)?.get_connection()?, keys)
}

fn of(redis: &mut Connection, keys: &Keys) -> RedisResult<Vec<String>> {
    let mut left = of_keys(redis, keys)?;
    for priority in Priority::ALL {
        left.extend(of_stream(redis, &keys.ready(priority))?);
    }
    left.extend(of_counters(redis, keys)?);
    Ok(left)
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
fn of_keys(redis: &mut Connection, keys: &Keys) -> RedisResult<Vec<String>> {
    let prefix = keys.open().strip_suffix("open").expect("the name of the key ends so").to_owned();
    let all: HashSet<String> = redis.keys(format!("{prefix}*"))?;
    let mut left = Vec::new();
    for key in &all {
        if !is_owned(redis, &all, &prefix, key)? {
            left.push(key.clone());
        }
    }
    left.sort();
    Ok(left)
}

fn is_owned(redis: &mut Connection, all: &HashSet<String>, prefix: &str, key: &str) -> RedisResult<bool> {
    let has = |kind: &str, id: &str| all.contains(&format!("{prefix}{kind}:{id}"));
    let mut field =
        |field: &str| redis.hget::<_, _, Option<String>>(key, field).map(Option::unwrap_or_default);
    let kind = &key[prefix.len()..];
    let (kind, id) = kind.split_once(':').unwrap_or((kind, ""));
    Ok(match kind {
        "agent" => {
            let rests = ["idle", "paused", "halted"].contains(&field("state")?.as_str());
            rests && field("ticket")?.is_empty() && !AgentId::from_wire(id.to_owned()).is_lone()
        }
        "turn" => field("state")? == "ended",
        "transcript" => has("agent", id),
        "result" => has("turn", id),
        // Nothing is open, waits, or is running.
        "open" | "backlog" | "delayed" | "deadlines" | "parked" | "capped" => false,
        "ready" | "counters" | "dead" | "ended" | "streams" | "events" | "paused" | "sweep-cursor"
        | "workers" => true,
        // Their makers may be dead: they go by themselves.
        "idem" | "worker" | "order" | "sweeper" | "collector" => expires(redis, key)?,
        _ => false,
    })
}

/// Whether the key goes by itself, or is gone already.
fn expires(redis: &mut Connection, key: &str) -> RedisResult<bool> {
    const NEVER: i64 = -1;
    Ok(redis.pttl::<_, i64>(key)? != NEVER)
}

/// Entries of a ready stream, read or not.
fn of_stream(redis: &mut Connection, ready: &str) -> RedisResult<Option<String>> {
    let entries: u64 = redis.xlen(ready)?;
    let pending: RedisResult<StreamPendingReply> = redis.xpending(ready, GROUP);
    let pending = match pending {
        Ok(pending) => pending.count(),
        // Nobody ever read the stream.
        Err(error) if error.code() == Some("NOGROUP") => 0,
        Err(error) => return Err(error),
    };
    Ok((entries > 0 || pending > 0).then(|| format!("{ready}: {entries} entries, {pending} pending")))
}

/// Counters that do not say what the indexes say.
fn of_counters(redis: &mut Connection, keys: &Keys) -> RedisResult<Option<String>> {
    let mut counters: BTreeMap<String, i64> = redis.hgetall(keys.counters())?;
    counters.retain(|name, _| name != "enqueued" && !name.starts_with("ended:"));
    let ended: Vec<String> = redis.lrange(keys.ended(), 0, -1)?;
    let of_turns: u64 =
        ended.iter().filter_map(|text| EndedEntry::parse(text)).map(|entry| entry.turn_bytes).sum();
    let streams: Vec<String> = redis.zrange(keys.streams(), 0, -1)?;
    let of_streams: u64 = streams.iter().filter_map(|text| text.split_once(' ')?.1.parse::<u64>().ok()).sum();
    let dead: StreamRangeReply = redis.xrange_all(keys.dead())?;
    let of_dead: u64 = dead.ids.iter().filter_map(|letter: &StreamId| letter.get::<u64>("bytes")).sum();
    let expected = [("dead_bytes", of_dead), ("retained_bytes", of_turns + of_streams)];
    let expected: BTreeMap<String, i64> = expected
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(name, bytes)| (name.to_owned(), bytes as i64))
        .collect();
    Ok((counters != expected)
        .then(|| format!("counters are {counters:?}, and what is there is {expected:?}")))
}

#[cfg(test)]
mod tests {
    use turnmill_schema::{Name, TurnId};

    use super::*;
    use crate::redis_server::RedisServer;

    struct Shard {
        redis: RedisServer,
        keys: Keys,
    }

    impl Shard {
        /// A shard in which one turn of an agent has ended.
        fn at_rest() -> (Self, TurnId) {
            let shard =
                Self { redis: RedisServer::start(), keys: Keys::new(&Name::new("q").expect("a name"), 0) };
            let (keys, turn) = (&shard.keys, TurnId::new(0));
            let agent = AgentId::from_wire("t/a".into());
            let mut setup = redis::pipe();
            setup.hset_multiple(keys.agent(&agent), &[("state", "idle"), ("ticket", "")]);
            setup.rpush(keys.transcript(&agent), "said").hset(keys.turn(turn), "state", "ended");
            setup.xadd(keys.result(turn), "*", &[("event", "end")]);
            setup.rpush(keys.ended(), format!("{turn} 1 70 30")).zadd(
                keys.streams(),
                format!("{turn} 30"),
                1,
            );
            setup.hset_multiple(
                keys.counters(),
                &[("retained_bytes", 100), ("enqueued", 1), ("ended:completed", 1)],
            );
            setup.pset_ex(keys.idempotency("t/k"), turn.to_string(), 60_000);
            setup.hset(keys.worker("killed"), "name", "w").pexpire(keys.worker("killed"), 60_000);
            setup.xgroup_create_mkstream(keys.ready(Priority::Batch), GROUP, 0);
            shard.write(&setup);
            (shard, turn)
        }

        fn write(&self, commands: &redis::Pipeline) {
            let client = redis::Client::open(self.redis.url()).expect("a URL");
            let () = commands
                .query(&mut client.get_connection().expect("the server answers"))
                .expect("it is written");
        }

        fn left(&self) -> Vec<String> {
            left(&self.redis.url(), &self.keys).expect("the server answers")
        }
    }

    #[test]
    fn a_shard_at_rest_has_nothing_left() {
        assert_eq!(Shard::at_rest().0.left(), [""; 0]);
    }

    #[test]
    fn whatever_has_no_owner_is_left() {
        let (shard, turn) = Shard::at_rest();
        let keys = &shard.keys;
        let (stray, lone) = (AgentId::from_wire("t/stray".into()), AgentId::from_wire("t/~1".into()));
        let gone = TurnId::new(0);
        let mut leaks = redis::pipe();
        leaks.hset(keys.turn(turn), "state", "leased").xadd(keys.result(gone), "*", &[("event", "end")]);
        leaks.rpush(keys.transcript(&stray), "said").rpush(keys.backlog(&stray), "x");
        leaks.hset(keys.agent(&lone), "state", "idle").zadd(keys.open(), "t/stray", 1);
        leaks.set(keys.idempotency("t/for-ever"), "x").set(format!("{}-new", keys.collector()), "x");
        shard.write(&leaks);
        let mut expected = vec![
            keys.turn(turn),
            keys.result(gone),
            keys.transcript(&stray),
            keys.backlog(&stray),
            keys.agent(&lone),
            keys.open(),
            keys.idempotency("t/for-ever"),
            format!("{}-new", keys.collector()),
        ];
        expected.sort();
        assert_eq!(shard.left(), expected);
    }

    #[test]
    fn what_nobody_may_look_at_is_an_error() {
        let (shard, _) = Shard::at_rest();
        shard.write(redis::pipe().cmd("ACL").arg(&["SETUSER", "default", "-xpending"]));
        let error = left(&shard.redis.url(), &shard.keys).expect_err("it may not ask what is pending");
        assert_eq!(error.code(), Some("NOPERM"), "{error}");
    }

    #[test]
    #[should_panic(expected = "nobody can look what is left")]
    fn a_server_that_lets_nobody_in_is_not_without_leftovers() {
        let (shard, _) = Shard::at_rest();
        shard.write(redis::pipe().cmd("CONFIG").arg(&["SET", "requirepass", "secret"]));
        check(&shard.redis.url(), &shard.keys);
    }

    #[test]
    fn tickets_read_or_not_and_wrong_counts_are_left() {
        let (shard, _) = Shard::at_rest();
        let ready = shard.keys.ready(Priority::Batch);
        let mut leaks = redis::pipe();
        leaks.xadd(&ready, "1-0", &[("agent", "t/a")]).xadd(&ready, "2-0", &[("agent", "t/b")]);
        leaks.cmd("XREADGROUP").arg(&["GROUP", GROUP, "w", "COUNT", "1", "STREAMS", &ready, ">"]);
        // Deleted and not acknowledged: it stays pending.
        leaks.xdel(&ready, &["1-0"]).hincr(shard.keys.counters(), "t:leased", -1);
        shard.write(&leaks);
        let left = shard.left();
        assert_eq!(left[0], format!("{ready}: 1 entries, 1 pending"));
        assert!(left[1].starts_with("counters are") && left[1].contains("\"t:leased\": -1"), "{left:?}");
        assert_eq!(left.len(), 2);
    }
}
