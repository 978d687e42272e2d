//! What is kept of ended turns, and for how long, in a real Redis.

use std::time::{Duration, Instant};

use turnmill_schema::keys::{FIELD_END, counter};
use turnmill_schema::{Delta, Name, Outcome, Turn, TurnId};
use turnmill_tests::broker_conformance::{PATIENCE, TestQueue, WorkerLimits, claim, delta, ending, enqueue, turn};
use turnmill_tests::redis_queue::RedisQueue;
use turnmill_worker::broker::redis::{BrokerSettings, RedisBroker};
use turnmill_worker::broker::{Broker, Ending};

/// A worker that keeps little.
async fn worker(queue: &RedisQueue, retained_bytes: u64) -> RedisBroker {
    let settings = queue.settings("w", WorkerLimits::default());
    let settings = BrokerSettings { retained_bytes, keep_stream_ms: 1, ..settings };
    RedisBroker::connect(settings).await.expect("the server is suitable")
}

/// Runs `count` turns of 40 tokens that stand alone; their ids.
async fn run_turns(queue: &RedisQueue, broker: &RedisBroker, count: usize) -> Vec<TurnId> {
    let keyed =
        |i: usize| Turn { idempotency_key: Name::new(format!("k{i}")).ok(), ..turn(None, "Tell me.") };
    let mut ids = Vec::new();
    for start in (0..count).step_by(100) {
        let turns: Vec<Turn> = (start..count.min(start + 100)).map(keyed).collect();
        ids.extend(enqueue(queue, &turns).await);
        for _ in &turns {
            let claim = claim(broker).await;
            let reply = Delta { text: "word ".repeat(40), ..delta(0, &[7; 40]) };
            broker.append(&claim.lease, &reply).await.expect("appended");
            let ending = Ending { reply: Some(reply), ..ending(40, Outcome::Completed) };
            broker.finish(&claim.lease, &ending).await.expect("ended");
        }
    }
    ids
}

async fn retained(queue: &RedisQueue) -> u64 {
    let retained: Option<u64> =
        queue.command(&["HGET", &queue.keys().counters(), counter::RETAINED_BYTES]).await;
    retained.unwrap_or(0)
}

/// Waits for something that comes by itself.
async fn until(condition: impl AsyncFn() -> bool, complaint: &str) {
    let patience = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < patience, "{complaint}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn has_outcome(queue: &RedisQueue, turn: TurnId) -> bool {
    let end: Option<Vec<u8>> = queue.command(&["HGET", &queue.keys().turn(turn), FIELD_END]).await;
    end.is_some()
}

#[tokio::test]
async fn ended_turns_stay_under_their_cap_and_the_oldest_go_first() {
    const CAP: u64 = 400_000;
    let queue = RedisQueue::start();
    let broker = worker(&queue, CAP).await;
    let ids = run_turns(&queue, &broker, 1000).await;
    assert!(retained(&queue).await > CAP, "there is something to forget");
    broker.sweep().await.expect("swept");
    let kept = retained(&queue).await;
    assert!(kept <= CAP && kept > CAP / 2, "{kept} bytes are kept");
    let mut outcomes = Vec::new();
    for id in &ids {
        outcomes.push(has_outcome(&queue, *id).await);
    }
    let forgotten = outcomes.iter().take_while(|kept| !**kept).count();
    assert!((100..900).contains(&forgotten), "{forgotten} of 1000 are forgotten");
    assert!(outcomes[forgotten..].iter().all(|kept| *kept), "the oldest go first");
    for key in ["test/k0", "test/k999"] {
        let left_ms: i64 = queue.command(&["PTTL", &queue.keys().idempotency(key)]).await;
        assert!(left_ms > 0, "idempotency keys are small, and stay for their full time");
    }
}

#[tokio::test]
async fn the_estimate_of_what_is_kept_is_near_what_redis_says() {
    let queue = RedisQueue::start();
    let broker = worker(&queue, u64::MAX / 2).await;
    let ids = run_turns(&queue, &broker, 200).await;
    let last = queue.keys().result(ids[199]);
    until(async || queue.command::<u64>(&["EXISTS", &last]).await == 0, "result streams of short replies stay").await;
    broker.sweep().await.expect("swept");
    let mut measured = 0;
    for (i, id) in ids.iter().enumerate() {
        for key in [queue.keys().turn(*id), queue.keys().idempotency(&format!("test/k{i}"))] {
            measured += queue.command::<Option<u64>>(&["MEMORY", "USAGE", &key]).await.unwrap_or(0);
        }
    }
    let list: u64 = queue.command(&["MEMORY", "USAGE", &queue.keys().ended(), "SAMPLES", "0"]).await;
    let measured = measured + list;
    let estimated = retained(&queue).await;
    println!("{} bytes a turn measured, {} estimated", measured / 200, estimated / 200);
    assert!(estimated >= measured * 4 / 5 && estimated <= measured * 5 / 4, "{estimated} is not near {measured}");
}

#[tokio::test]
async fn a_result_stream_goes_and_its_reply_stays() {
    let queue = RedisQueue::start();
    let broker = worker(&queue, u64::MAX / 2).await;
    let id = run_turns(&queue, &broker, 1).await[0];
    let stream = queue.keys().result(id);
    until(async || queue.command::<u64>(&["EXISTS", &stream]).await == 0, "the stream of a short reply stays").await;
    let reply = queue.short_reply(id).await.expect("the reply is kept with the outcome");
    assert_eq!((reply.index, reply.tokens.len()), (0, 40));
}
