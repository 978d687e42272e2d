//! The Redis adapter against a real Redis: the conformance suite, and what only Redis can get wrong.

use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use turnmill_redis::steps::{DepthLimits, Enqueue, EnqueueTurn, KeepCollector, Order, Seed, Seeded};
use turnmill_redis::{Fault, RESPONSE_TIMEOUT, Server};
use turnmill_schema::envelope::{EnvelopeError, decode, encode, encode_turn};
use turnmill_schema::keys::{FIELD_END, GROUP, Keys, ORDER_DRAIN, Queue};
use turnmill_schema::{
    AgentId, Event, IdempotencyKey, Name, Outcome, Priority, TenantName, TranscriptEntry, Turn, TurnId,
    WorkerStatus,
};
use turnmill_tests::broker_conformance::{
    LEASE_MS, PATIENCE, ROOM, TestQueue, WorkerLimits, claim, delta, end, ending, ending_with, enqueue,
    entry, read_one, reclaim, reclaim_one, turn,
};
use turnmill_tests::memory_broker::NotEnqueued;
use turnmill_tests::redis_queue::RedisQueue;
use turnmill_tests::redis_server::RedisServer;
use turnmill_worker::broker::redis::{BrokerSettings, RedisBroker, check_server};
use turnmill_worker::broker::{Advice, Broker, BrokerError};
use turnmill_worker::config::{RedisEndpoint, RedisUrl};

turnmill_tests::broker_conformance!(RedisQueue::start());

#[tokio::test]
async fn an_undecodable_envelope_surfaces_and_the_turn_can_be_ended() {
    let queue = RedisQueue::start();
    let ids = enqueue(&queue, &[turn(Some("a"), "1"), turn(Some("a"), "2")]).await;
    let () = queue.command(&["HSET", &queue.keys().turn(ids[0]), "envelope", "\u{7}future"]).await;
    let _: u64 = queue.command(&["HDEL", &queue.keys().turn(ids[1]), "envelope"]).await;
    let broker = queue.worker("w").await;
    for expected in [EnvelopeError::UnknownVersion { version: 7 }, EnvelopeError::Empty] {
        let claim = claim(&broker).await;
        assert_eq!(claim.turn, Err(expected));
        broker.finish(&claim.lease, &ending(0, Outcome::Failed)).await.expect("ended");
    }
}

/// Whoever wrote the history, and in whatever order an entry's fields are.
#[tokio::test]
async fn the_last_turn_of_a_given_history_can_be_followed() {
    let queue = RedisQueue::start();
    let last = TurnId::new(0);
    let ours =
        TranscriptEntry { turn: last, messages: Vec::new(), keep: 0, tokens: vec![1], rendering: None };
    let foreign = serde_json::json!({"keep": 0, "messages": [], "tokens": [1], "turn": last});
    for (agent, entry) in [("a", encode(&ours)), ("b", encode(&foreign))] {
        let entry = entry.expect("encodes");
        let next = turn(Some(agent), "next");
        let seed = Seed {
            agent: &next.agent_id(),
            seeding: agent.to_owned(),
            on_dead: "skip",
            manifest: Vec::new(),
            entries: vec![&entry],
        };
        assert_eq!(queue.run(&seed).await, Seeded::Done);
        let stale = queue.enqueue_after(&[(&next, Some(TurnId::new(0)))], ROOM).await;
        assert_eq!(stale, Err(NotEnqueued::Stale { place: 0, head: Some(last) }), "{agent}");
        assert_eq!(queue.enqueue_after(&[(&next, Some(last))], ROOM).await, Ok(vec![next.id]), "{agent}");
    }
}

/// Steps that the server was asked for.
async fn steps(queue: &RedisQueue) -> u64 {
    let stats: String = queue.command(&["INFO", "commandstats"]).await;
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
    calls.and_then(|calls| calls.split(',').next()?.parse().ok()).expect("steps were taken")
}

/// Redis serves nobody else while it gathers them.
#[tokio::test]
async fn long_histories_are_leased_a_few_to_a_call() {
    const AGENTS: usize = 8;
    let (queue, said) = (RedisQueue::start(), "x".repeat(300_000));
    let broker = queue.worker("w").await;
    let turns = || (0..AGENTS).map(|i| turn(Some(&format!("a{i}")), "1")).collect::<Vec<Turn>>();
    enqueue(&queue, &turns()).await;
    for _ in 0..AGENTS {
        let claim = claim(&broker).await;
        let entry = entry(&claim.lease, &said, 0, &[1]);
        broker.finish(&claim.lease, &ending_with(entry, Outcome::Completed)).await.expect("ended");
    }
    enqueue(&queue, &turns()).await;
    // One that knows none of them.
    let (broker, mut tickets) = (queue.worker("other").await, Vec::new());
    while tickets.len() < AGENTS {
        tickets.extend(broker.read(AGENTS - tickets.len()).await.expect("answered"));
    }
    let before = steps(&queue).await;
    let claims = futures::future::join_all(tickets.iter().map(|ticket| broker.lease(ticket))).await;
    assert!(steps(&queue).await > before + 1, "one call answered with all histories");
    for claim in claims {
        let claim = claim.expect("answered").expect("ours");
        assert!(claim.history.messages[0].content == said, "its history is not whole");
    }
}

/// Idle workers look several times a second: a tenant that runs as many turns as it may costs a look, and no step.
#[tokio::test]
async fn agents_without_a_place_take_no_step_until_there_is_one() {
    const AGENTS: usize = 20;
    let queue = RedisQueue::start();
    let limits = WorkerLimits { tenant_max_running: 1, ..WorkerLimits::default() };
    let broker = queue.worker_with("w", limits).await;
    let turns: Vec<Turn> = (0..AGENTS).map(|i| turn(Some(&format!("a{i}")), "1")).collect();
    enqueue(&queue, &turns).await;
    let running = claim(&broker).await;
    for _ in 1..AGENTS {
        let ticket = read_one(&broker).await;
        assert!(broker.lease(&ticket).await.expect("answered").is_none(), "it is parked");
    }
    let before = steps(&queue).await;
    for _ in 0..10 {
        broker.promote().await.expect("answered");
    }
    assert_eq!(steps(&queue).await, before);
    broker.finish(&running.lease, &ending(0, Outcome::Completed)).await.expect("ended");
    let before = steps(&queue).await;
    broker.promote().await.expect("answered");
    assert!(steps(&queue).await > before, "somebody has a place now");
    assert_eq!(claim(&broker).await.lease.attempt, 1);
}

#[tokio::test]
async fn a_lone_turn_leaves_its_result_and_outcome_only_and_both_expire() {
    let queue = RedisQueue::start();
    let broker = queue.worker("w").await;
    let keys = queue.keys();
    let before: Vec<String> = queue.dump().await.into_keys().collect();
    let lone = Turn { idempotency_key: IdempotencyKey::new("k").ok(), ..turn(None, "1") };
    let id = enqueue(&queue, std::slice::from_ref(&lone)).await[0];
    let claim = claim(&broker).await;
    let entry = entry(&claim.lease, "1", 0, &[1]);
    broker.finish(&claim.lease, &ending_with(entry, Outcome::Completed)).await.expect("ended");
    let idempotency = keys.idempotency("test/k");
    let mut expected = before;
    expected.extend([
        keys.result(id),
        keys.turn(id),
        idempotency.clone(),
        keys.events(),
        keys.counters(),
        keys.ended(),
        keys.streams(),
    ]);
    expected.sort();
    assert_eq!(queue.dump().await.into_keys().collect::<Vec<_>>(), expected);

    let ttl = async |key: &str| queue.command::<i64>(&["PTTL", key]).await;
    assert!((1..=60_000).contains(&ttl(&keys.result(id)).await));
    assert!((60_001..=120_000).contains(&ttl(&keys.turn(id)).await));
    assert!((60_001..=120_000).contains(&ttl(&idempotency).await));
    let outcome: Vec<u8> = queue.command(&["HGET", &keys.turn(id), FIELD_END]).await;
    assert_eq!(decode(&outcome), Ok(Event::End(end(Outcome::Completed))));
    let envelope: Vec<u8> = queue.command(&["HGET", &keys.turn(id), "envelope"]).await;
    assert_eq!(envelope, b"", "the prompt takes no memory any more");
    let events: u64 = queue.command(&["XLEN", &keys.events()]).await;
    assert_eq!(events, 1);
}

#[tokio::test]
async fn a_wrong_type_under_one_of_our_keys_writes_nothing() {
    let agent = turn(Some("a"), "1").agent_id();
    for what in ["transcript", "events", "counters", "open", "result"] {
        let queue = RedisQueue::start().broken();
        let broker = queue.worker("w").await;
        let id = enqueue(&queue, &[turn(Some("a"), "1"), turn(Some("a"), "2")]).await[0];
        let claim = claim(&broker).await;
        let keys = queue.keys();
        let key = match what {
            "transcript" => keys.transcript(&agent),
            "events" => keys.events(),
            "counters" => keys.counters(),
            "open" => keys.open(),
            _ => keys.result(id),
        };
        let _: u64 = queue.command(&["DEL", &key]).await;
        let _: u64 = queue.command(&["SADD", &key, "foreign"]).await;
        let before = queue.dump().await;
        let entry = entry(&claim.lease, "1", 0, &[1]);
        let refused = broker.finish(&claim.lease, &ending_with(entry, Outcome::Completed)).await;
        let Err(error @ BrokerError::Queue(Fault::Refused { .. })) = refused else {
            panic!("{what}: {refused:?}")
        };
        assert!(error.to_string().contains("WRONGTYPE") && error.to_string().contains(&key), "{error}");
        assert_eq!(error.advice(), Advice::Reject, "trying again does not mend it");
        assert_eq!(queue.dump().await, before, "{what}");
        if what == "counters" || what == "open" {
            assert!(queue.try_enqueue(&[turn(Some("b"), "1")], ROOM).await.is_err());
            assert_eq!(queue.dump().await, before, "{what}");
        }
    }
}

#[tokio::test]
async fn a_result_stream_that_disappeared_fences_and_is_begun_anew() {
    let queue = RedisQueue::start();
    let id = enqueue(&queue, &[turn(Some("a"), "1")]).await[0];
    let (old, new) = (queue.worker("old").await, queue.worker("new").await);
    let first = claim(&old).await;
    old.append(&first.lease, &delta(0, &[1])).await.expect("appended");
    let _: u64 = queue.command(&["DEL", &queue.keys().result(id)]).await;
    let fenced = old.append(&first.lease, &delta(1, &[2])).await;
    assert!(matches!(fenced, Err(BrokerError::Fenced { .. })), "{fenced:?}");
    let ticket = reclaim_one(&new).await;
    let second = new.lease(&ticket).await.expect("answered").expect("ours");
    assert_eq!(second.published, []);
    let Event::Begin(begin) = &queue.events(id).await[0] else { panic!("a stream starts with Begin") };
    assert_eq!((begin.resume_from, begin.attempt), (0, 2));
    // Even without a newer id in the stream, only the lease's holder may end the turn.
    let _: u64 = queue.command(&["DEL", &queue.keys().result(id)]).await;
    let fenced = old.finish(&first.lease, &ending(0, Outcome::Completed)).await;
    assert!(matches!(fenced, Err(BrokerError::Fenced { .. })), "{fenced:?}");
    new.finish(&second.lease, &ending(0, Outcome::Completed)).await.expect("ended");
}

#[tokio::test]
async fn the_same_worker_may_take_over_what_it_gave_up() {
    let queue = RedisQueue::start();
    let id = enqueue(&queue, &[turn(Some("a"), "1")]).await[0];
    let broker = queue.worker("only").await;
    let first = claim(&broker).await;
    let _: u64 = queue.command(&["DEL", &queue.keys().result(id)]).await;
    assert!(broker.append(&first.lease, &delta(0, &[1])).await.is_err());
    let ticket = reclaim_one(&broker).await;
    let second = broker.lease(&ticket).await.expect("answered").expect("ours");
    assert!(second.lease.epoch > first.lease.epoch && second.lease.attempt == 2);
    broker.append(&second.lease, &delta(0, &[1])).await.expect("appended");
}

#[tokio::test]
async fn renewing_keeps_leases_and_tickets() {
    let queue = RedisQueue::start();
    enqueue(&queue, &[turn(Some("a"), "1"), turn(Some("b"), "1")]).await;
    let (holder, other) = (queue.worker("holder").await, queue.worker("other").await);
    let leased = claim(&holder).await;
    let unleased = read_one(&holder).await;
    queue.until_idle(Priority::Interactive).await;
    holder.renew().await.expect("answered");
    assert!(!leased.lease.is_lost());
    let ready = queue.keys().ready(Priority::Interactive);
    let pending: Vec<(String, String, u64, u64)> =
        queue.command(&["XPENDING", &ready, GROUP, "-", "+", "10"]).await;
    assert_eq!(pending.len(), 2);
    // Idle times began anew, deliveries are not counted up.
    assert!(pending.iter().all(|(_, consumer, _, deliveries)| consumer == "holder" && *deliveries == 1));
    let mut reclaimed = 0;
    while reclaimed < 2 {
        reclaimed += reclaim(&other).await;
    }
    let taken = [read_one(&other).await, read_one(&other).await];
    assert_eq!(taken.each_ref().map(|ticket| &ticket.agent), [&leased.lease.agent, &unleased.agent]);
    // Renewals do not steal them back, and find the lease lost.
    holder.renew().await.expect("answered");
    assert!(leased.lease.is_lost());
    assert!(other.lease(&taken[1]).await.expect("answered").is_some());
    assert!(holder.lease(&unleased).await.expect("answered").is_none());
}

#[tokio::test]
async fn tickets_whose_reply_was_lost_are_read_first_and_held_ones_are_not() {
    let queue = RedisQueue::start();
    let broker = queue.worker("w").await;
    enqueue(&queue, &[turn(Some("a"), "1")]).await;
    let held = read_one(&broker).await;
    enqueue(&queue, &[turn(Some("b"), "1"), turn(Some("c"), "1")]).await;
    // Delivered to the worker, but the worker never hears of it; and its connections break.
    let ready = queue.keys().ready(Priority::Interactive);
    let _: redis::Value =
        queue.command(&["XREADGROUP", "GROUP", GROUP, "w", "COUNT", "2", "STREAMS", &ready, ">"]).await;
    let _: redis::Value = queue.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    let patience = Instant::now() + PATIENCE;
    let mut read = Vec::new();
    while read.len() < 2 {
        match broker.read(1).await {
            Ok(tickets) => read.extend(tickets),
            Err(error) => assert_eq!(error.advice(), Advice::Retry, "{error}"),
        }
        assert!(Instant::now() < patience, "lost tickets were not found again");
    }
    let mut agents: Vec<&str> = read.iter().map(|ticket| ticket.agent.as_str()).collect();
    agents.sort();
    assert_eq!(agents, ["test/b", "test/c"]);
    assert!(!read.contains(&held));
    assert!(broker.read(5).await.expect("answered").is_empty());
}

#[tokio::test]
async fn a_read_that_was_dropped_loses_no_ticket() {
    let queue = RedisQueue::start();
    let broker = queue.worker("w").await;
    let dropped = tokio::time::timeout(Duration::from_millis(50), broker.read(1)).await;
    assert!(dropped.is_err(), "nothing is there to read");
    // The server still serves the blocked read of the dropped future, or notices that its reader went away.
    enqueue(&queue, &[turn(Some("a"), "1")]).await;
    assert_eq!(read_one(&broker).await.agent.as_str(), "test/a");
}

#[tokio::test]
async fn appends_go_on_after_connections_broke() {
    let queue = RedisQueue::start();
    let id = enqueue(&queue, &[turn(Some("a"), "1")]).await[0];
    let broker = queue.worker("w").await;
    let claim = claim(&broker).await;
    broker.append(&claim.lease, &delta(0, &[1])).await.expect("appended");
    let _: redis::Value = queue.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    // A server that lost its last second: the stream is shorter than the worker knows.
    let top = format!("{}-1", claim.lease.epoch);
    let begin = format!("{}-0", claim.lease.epoch);
    let _: u64 = queue.command(&["XDEL", &queue.keys().result(id), &top]).await;
    let () = queue.command(&["XSETID", &queue.keys().result(id), &begin]).await;
    let mut gap = broker.append(&claim.lease, &delta(1, &[2])).await;
    if gap.as_ref().is_err_and(|error| error.advice() == Advice::Retry) {
        // That told it of the broken connection; it asks again on another.
        gap = broker.append(&claim.lease, &delta(1, &[2])).await;
    }
    assert!(matches!(gap, Err(BrokerError::Gap { expected: 1, found: 0, .. })), "{gap:?}");
    for delta in [delta(0, &[1]), delta(1, &[2])] {
        broker.append(&claim.lease, &delta).await.expect("appended");
    }
    broker.finish(&claim.lease, &ending(2, Outcome::Completed)).await.expect("ended");
}

#[tokio::test]
async fn nobody_reclaims_right_after_connecting() {
    let queue = RedisQueue::start();
    enqueue(&queue, &[turn(Some("a"), "1")]).await;
    let holder = queue.worker("holder").await;
    read_one(&holder).await;
    queue.until_idle(Priority::Interactive).await;
    let started = Instant::now();
    let back = queue.worker("back").await;
    let first = back.reclaim().await.expect("answered");
    // On a machine so slow that a lease passed meanwhile, reclaiming is right.
    assert!(first == 0 || started.elapsed() >= Duration::from_millis(LEASE_MS));
    if first == 0 {
        reclaim(&back).await;
    }
}

#[tokio::test]
async fn sweeping_finds_lost_tickets_and_removes_dead_consumers() {
    let queue = RedisQueue::start();
    let broker = queue.worker("w").await;
    let ids = enqueue(&queue, &["a", "b", "c", "d"].map(|agent| turn(Some(agent), "1"))).await;
    let ready = queue.keys().ready(Priority::Interactive);
    let running = claim(&broker).await;
    // `b` is pending to a silent worker, the ticket of `c` is lost, that of `d` undelivered.
    let _: redis::Value =
        queue.command(&["XREADGROUP", "GROUP", GROUP, "silent", "COUNT", "1", "STREAMS", &ready, ">"]).await;
    let entries: redis::streams::StreamRangeReply = queue.command(&["XRANGE", &ready, "-", "+"]).await;
    let _: u64 = queue.command(&["XDEL", &ready, &entries.ids[2].id]).await;
    let _: redis::Value = queue.command(&["XGROUP", "CREATECONSUMER", &ready, GROUP, "dead"]).await;
    let patience = Instant::now() + PATIENCE;
    let consumers = async || {
        let info: redis::streams::StreamInfoConsumersReply =
            queue.command(&["XINFO", "CONSUMERS", &ready, GROUP]).await;
        info.consumers.into_iter().map(|consumer| consumer.name).collect::<Vec<_>>()
    };
    while broker.counts().await.expect("counted").runnable() < 2 || consumers().await.contains(&"dead".into())
    {
        broker.sweep().await.expect("swept");
        broker.renew().await.expect("answered");
        assert!(Instant::now() < patience, "the sweep repaired nothing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(consumers().await, ["silent", "w"], "a consumer with pending tickets stays");
    let found = [claim(&broker).await, claim(&broker).await];
    assert_eq!(found.each_ref().map(|claim| claim.lease.turn), [ids[3], ids[2]]);
    assert_eq!(running.lease.turn, ids[0]);
    let counts = broker.counts().await.expect("counted");
    assert_eq!((counts.runnable(), counts.leased()), (0, 4));
}

/// The sweeps look at everybody in turn, however many have work.
#[tokio::test]
async fn the_lost_ticket_of_the_youngest_of_many_is_found() {
    const AGENTS: usize = 300;
    let queue = RedisQueue::start();
    let broker = queue.worker("w").await;
    let turns: Vec<Turn> = (0..AGENTS).map(|i| turn(Some(&format!("a{i:03}")), "1")).collect();
    enqueue(&queue, &turns).await;
    let ready = queue.keys().ready(Priority::Interactive);
    let newest: redis::streams::StreamRangeReply =
        queue.command(&["XREVRANGE", &ready, "+", "-", "COUNT", "1"]).await;
    let _: u64 = queue.command(&["XDEL", &ready, &newest.ids[0].id]).await;
    let patience = Instant::now() + PATIENCE;
    while queue.command::<usize>(&["XLEN", &ready]).await < AGENTS {
        broker.sweep().await.expect("swept");
        assert!(Instant::now() < patience, "no sweep came to the youngest");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(queue.command::<usize>(&["XLEN", &ready]).await, AGENTS, "the others have one each");
}

#[tokio::test]
async fn a_ticket_that_cannot_be_leased_keeps_nobody_busy() {
    a_broken_history_keeps_nobody_busy(&RedisQueue::start()).await;
    // Not even a dead letter can be written.
    a_broken_key_keeps_nobody_busy(&RedisQueue::start().broken(), |keys, id, _| keys.result(id), "halted")
        .await;
}

/// In the end the turn is a dead letter.
pub async fn a_broken_history_keeps_nobody_busy(queue: &RedisQueue) {
    a_broken_key_keeps_nobody_busy(queue, |keys, _, agent| keys.transcript(agent), "idle").await;
    let dead = queue.dead_letters().await;
    assert_eq!(dead.iter().map(|letter| letter.reason.as_str()).collect::<Vec<_>>(), ["unreadable"]);
}

/// A worker with one place, which reads anew again and again, and an agent one of whose keys somebody broke: it is not leased more
/// often than it has attempts, others run meanwhile, and in the end it is `state`.
async fn a_broken_key_keeps_nobody_busy(
    queue: &RedisQueue,
    broken: fn(&Keys, TurnId, &AgentId) -> String,
    state: &str,
) {
    let limits = WorkerLimits { max_attempts: 2, ..Default::default() };
    let (broker, keys) = (queue.worker_with("w", limits).await, queue.keys());
    let poison = turn(Some("poison"), "1");
    let (id, poison) = (enqueue(queue, std::slice::from_ref(&poison)).await[0], poison.agent_id());
    let _: String = queue.command(&["SET", &broken(&keys, id, &poison), "x"]).await;
    drop(read_one(&broker).await);
    let good = enqueue(queue, &[turn(Some("good"), "1")]).await[0];
    let (patience, mut leases) = (Instant::now() + PATIENCE, Vec::new());
    while queue.command::<String>(&["HGET", &keys.agent(&poison), "state"]).await != state {
        broker.promote().await.expect("answered");
        // A read that is dropped is a connection that broke: the next one looks for tickets whose reply was lost.
        let read = tokio::time::timeout(Duration::from_millis(20), broker.read(1)).await;
        let Some(ticket) = read.ok().and_then(|read| read.expect("answered").pop()) else { continue };
        leases.push(ticket.agent.clone());
        match broker.lease(&ticket).await {
            Ok(Some(claim)) => {
                assert_eq!(claim.lease.turn, good);
                broker.finish(&claim.lease, &ending(0, Outcome::Completed)).await.expect("ended");
            }
            Ok(None) => {}
            Err(error) => assert_eq!(error.advice(), Advice::Reject, "{error}"),
        }
        assert!(leases.len() <= 4 && Instant::now() < patience, "{leases:?}");
    }
    assert!(leases.iter().position(|agent| *agent != poison).is_some_and(|at| at < 2), "{leases:?}");
}

/// It costs an attempt, and no token.
#[tokio::test]
async fn a_foreign_entry_in_a_result_stream_is_passed_by() {
    let queue = RedisQueue::start();
    let (first, second) = (queue.worker("first").await, queue.worker("second").await);
    let id = enqueue(&queue, &[turn(Some("a"), "1")]).await[0];
    let first_try = claim(&first).await;
    first.append(&first_try.lease, &delta(0, &[1, 2])).await.expect("appended");
    let foreign = format!("{}-7", first_try.lease.epoch);
    let _: String = queue.command(&["XADD", &queue.keys().result(id), &foreign, "foreign", "x"]).await;
    let refused = first.finish(&first_try.lease, &ending(2, Outcome::Completed)).await;
    assert!(matches!(refused, Err(BrokerError::Gap { expected: 2, found: 7, .. })), "{refused:?}");
    drop(first_try);
    let ticket = reclaim_one(&second).await;
    let resumed = second.lease(&ticket).await.expect("answered").expect("ours");
    assert_eq!(resumed.published, [delta(0, &[1, 2])]);
    second.append(&resumed.lease, &delta(2, &[3])).await.expect("appended after what was published");
    second.finish(&resumed.lease, &ending(3, Outcome::Completed)).await.expect("ended");
}

/// Of whoever it is, and whatever its id.
#[tokio::test]
async fn a_foreign_entry_hides_no_published_tokens_from_who_cancels() {
    let queue = RedisQueue::start();
    let broker = queue.worker("w").await;
    let id = enqueue(&queue, &[turn(Some("a"), "1")]).await[0];
    let running = claim(&broker).await;
    broker.append(&running.lease, &delta(0, &[1, 2])).await.expect("appended");
    let result = queue.keys().result(id);
    let _: String = queue.command(&["XADD", &result, "*", "foreign", "x"]).await;
    queue.cancel(id).await;
    let newest: redis::streams::StreamRangeReply =
        queue.command(&["XREVRANGE", &result, "+", "-", "COUNT", "1"]).await;
    assert!(newest.ids[0].id.ends_with("-2"), "{}", newest.ids[0].id);
}

#[tokio::test]
async fn agents_that_cannot_be_read_keep_nobody_from_being_promoted() {
    let queue = RedisQueue::start().broken();
    let broker = queue.worker("w").await;
    let _: u64 = queue.command(&["SADD", &queue.keys().parked("broken"), "foreign"]).await;
    let due = queue.now_ms().await + 200;
    let later = |tenant: &str, agent: &str| Turn {
        tenant: TenantName::new(tenant).expect("a name"),
        not_before_ms: Some(due),
        ..turn(Some(agent), "1")
    };
    // More than one look takes, and all of them in front.
    let broken: Vec<Turn> = (0..100).map(|i| later("broken", &format!("a{i}"))).collect();
    enqueue(&queue, &broken).await;
    let good = enqueue(&queue, &[later("test", "good")]).await[0];
    assert_eq!(claim(&broker).await.lease.turn, good);
}

/// A ticket that stays pending would be looked at for ever, and say that somebody waits.
#[tokio::test]
async fn the_ticket_of_an_agent_that_cannot_be_read_is_not_reclaimed_for_ever() {
    let queue = RedisQueue::start().broken();
    let (dead, other) = (queue.worker("dead").await, queue.worker("other").await);
    enqueue(&queue, &[turn(Some("a"), "1"), turn(Some("b"), "1")]).await;
    let claims = [claim(&dead).await, claim(&dead).await];
    let broken = queue.keys().agent(&claims[0].lease.agent);
    let _: u64 = queue.command(&["DEL", &broken]).await;
    let _: String = queue.command(&["SET", &broken, "x"]).await;
    drop(claims);
    assert_eq!(reclaim(&other).await, 1, "the other agent runs again");
    let left: redis::streams::StreamPendingReply =
        queue.command(&["XPENDING", &queue.keys().ready(Priority::Interactive), GROUP]).await;
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn a_call_takes_a_thousand_turns_and_no_more() {
    let queue = RedisQueue::start();
    let turns: Vec<Turn> = (0..1001).map(|_| turn(None, "1")).collect();
    let limits = DepthLimits { queue: 10_000, tenant: 10_000 };
    let refused = queue.try_enqueue(&turns, limits).await.expect_err("it is too many");
    assert!(refused.to_string().contains("1000 turns at most, not 1001"), "{refused}");
    assert!(queue.dump().await.is_empty());
    let ids = queue.try_enqueue(&turns[1..], limits).await.expect("answered").expect("there is room");
    assert_eq!(ids.len(), 1000);
    assert_eq!(queue.command::<u64>(&["ZCARD", &queue.keys().open()]).await, 1000);
}

#[tokio::test]
async fn a_full_redis_drains_and_takes_nothing_new() {
    let queue = RedisQueue::start_with(&["--maxmemory-policy", "noeviction"]);
    let broker = queue.worker("w").await;
    enqueue(&queue, &[turn(Some("a"), "1"), turn(Some("b"), "1")]).await;
    let (first, second) = (claim(&broker).await, claim(&broker).await);
    let () = queue.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let full = queue.try_enqueue(&[turn(Some("c"), "1")], ROOM).await.expect_err("there is no memory");
    assert!(matches!(full, Fault::Full { .. }), "{full}");
    broker.append(&first.lease, &delta(0, &[1])).await.expect("what runs comes to its end");
    broker.finish(&first.lease, &ending(1, Outcome::Completed)).await.expect("ended");
    broker.requeue(&second.lease, None).await.expect("requeued");
    broker.renew().await.expect("answered");
    assert_eq!(broker.counts().await.expect("counted").open(), 1);

    // Whoever comes anew finds all that it needs to drain the queue.
    let other = queue.worker("other").await;
    queue.pause(true).await;
    queue.pause(false).await;
    queue.run(&Order { worker: "other", order: ORDER_DRAIN, for_ms: 60_000 }).await;
    assert!(other.register(&WorkerStatus::default()).await.expect("registered").drain);
    assert_eq!(queue.run(&KeepCollector { holder: "gc", for_ms: 60_000, take: true }).await, None);
    other.sweep().await.expect("swept");
    let last = claim(&other).await;
    other.finish(&last.lease, &ending(0, Outcome::Completed)).await.expect("ended");
    assert_eq!(other.counts().await.expect("counted").open(), 0);
}

#[tokio::test]
async fn unsuitable_servers_are_refused_with_the_remedy() {
    let check = async |server: &RedisServer| check_server(&RedisUrl::from(server.url()).into()).await;
    let good = RedisServer::start();
    let facts = check(&good).await.expect("suitable");
    assert!(facts.warning().is_some(), "there is no append-only file");

    let evicting = RedisServer::start_with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let error = check(&evicting).await.expect_err("must be refused");
    assert!(error.to_string().contains("CONFIG SET maxmemory-policy noeviction"), "{error}");
    assert_eq!(error.advice(), Advice::Stop);

    let port = good.url().rsplit(':').next().expect("a port").to_owned();
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]);
    let error = check(&replica).await.expect_err("must be refused");
    assert!(error.to_string().contains("read-only replica"), "{error}");

    let url = good.url().replace("redis://", "redis://:s3cret@");
    let error =
        check_server(&RedisUrl::from(url.clone()).into()).await.expect_err("no password is set there");
    assert!(!error.to_string().contains("s3cret"), "{error}");
    drop(good);
    let error = check_server(&RedisUrl::from(url).into()).await.expect_err("nothing listens there");
    assert!(matches!(error, BrokerError::Queue(Fault::Unreachable { .. })), "{error}");
    assert!(!error.to_string().contains("s3cret"), "{error}");
    let error = check_server(&RedisUrl::from("http://x".to_owned()).into()).await.expect_err("no Redis URL");
    assert!(error.to_string().contains("not a Redis URL"), "{error}");
}

#[tokio::test]
async fn unusable_authorities_are_named_with_the_remedy() {
    let folder = tempfile::TempDir::new().expect("the temporary directory is writable");
    let refused = async |file: &str, content: Option<&str>| {
        let ca = folder.path().join(file);
        if let Some(content) = content {
            std::fs::write(&ca, content).expect("the temporary directory is writable");
        }
        let endpoint =
            RedisEndpoint { url: RedisUrl::from("rediss://127.0.0.1:1".to_owned()), ca: Some(ca.clone()) };
        let error = check_server(&endpoint).await.expect_err("nobody could be trusted");
        assert_eq!(error.advice(), Advice::Stop);
        let error = error.to_string();
        assert!(
            error.contains(ca.to_str().expect("unicode")) && error.contains("name a PEM file"),
            "{error}"
        );
        error
    };
    assert!(refused("missing.pem", None).await.contains("cannot be read"));
    let broken = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    assert!(refused("broken.pem", Some(broken)).await.contains("is not usable"));
    assert!(refused("key.pem", Some("nothing of ours\n")).await.contains("holds no certificate"));
}

#[tokio::test]
async fn a_worker_that_enters_itself_first_of_all_knows_the_servers_time() {
    let queue = RedisQueue::start();
    let broker = queue.worker("w").await;
    broker.register(&WorkerStatus::default()).await.expect("registered");
    let heard_ms: u64 = queue.command(&["ZSCORE", &queue.keys().workers(), "w"]).await;
    let (now_s, _): (u64, u64) = queue.command(&["TIME"]).await;
    assert!(now_s - heard_ms / 1000 <= 60, "heard of at {heard_ms} ms, when it is {now_s} s");
}

/// A number nobody may read is not 0.
#[tokio::test]
async fn who_may_not_ask_for_the_leased_is_not_told_that_there_are_none() {
    let queue = RedisQueue::start();
    let broker = queue.worker("w").await;
    enqueue(&queue, &[turn(Some("a"), "1")]).await;
    claim(&broker).await;
    assert_eq!(broker.counts().await.expect("counted").leased(), 1);
    let _: String = queue.command(&["ACL", "SETUSER", "default", "-xpending"]).await;
    let error = broker.counts().await.expect_err("it may not ask").to_string();
    assert!(error.contains("XPENDING"), "{error}");
    // Who looks for what is left has to ask, too.
    let _: String = queue.command(&["ACL", "SETUSER", "default", "+xpending"]).await;
}

#[tokio::test]
async fn foreign_entries_in_a_ready_stream_are_dropped() {
    let queue = RedisQueue::start();
    let broker = queue.worker("w").await;
    let ready = queue.keys().ready(Priority::Interactive);
    let _: String = queue.command(&["XADD", &ready, "*", "foreign", "x"]).await;
    // A ticket of an agent without work: dealt with at its lease.
    let _: String = queue.command(&["XADD", &ready, "*", "agent", "test/nobody"]).await;
    let ticket = read_one(&broker).await;
    assert!(broker.lease(&ticket).await.expect("answered").is_none());
    let left: u64 = queue.command(&["XLEN", &ready]).await;
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_queue_of_several_shards_serves_all_of_them() {
    let server = RedisServer::start();
    let queue =
        Queue { name: Name::new("q").expect("a name"), shards: NonZeroU16::new(3).expect("not zero") };
    let settings = BrokerSettings {
        redis: RedisUrl::from(server.url()).into(),
        queue: queue.name.clone(),
        shards: queue.shards,
        ..RedisQueue::start().settings("w", WorkerLimits::default())
    };
    let broker = RedisBroker::connect(settings).await.expect("suitable");
    let steps = Server::new(&RedisUrl::from(server.url()).into(), RESPONSE_TIMEOUT).expect("a URL of ours");
    for keys in queue.all_keys() {
        let lone = Turn { id: TurnId::new(keys.shard()), ..turn(None, "1") };
        let stored = encode_turn(&lone).expect("fits");
        let enqueue = Enqueue { limits: ROOM, turns: vec![EnqueueTurn::new(&lone, stored)] };
        steps.run(&keys, &enqueue).await.expect("enqueued");
    }
    assert_eq!(broker.counts().await.expect("counted").runnable(), 3);
    let mut shards = Vec::new();
    for _ in 0..3 {
        let claim = claim(&broker).await;
        shards.push(claim.lease.turn.shard());
        broker.renew().await.expect("answered");
        assert!(!claim.lease.is_lost());
        broker.append(&claim.lease, &delta(0, &[1])).await.expect("appended");
        broker.finish(&claim.lease, &ending(1, Outcome::Completed)).await.expect("ended");
    }
    shards.sort_unstable();
    assert_eq!(shards, [0, 1, 2]);
    broker.sweep().await.expect("swept");
}
