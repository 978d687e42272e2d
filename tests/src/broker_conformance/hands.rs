//! What a worker has in its hands: dropping it, and renewing it while it ends.

use std::time::{Duration, Instant};

use turnmill_schema::Outcome;
use turnmill_worker::broker::{Broker, BrokerError, Ending};

use super::{
    PATIENCE, TestQueue, WorkerLimits, claim, delta, ending, ends, enqueue, read_one, reclaim, turn, unheard,
};

/// A lease that was dropped after a refusal that is no fence, and a ticket that was never leased: a worker that goes on renewing
/// what it has leaves both to the next worker that comes, itself too.
pub async fn what_is_dropped_comes_back_to_a_lone_worker<Q: TestQueue>(queue: &Q) {
    let ids = enqueue(queue, &["a", "b", "c"].map(|agent| turn(Some(agent), "1"))).await;
    let broker = queue.worker("lone").await;
    let refused = claim(&broker).await;
    let gap = broker.append(&refused.lease, &delta(2, &[1])).await;
    assert!(matches!(gap, Err(BrokerError::Gap { .. })), "{gap:?}");
    drop(refused);
    drop(read_one(&broker).await);
    let kept = claim(&broker).await;
    assert_eq!(broker.leases(), 1);
    let (patience, mut reclaimed) = (Instant::now() + PATIENCE, 0);
    while reclaimed < 2 {
        broker.renew().await.expect("answered");
        reclaimed += broker.reclaim().await.expect("answered");
        assert!(Instant::now() < patience, "{reclaimed} of 2 came back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let again = [claim(&broker).await, claim(&broker).await];
    let attempts = again.each_ref().map(|claim| (claim.lease.turn, claim.lease.attempt));
    assert_eq!(attempts, [(ids[0], 2), (ids[1], 1)]);
    assert!(!kept.lease.is_lost() && kept.lease.turn == ids[2]);
}

/// The renewal finds that the lease is over, because the answer to what ended it has not come yet: that is no loss, and the ticket
/// to go on with is the worker's.
pub async fn a_renewal_while_a_turn_ends_loses_nothing<Q: TestQueue>(queue: &Q) {
    let limits = WorkerLimits { max_continues: 4, ..Default::default() };
    let broker = queue.worker_with("w", limits).await;
    let ids = enqueue(queue, &[turn(Some("a"), "1"), turn(Some("a"), "2")]).await;
    let first = claim(&broker).await;
    let going_on = Ending { continues: true, ..ending(0, Outcome::Completed) };
    let mut answer = unheard(broker.finish(&first.lease, &going_on)).await;
    let patience = Instant::now() + PATIENCE;
    while ends(&queue.events(ids[0]).await).is_empty() {
        assert!(Instant::now() < patience, "the turn never ends");
        tokio::task::yield_now().await;
    }
    broker.renew().await.expect("answered");
    assert!(!first.lease.is_lost());
    if answer.is_none() {
        answer = Some(broker.finish(&first.lease, &going_on).await);
    }
    let ticket = answer.expect("answered").expect("ended").expect("the worker continues");
    broker.renew().await.expect("answered");
    let second = broker.lease(&ticket).await.expect("answered").expect("the ticket is ours");
    assert_eq!(second.lease.turn, ids[1]);

    let requeued = unheard(broker.requeue(&second.lease, None)).await;
    let patience = Instant::now() + PATIENCE;
    while broker.counts().await.expect("counted").runnable() == 0 {
        assert!(Instant::now() < patience, "the turn is never requeued");
        tokio::task::yield_now().await;
    }
    broker.renew().await.expect("answered");
    assert!(!second.lease.is_lost());
    if requeued.is_none() {
        broker.requeue(&second.lease, None).await.expect("requeued");
    }
    drop((ticket, second));
    let third = claim(&broker).await;
    assert_eq!((third.lease.turn, third.lease.attempt), (ids[1], 1));
    drop(third);
    assert_eq!((reclaim(&broker).await, broker.leases()), (1, 0));
}
