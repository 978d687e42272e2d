//! Turns that name the turn before them: the newest of their agent, or they are refused.

use crate::memory_broker::{AfterTurn, NotEnqueued};
use turnmill_redis::steps::{AgentAction, Rollback};
use turnmill_schema::{IdempotencyKey, Outcome, Turn, TurnId};
use turnmill_worker::broker::Broker;

use super::{ROOM, TestQueue, claim, ending, ending_with, enqueue, entry, turn};

fn stale<T>(place: usize, head: impl Into<Option<TurnId>>) -> Result<T, NotEnqueued> {
    Err(NotEnqueued::Stale { place, head: head.into() })
}

/// Enqueues one turn of the agent `a` after another; its id.
async fn follow<Q: TestQueue>(queue: &Q, after: TurnId) -> Result<TurnId, NotEnqueued> {
    let next = turn(Some("a"), "next");
    queue.enqueue_after(&[(&next, Some(after))], ROOM).await.map(|ids| ids[0])
}

/// Runs the next turn to its end.
async fn run<B: Broker>(broker: &B, outcome: Outcome) -> TurnId {
    let lease = claim(broker).await.lease;
    let ending = ending_with(entry(&lease, "said", 0, &[1]), outcome);
    broker.finish(&lease, &ending).await.expect("ended");
    lease.turn
}

/// The newest turn is the last that waits or runs, or else the last that completed. A refusal tells it.
pub async fn a_turn_that_names_the_one_before_follows_it_or_is_refused<Q: TestQueue>(queue: &Q) {
    let nobody = TurnId::new(0);
    assert_eq!(follow(queue, nobody).await, stale(0, None), "the agent has no turn");
    let broker = queue.worker("w").await;
    assert_eq!(broker.counts().await.expect("counted").enqueued, 0, "nothing was written");

    let first = enqueue(queue, &[turn(Some("a"), "1")]).await[0];
    assert_eq!(follow(queue, nobody).await, stale(0, first));
    let second = follow(queue, first).await.expect("the first one waits");
    assert_eq!(follow(queue, first).await, stale(0, second));
    assert_eq!(run(&broker, Outcome::Completed).await, first);
    assert_eq!(follow(queue, first).await, stale(0, second), "it waits still");
    let running = claim(&broker).await.lease;
    let third = follow(queue, second).await.expect("the second one runs");
    broker
        .finish(&running, &ending_with(entry(&running, "2", 0, &[2]), Outcome::Completed))
        .await
        .expect("ended");
    assert_eq!(run(&broker, Outcome::Completed).await, third);
    assert_eq!(follow(queue, second).await, stale(0, third));
    let fourth = follow(queue, third).await.expect("the third one completed");

    // Another agent's turn, and a turn that stands alone.
    let (other, lone) = (turn(Some("b"), "1"), turn(None, "1"));
    assert_eq!(queue.enqueue_after(&[(&other, Some(fourth))], ROOM).await, stale(0, None));
    assert_eq!(queue.enqueue_after(&[(&lone, Some(fourth))], ROOM).await, stale(0, None));
}

/// Each after the one before it, of several agents; and if one is stale, nothing of the call is enqueued.
pub async fn turns_of_one_call_may_follow_each_other<Q: TestQueue>(queue: &Q) {
    let turns: Vec<Turn> =
        ["a", "b", "a", "b", "a"].into_iter().map(|agent| turn(Some(agent), "1")).collect();
    let after = |place: usize| Some(turns[place].id);
    let chain: Vec<AfterTurn<'_>> = turns.iter().zip([None, None, after(0), after(1), after(2)]).collect();
    let broken: Vec<AfterTurn<'_>> = turns.iter().zip([None, None, after(0), after(1), after(0)]).collect();
    let broker = queue.worker("w").await;
    assert_eq!(queue.enqueue_after(&broken, ROOM).await, stale(4, turns[2].id));
    let counts = broker.counts().await.expect("counted");
    assert_eq!((counts.enqueued, counts.open(), counts.runnable()), (0, 0, 0), "nothing was written");
    let ids: Vec<TurnId> = turns.iter().map(|turn| turn.id).collect();
    assert_eq!(queue.enqueue_after(&chain, ROOM).await, Ok(ids));
}

/// A producer that did not hear the answer asks again, whatever came after the turn: under its id, or under its idempotency key.
pub async fn a_turn_enqueued_before_is_never_stale<Q: TestQueue>(queue: &Q) {
    let keyed = |key: &str| Turn { idempotency_key: IdempotencyKey::new(key).ok(), ..turn(Some("a"), key) };
    let first = enqueue(queue, &[turn(Some("a"), "1")]).await[0];
    let plain = turn(Some("a"), "2");
    let (third, fourth) = (keyed("3"), keyed("4"));
    let chain = [(&plain, Some(first)), (&third, Some(plain.id)), (&fourth, Some(third.id))];
    let ids = queue.enqueue_after(&chain, ROOM).await.expect("each follows the one before");
    assert_eq!(queue.enqueue_after(&chain, ROOM).await, Ok(ids.clone()));
    assert_eq!(queue.enqueue_after(&chain[..1], ROOM).await, Ok(vec![plain.id]));
    let broker = queue.worker("w").await;
    for _ in 0..4 {
        run(&broker, Outcome::Completed).await;
    }
    assert_eq!(queue.enqueue_after(&chain, ROOM).await, Ok(ids));

    // Under new ids: the one that is there stands for its like, also as the one to follow.
    let (again, next) = (keyed("4"), turn(Some("a"), "5"));
    let more = [(&again, Some(third.id)), (&next, Some(again.id))];
    assert_eq!(queue.enqueue_after(&more, ROOM).await, Ok(vec![fourth.id, next.id]));
}

/// Turns that fail, are cancelled or expire are no part of the conversation.
pub async fn what_did_not_complete_leaves_the_head_where_it_was<Q: TestQueue>(queue: &Q) {
    let broker = queue.worker("w").await;
    let first = enqueue(queue, &[turn(Some("a"), "1")]).await[0];
    run(&broker, Outcome::Completed).await;
    let failed = follow(queue, first).await.expect("the first one completed");
    let lease = claim(&broker).await.lease;
    broker.finish(&lease, &ending(0, Outcome::Failed)).await.expect("ended");
    assert_eq!(follow(queue, failed).await, stale(0, first));

    let second = follow(queue, first).await.expect("nothing completed since");
    let cancelled = follow(queue, second).await.expect("it waits");
    queue.cancel(cancelled).await;
    assert_eq!(follow(queue, cancelled).await, stale(0, second));
    follow(queue, second).await.expect("it waits again as the last one");
}

/// The last turn that stays when the end of a history is forgotten; none when all of it is.
pub async fn a_changed_history_has_another_head<Q: TestQueue>(queue: &Q) {
    let broker = queue.worker("w").await;
    let agent = turn(Some("a"), "").agent_id();
    let mut turns = Vec::new();
    for content in ["1", "2", "3"] {
        enqueue(queue, &[turn(Some("a"), content)]).await;
        turns.push(run(&broker, Outcome::Completed).await);
    }
    let back = Rollback { stay: 2, to: turns[1], entries: 3, last: turns[2] };
    queue.act(&agent, AgentAction::RollBack(back)).await;
    assert_eq!(follow(queue, turns[2]).await, stale(0, turns[1]));
    follow(queue, turns[1]).await.expect("it is the last one");
    let anew = Turn { new_session: true, ..turn(Some("a"), "anew") };
    let anew = enqueue(queue, &[anew]).await[0];
    assert_eq!(follow(queue, turns[1]).await, stale(0, anew));
    run(&broker, Outcome::Completed).await;
    run(&broker, Outcome::Completed).await;
    assert_eq!(follow(queue, turns[1]).await, stale(0, anew));
    queue.act(&agent, AgentAction::Reset).await;
    assert_eq!(follow(queue, anew).await, stale(0, None));
}
