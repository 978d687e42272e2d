//! The Redis adapter in a queue that is not as it should be: replies that cannot be read, and many overdue
//! turns.

use std::time::{Duration, Instant};

use turnmill_schema::envelope::encode;
use turnmill_schema::keys::FIELD_EVENT;
use turnmill_schema::{DeadReason, Delta, Event, Turn, TurnId};
use turnmill_tests::broker_conformance::{
    MAX_ATTEMPTS, PATIENCE, TestQueue, claim, delta, enqueue, reclaim_one, turn,
};
use turnmill_tests::redis_queue::RedisQueue;
use turnmill_worker::broker::{Broker, Retry};

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
