//! What is kept of ended turns, and for how long, in a real Redis.

use turnmill_schema::keys::{FIELD_END, counter};
use turnmill_schema::{Delta, IdempotencyKey, Outcome, TokenLogprobs, Turn, TurnId};
use turnmill_tests::broker_conformance::{TestQueue, WorkerLimits, claim, delta, ending, enqueue, turn};
use turnmill_tests::redis_queue::RedisQueue;
use turnmill_tests::until;
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
    let keyed = |i: usize| Turn {
        idempotency_key: IdempotencyKey::new(format!("k{i}")).ok(),
        ..turn(None, "Tell me.")
    };
    let mut ids = Vec::new();
    for start in (0..count).step_by(100) {
        let turns: Vec<Turn> = (start..count.min(start + 100)).map(keyed).collect();
        ids.extend(enqueue(queue, &turns).await);
        for _ in &turns {
            let claim = claim(broker).await;
            let reply = Delta { text: "word ".repeat(40), lengths: vec![5; 40], ..delta(0, &[7; 40]) };
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

/// A call looks at a thousand of them, and here it has nothing else to do.
#[tokio::test]
async fn streams_whose_time_is_over_are_not_counted_however_many_they_are() {
    let queue = RedisQueue::start();
    let broker = worker(&queue, 1 << 40).await;
    run_turns(&queue, &broker, 1100).await;
    broker.sweep().await.expect("swept");
    let counted: u64 = queue.command(&["ZCARD", &queue.keys().streams()]).await;
    assert_eq!(counted, 0);
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
    let gone = queue.keys().idempotency("test/k0");
    assert_eq!(
        queue.command::<u64>(&["EXISTS", &gone]).await,
        1,
        "its idempotency key stays for its full time"
    );
}

/// With each letter go its turn and its result.
#[tokio::test]
async fn dead_letters_stay_under_their_cap_and_the_oldest_go_first() {
    const CAP: u64 = 100_000;
    // More of them go than one call looks at.
    const LETTERS: usize = 60;
    let queue = RedisQueue::start();
    let settings = BrokerSettings { dead_bytes: CAP, ..queue.settings("w", WorkerLimits::default()) };
    let broker = RedisBroker::connect(settings).await.expect("the server is suitable");
    let turns: Vec<Turn> = (0..LETTERS).map(|_| turn(None, &"x".repeat(4000))).collect();
    let ids = enqueue(&queue, &turns).await;
    for _ in &ids {
        let claim = claim(&broker).await;
        broker.finish(&claim.lease, &ending(0, Outcome::Failed)).await.expect("ended");
    }
    let taken = async || queue.command::<u64>(&["HGET", &queue.keys().counters(), "dead_bytes"]).await;
    assert!(taken().await > 2 * CAP, "there is something to forget");
    broker.sweep().await.expect("swept");
    let kept = taken().await;
    assert!(kept <= CAP && kept > CAP / 2, "{kept} bytes are kept");
    let left: Vec<TurnId> = queue.dead_letters().await.iter().map(|letter| letter.turn).collect();
    let forgotten = LETTERS - left.len();
    assert!(forgotten > 32, "{forgotten} are forgotten");
    assert_eq!(left, ids[forgotten..], "the oldest go first");
    for (place, id) in ids.iter().enumerate() {
        let (turn, result) = (queue.keys().turn(*id), queue.keys().result(*id));
        let there: u64 = queue.command(&["EXISTS", &turn, &result]).await;
        assert_eq!(there, if place < forgotten { 0 } else { 2 }, "of letter {place}");
    }
}

/// What the keys of ended turns and their indexes take, as Redis says.
async fn measured(queue: &RedisQueue) -> u64 {
    let mut bytes = 0;
    for key in queue.command::<Vec<String>>(&["KEYS", "*"]).await {
        if ["turn:", "result:", ":ended", ":streams", ":events"].iter().any(|kind| key.contains(kind)) {
            let usage = queue.command::<Option<u64>>(&["MEMORY", "USAGE", &key, "SAMPLES", "0"]).await;
            bytes += usage.unwrap_or(0);
        }
    }
    bytes
}

fn assert_near(retained: u64, measured: u64) {
    println!("{retained} bytes are counted, Redis says {measured}");
    assert!(
        retained * 10 >= measured * 8 && retained * 10 <= measured * 12,
        "{retained} is not near {measured}"
    );
}

#[tokio::test]
async fn what_is_counted_is_what_redis_says() {
    let queue = RedisQueue::start();
    let broker = worker(&queue, u64::MAX / 2).await;
    run_turns(&queue, &broker, 200).await;
    let streams = async || queue.command::<Vec<String>>(&["KEYS", "*result:*"]).await;
    until("streams of short replies are gone", async || streams().await.is_empty()).await;
    broker.sweep().await.expect("swept");
    assert_near(retained(&queue).await, measured(&queue).await);
}

#[tokio::test]
async fn long_replies_with_log_probabilities_are_counted_as_they_are() {
    const TURNS: usize = 5;
    let queue = RedisQueue::start();
    let broker = worker(&queue, u64::MAX / 2).await;
    let turns: Vec<Turn> = (0..TURNS).map(|i| turn(None, &i.to_string())).collect();
    enqueue(&queue, &turns).await;
    for _ in 0..TURNS {
        let claim = claim(&broker).await;
        for index in 0..300 {
            let top = (0..20).map(|i| (i, -f32::from(i as u8) / 7.0)).collect();
            let mut delta = Delta { index, ..Delta::default() };
            delta.push(index, " word", Some(TokenLogprobs { logprob: -0.5, top, bytes: vec![] }));
            broker.append(&claim.lease, &delta).await.expect("appended");
        }
        broker.finish(&claim.lease, &ending(300, Outcome::Completed)).await.expect("ended");
    }
    let (retained, measured) = (retained(&queue).await, measured(&queue).await);
    assert!(retained > 50_000 * TURNS as u64, "{retained} bytes are no long replies");
    assert_near(retained, measured);
}

#[tokio::test]
async fn a_result_stream_goes_and_its_reply_stays() {
    let queue = RedisQueue::start();
    let broker = worker(&queue, u64::MAX / 2).await;
    let id = run_turns(&queue, &broker, 1).await[0];
    let stream = queue.keys().result(id);
    let is_gone = async || queue.command::<u64>(&["EXISTS", &stream]).await == 0;
    until("the stream of a short reply is gone", is_gone).await;
    let reply = queue.short_reply(id).await.expect("the reply is kept with the outcome");
    assert_eq!((reply.index, reply.tokens.len()), (0, 40));
}

/// Anybody may write into the queue's indexes by mistake, and so may another version.
#[tokio::test]
async fn what_cannot_be_read_keeps_nothing_from_being_forgotten() {
    /// More than one look at dead letters shows.
    const FOREIGN: u64 = 70;
    let queue = RedisQueue::start().broken();
    let settings = queue.settings("w", WorkerLimits::default());
    let settings = BrokerSettings { retained_bytes: 1, dead_bytes: 1, keep_stream_ms: 1, ..settings };
    let broker = RedisBroker::connect(settings).await.expect("the server is suitable");
    let (ended, dead) = (queue.keys().ended(), queue.keys().dead());
    for _ in 0..FOREIGN {
        let _: String = queue.command(&["XADD", &dead, "*", "foreign", "x"]).await;
    }
    // Another version's, and one that only the script cannot read.
    let (more, sign) = (format!("{} 1 2 3 4", TurnId::new(0)), format!("{} +1 2 3", TurnId::new(0)));
    let unreadable: [&[u8]; 4] = [b"nonsense", b"\xff\xfe", more.as_bytes(), sign.as_bytes()];
    for entry in unreadable {
        let mut push = redis::cmd("RPUSH");
        let _: u64 = push.arg(&ended).arg(entry).query_async(&mut queue.raw().await).await.expect("pushed");
    }
    let ids = run_turns(&queue, &broker, 3).await;
    let failed = enqueue(&queue, &[turn(None, "1")]).await[0];
    let claim = claim(&broker).await;
    broker.finish(&claim.lease, &ending(0, Outcome::Failed)).await.expect("ended");
    assert!(has_outcome(&queue, failed).await);

    broker.sweep().await.expect("swept");
    assert_eq!(queue.command::<u64>(&["LLEN", &ended]).await, 0);
    for id in ids.into_iter().chain([failed]) {
        assert!(!has_outcome(&queue, id).await, "{id}");
    }
    assert_eq!(retained(&queue).await, 0);
    assert_eq!(
        queue.command::<u64>(&["XLEN", &dead]).await,
        FOREIGN,
        "foreign entries are not ours to remove"
    );
}
