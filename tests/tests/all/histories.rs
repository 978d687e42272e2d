//! Histories that workers on Redis remember, so that they need not be read again with every turn: what changes behind a worker's back
//! is read anew, and the rest stays in Redis.

use turnmill_redis::steps::{AgentAction, Seed, Seeded};
use turnmill_schema::{AgentId, Outcome, Priority, TurnId};
use turnmill_tests::broker_conformance::{TestQueue, claim, ending_with, enqueue, entry, reclaim_one, turn};
use turnmill_tests::redis_queue::RedisQueue;
use turnmill_worker::broker::redis::RedisBroker;
use turnmill_worker::broker::{Broker, Claim};

fn agent() -> AgentId {
    turn(Some("a"), "").agent_id()
}

async fn next(queue: &RedisQueue, worker: &RedisBroker) -> Claim {
    enqueue(queue, &[turn(Some("a"), "next")]).await;
    claim(worker).await
}

/// Completes a turn that adds one message, and a token; what its agent heard before.
async fn complete(worker: &RedisBroker, claim: &Claim, said: &str, token: u32) -> Vec<String> {
    let keep = claim.history.tokens.len() as u32;
    let ending = ending_with(entry(&claim.lease, said, keep, &[token]), Outcome::Completed);
    worker.finish(&claim.lease, &ending).await.expect("ended");
    heard(claim)
}

async fn say(queue: &RedisQueue, worker: &RedisBroker, said: &str, token: u32) -> Vec<String> {
    complete(worker, &next(queue, worker).await, said, token).await
}

fn heard(claim: &Claim) -> Vec<String> {
    claim.history.messages.iter().map(|message| message.content.clone()).collect()
}

/// Exported, edited by whatever means, and imported again: turns, marks and places are the same, and the words are not.
pub async fn an_edited_history_is_read_anew(queue: &RedisQueue) {
    let worker = queue.worker("w").await;
    for (said, token) in [("one", 1), ("two", 2)] {
        say(queue, &worker, said, token).await;
    }
    let transcript = queue.keys().transcript(&agent());
    let mut entries: Vec<Vec<u8>> = queue.command(&["LRANGE", &transcript, "0", "-1"]).await;
    let at = entries[0].windows(3).position(|bytes| bytes == b"one").expect("it says so");
    entries[0][at..at + 3].copy_from_slice(b"ONE");
    queue.act(&agent(), AgentAction::Reset).await;
    let seed = Seed {
        agent: &agent(),
        seeding: TurnId::new(0).to_string(),
        on_dead: "skip",
        manifest: Vec::new(),
        entries: entries.iter().map(Vec::as_slice).collect(),
    };
    assert_eq!(queue.run(&seed).await, Seeded::Done);
    assert_eq!(say(queue, &worker, "three", 3).await, ["ONE", "two"], "the edited words count");
    assert_eq!(say(queue, &worker, "four", 4).await, ["ONE", "two", "three"]);
}

#[tokio::test]
async fn a_history_that_was_edited_is_read_anew() {
    an_edited_history_is_read_anew(&RedisQueue::start()).await;
}

/// A replica that lacks the last second takes over: the turn that had ended runs again, elsewhere, and says something else.
pub async fn a_lost_end_is_forgotten(queue: &RedisQueue) {
    let (worker, other) = (queue.worker("w").await, queue.worker("other").await);
    say(queue, &worker, "one", 1).await;
    let running = next(queue, &worker).await;
    let before = queue.dump().await;
    complete(&worker, &running, "two", 2).await;
    drop(running);
    let _: String = queue.command(&["FLUSHDB"]).await;
    let mut connection = queue.raw().await;
    for (key, value) in before {
        let mut restore = redis::cmd("RESTORE");
        restore.arg(key).arg(0).arg(value.expect("the key was there"));
        let () = restore.query_async(&mut connection).await.expect("restored");
    }
    queue.until_idle(Priority::Interactive).await;
    let ticket = reclaim_one(&other).await;
    let again = other.lease(&ticket).await.expect("answered").expect("ours");
    assert_eq!(complete(&other, &again, "TWO", 2).await, ["one"]);
    assert_eq!(say(queue, &worker, "three", 3).await, ["one", "TWO"], "the end that is there counts");
}

#[tokio::test]
async fn an_end_that_a_failover_lost_is_forgotten() {
    a_lost_end_is_forgotten(&RedisQueue::start()).await;
}

/// Somebody deleted entries by hand: what is there counts.
#[tokio::test]
async fn a_history_that_was_cut_by_hand_is_read_anew() {
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    for said in ["one", "two", "three"] {
        say(&queue, &worker, said, 1).await;
    }
    let transcript = queue.keys().transcript(&agent());
    let _: String = queue.command(&["LTRIM", &transcript, "1", "-1"]).await;
    assert_eq!(say(&queue, &worker, "four", 1).await, ["two", "three"]);
    let _: u64 = queue.command(&["DEL", &transcript]).await;
    assert_eq!(say(&queue, &worker, "five", 1).await, [""; 0]);
}

/// Bytes that the server has sent and received.
async fn traffic(queue: &RedisQueue) -> [u64; 2] {
    let stats: String = queue.command(&["INFO", "stats"]).await;
    ["total_net_output_bytes:", "total_net_input_bytes:"].map(|name| {
        let bytes = stats.lines().find_map(|line| line.strip_prefix(name));
        bytes.and_then(|bytes| bytes.trim().parse().ok()).expect("Redis counts its bytes")
    })
}

/// Turns of an agent with 100 KB of history, each on a worker that was not there before, and then on one that ran them all.
#[tokio::test]
async fn a_hot_agents_history_stays_in_redis() {
    const TURNS: u64 = 20;
    let queue = RedisQueue::start();
    let hot = queue.worker("hot").await;
    say(&queue, &hot, &"x".repeat(100 << 10), 1).await;
    let mut cold = Vec::new();
    for number in 0..TURNS {
        cold.push(queue.worker(&format!("cold{number}")).await);
    }
    let mut bytes_a_turn = Vec::new();
    for is_hot in [false, true] {
        // From here on it knows what the others said.
        say(&queue, &hot, "said", 1).await;
        let before = traffic(&queue).await;
        for cold in &cold {
            let worker = if is_hot { &hot } else { cold };
            enqueue(&queue, &[turn(Some("a"), "next")]).await;
            // Nothing else is asked meanwhile.
            let ticket = worker.read(1).await.expect("answered").pop().expect("there is one");
            let claim = worker.lease(&ticket).await.expect("answered").expect("ours");
            assert_eq!(complete(worker, &claim, "said", 1).await[0].len(), 100 << 10);
        }
        let after = traffic(&queue).await;
        bytes_a_turn.push([0, 1].map(|way| (after[way] - before[way]) / TURNS));
    }
    let [cold, hot] = [bytes_a_turn[0], bytes_a_turn[1]];
    println!("bytes a turn, from Redis and to it: {cold:?} without, {hot:?} with what the worker knows");
    assert!(cold[0] > 100 << 10, "{bytes_a_turn:?}");
    assert!(hot[0] * 50 <= cold[0], "{bytes_a_turn:?}");
}
