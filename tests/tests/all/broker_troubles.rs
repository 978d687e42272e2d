//! The Redis adapter in a queue that is not as it should be: replies that cannot be read, many overdue turns, and shards of
//! which one is broken.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::FromRedisValue;
use turnmill_redis::steps::{Enqueue, EnqueueTurn};
use turnmill_redis::{RESPONSE_TIMEOUT, Server};
use turnmill_schema::envelope::{encode, encode_turn};
use turnmill_schema::keys::{FIELD_EVENT, GROUP, Keys, Queue};
use turnmill_schema::{DeadReason, Delta, Event, Name, Outcome, Priority, Turn, TurnId};
use turnmill_tests::broker_conformance::{
    LEASE_MS, MAX_ATTEMPTS, PATIENCE, ROOM, TestQueue, claim, delta, ending, enqueue, reclaim_one, turn,
};
use turnmill_tests::redis_queue::{
    KEEP_STREAM_MS, OUTCOME_TTL_MS, RESULT_TTL_MS, RETAINED_BYTES, RedisQueue,
};
use turnmill_tests::redis_server::RedisServer;
use turnmill_worker::broker::redis::{BrokerSettings, RedisBroker};
use turnmill_worker::broker::{Advice, Broker, Retry, Ticket};
use turnmill_worker::config::RedisUrl;

/// The attempt fails when it begins, not when the lease runs out, and the dead letter says why.
#[tokio::test]
async fn a_reply_that_cannot_be_read_fails_the_attempt_at_once() {
    // Two tokens' text, and nobody can tell where the first one ends.
    let uncut = Delta { lengths: Vec::new(), text: "ab".into(), ..delta(0, &[1, 2]) };
    for (broken, tokens, said) in [(delta(5, &[6]), 6, "from token 5 on"), (uncut, 2, "tokens twice")] {
        let queue = RedisQueue::start();
        let id = enqueue(&queue, &[turn(Some("a"), "1")]).await[0];
        let (first, second) = (queue.worker("first").await, queue.worker("second").await);
        let begun = claim(&first).await;
        first.append(&begun.lease, &delta(0, &[1])).await.expect("appended");
        let mut add = redis::cmd("XADD");
        let event = encode(&Event::Delta(broken)).expect("encodes");
        add.arg(queue.keys().result(id)).arg(format!("{}-{tokens}", begun.lease.epoch));
        let _: String =
            add.arg(FIELD_EVENT).arg(event).query_async(&mut queue.raw().await).await.expect("added");
        drop(begun);

        let ticket = reclaim_one(&second).await;
        let mut attempt = second.lease(&ticket).await.expect("it is leased").expect("ours");
        let mut attempts = 1;
        loop {
            let why = attempt.turn.as_ref().expect_err("the reply cannot be read").to_string();
            assert!(why.contains(said), "{why}");
            let retried = second.retry(&attempt.lease, Duration::ZERO, DeadReason::Unreadable, &why).await;
            if retried.expect("answered") == Retry::Dead {
                break;
            }
            attempts += 1;
            assert!(attempts <= MAX_ATTEMPTS + 1, "attempts have no end");
            attempt = claim(&second).await;
        }
        let dead = queue.dead_letters().await;
        assert_eq!(dead.iter().map(|letter| letter.reason.as_str()).collect::<Vec<_>>(), ["unreadable"]);
    }
}

/// A look ends some of them, and the next one does not wait for half a second.
#[tokio::test]
async fn many_overdue_turns_end_without_a_pause() {
    const TURNS: usize = 300;
    let queue = RedisQueue::start();
    let broker = queue.worker("w").await;
    let deadline_ms = queue.now_ms().await + 100;
    let hurried = Turn { deadline_ms: Some(deadline_ms), ..turn(None, "1") };
    let turns: Vec<Turn> = (0..TURNS).map(|_| Turn { id: TurnId::new(0), ..hurried.clone() }).collect();
    enqueue(&queue, &turns).await;
    let patience = Instant::now() + PATIENCE;
    while queue.now_ms().await <= deadline_ms {
        assert!(Instant::now() < patience, "the deadline does not come");
    }
    let open = async || broker.counts().await.expect("counted").open();
    assert_eq!(open().await, TURNS as u64);
    while open().await > 0 {
        let look_again = broker.promote().await.expect("answered");
        let left = open().await;
        assert!(left == 0 || look_again < Duration::from_millis(100), "{left} wait for {look_again:?}");
        assert!(Instant::now() < patience, "{left} turns do not end");
    }
}

/// A queue of several shards.
struct Sharded {
    server: RedisServer,
    steps: Arc<Server>,
    queue: Queue,
}

impl Sharded {
    fn start(shards: u16) -> Self {
        let server = RedisServer::start();
        let steps = Server::new(&RedisUrl::from(server.url()).into(), RESPONSE_TIMEOUT);
        let shards = NonZeroU16::new(shards).expect("not zero");
        let queue = Queue { name: Name::new("q").expect("a name"), shards };
        Self { server, steps: steps.expect("a URL of ours"), queue }
    }

    fn keys(&self, shard: u16) -> Keys {
        self.queue.keys(shard)
    }

    async fn worker(&self, name: &str) -> RedisBroker {
        let settings = BrokerSettings {
            redis: RedisUrl::from(self.server.url()).into(),
            queue: self.queue.name.clone(),
            shards: self.queue.shards,
            worker: name.to_owned(),
            lease_ms: LEASE_MS,
            max_attempts: MAX_ATTEMPTS,
            tenant_max_running: 0,
            max_continues: 0,
            result_ttl_ms: RESULT_TTL_MS,
            outcome_ttl_ms: OUTCOME_TTL_MS,
            keep_stream_ms: KEEP_STREAM_MS,
            retained_bytes: RETAINED_BYTES,
            dead_bytes: RETAINED_BYTES,
        };
        RedisBroker::connect(settings).await.expect("the server is suitable")
    }

    async fn enqueue(&self, shard: u16, turn: Turn) -> TurnId {
        let turn = Turn { id: TurnId::new(shard), ..turn };
        let stored = encode_turn(&turn).expect("fits");
        let enqueue = Enqueue { limits: ROOM, turns: vec![EnqueueTurn::new(&turn, stored)] };
        self.steps.run(&self.keys(shard), &enqueue).await.expect("enqueued");
        turn.id
    }

    async fn command<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let client = redis::Client::open(self.server.url()).expect("a URL");
        let mut connection = client.get_multiplexed_async_connection().await.expect("the server answers");
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query_async(&mut connection).await.expect("the command works")
    }

    /// Puts another type under one of our keys.
    async fn breaks(&self, key: &str) {
        let _: String = self.command(&["SET", key, "x"]).await;
    }

    /// How many tickets of interactive agents of a shard somebody has.
    async fn pending(&self, shard: u16) -> usize {
        let ready = self.keys(shard).ready(Priority::Interactive);
        let pending: Vec<(String, String, u64, u64)> =
            self.command(&["XPENDING", &ready, GROUP, "-", "+", "10"]).await;
        pending.len()
    }
}

/// Waits for a ticket; only a broken connection may come between.
async fn read(broker: &RedisBroker) -> Ticket {
    let patience = Instant::now() + PATIENCE;
    loop {
        match broker.read(1).await {
            Ok(mut tickets) => {
                if let Some(ticket) = tickets.pop() {
                    return ticket;
                }
            }
            Err(error) => assert_eq!(error.advice(), Advice::Retry, "{error}"),
        }
        assert!(Instant::now() < patience, "no ticket comes");
    }
}

#[tokio::test]
async fn batch_agents_do_not_starve_in_more_shards_than_their_share_has_tickets() {
    const SHARDS: u16 = 4;
    let queue = Sharded::start(SHARDS);
    for shard in 0..SHARDS {
        for _ in 0..8 {
            queue.enqueue(shard, turn(None, "1")).await;
        }
    }
    queue.enqueue(3, Turn { priority: Priority::Batch, ..turn(None, "1") }).await;
    let tickets = queue.worker("w").await.read(4).await.expect("answered");
    let mut priorities: Vec<Priority> = tickets.iter().map(|ticket| ticket.id.priority).collect();
    priorities.sort_by_key(|priority| *priority == Priority::Batch);
    assert_eq!(priorities[2..], [Priority::Interactive, Priority::Batch]);
    assert_eq!(priorities.len(), 4);
}

#[tokio::test]
async fn a_broken_ready_stream_costs_the_others_nothing() {
    let queue = Sharded::start(2);
    let broker = queue.worker("w").await;
    queue.breaks(&queue.keys(1).ready(Priority::Batch)).await;
    for _ in 0..2 {
        let id = queue.enqueue(0, turn(None, "1")).await;
        let ticket = read(&broker).await;
        let claim = broker.lease(&ticket).await.expect("answered").expect("ours");
        assert_eq!(claim.lease.turn, id);
        broker.finish(&claim.lease, &ending(0, Outcome::Completed)).await.expect("ended");
        // It waits, as in a queue that is whole. The next read is on a new connection.
        let waiting = tokio::time::timeout(Duration::from_millis(100), broker.read(1)).await;
        assert!(waiting.is_err(), "{waiting:?}");
    }
    for shard in [0, 1] {
        queue.breaks(&queue.keys(shard).ready(Priority::Interactive)).await;
        queue.breaks(&queue.keys(shard).ready(Priority::Batch)).await;
    }
    let error = broker.read(1).await.expect_err("there is nothing to wait for").to_string();
    assert!(error.contains("WRONGTYPE"), "{error}");
}

#[tokio::test]
async fn work_on_timers_goes_on_behind_a_broken_shard() {
    let queue = Sharded::start(3);
    let (holder, other) = (queue.worker("holder").await, queue.worker("other").await);
    let far = queue.keys(2);
    queue.enqueue(1, turn(None, "1")).await;
    let running = claim(&holder).await;
    let (now_s, _): (u64, u64) = queue.command(&["TIME"]).await;
    let due = Turn { not_before_ms: Some((now_s + 1) * 1000), ..turn(None, "1") };
    queue.enqueue(2, due).await;
    let broken = queue.keys(0);
    for key in [broken.ready(Priority::Interactive), broken.delayed(), broken.open()] {
        queue.breaks(&key).await;
    }

    let _: u64 = queue.command(&["DEL", &queue.keys(1).agent(&running.lease.agent)]).await;
    holder.renew().await.expect_err("the first shard refuses");
    assert!(running.lease.is_lost(), "the second one tells");

    let patience = Instant::now() + PATIENCE;
    let ready = far.ready(Priority::Interactive);
    while queue.command::<u64>(&["XLEN", &ready]).await == 0 {
        other.promote().await.expect_err("the first shard refuses");
        assert!(Instant::now() < patience, "who is due is not promoted");
    }

    drop(read(&holder).await);
    assert_eq!(queue.pending(2).await, 1);
    while queue.pending(2).await > 0 {
        // Nobody reclaims before it has been connected for a lease.
        let reclaimed = other.reclaim().await;
        assert!(matches!(reclaimed, Ok(0) | Err(_)), "{reclaimed:?}");
        assert!(Instant::now() < patience, "who fell silent keeps its ticket");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let _: u64 = queue.command(&["RPUSH", &far.ended(), "nonsense"]).await;
    while queue.command::<u64>(&["LLEN", &far.ended()]).await > 0 {
        other.sweep().await.expect_err("the first shard refuses");
        assert!(Instant::now() < patience, "nobody sweeps the last shard");
    }
}
