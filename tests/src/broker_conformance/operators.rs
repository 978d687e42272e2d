//! What operators do to turns and agents: cancelling, pausing, forgetting.

use std::time::{Duration, Instant};

use turnmill_redis::steps::AgentAction;
use turnmill_schema::{AgentId, DeadReason, Outcome, Turn, TurnId};
use turnmill_worker::broker::{Broker, Claim};

use super::{
    PATIENCE, TestQueue, claim, delta, ending, ending_with, ends, enqueue, entry, finish, is_fenced,
    read_one, turn,
};
use crate::memory_broker::{Acted, AgentState, Cancelled};

fn agent(name: &str) -> AgentId {
    turn(Some(name), "").agent_id()
}

async fn outcomes<Q: TestQueue>(queue: &Q, turn: TurnId) -> Vec<Outcome> {
    ends(&queue.events(turn).await).iter().map(|end| end.outcome).collect()
}

/// At the head or behind it: it ends at once, and the others run.
pub async fn a_waiting_turn_is_cancelled_at_once<Q: TestQueue>(queue: &Q) {
    let turns = ["1", "2", "3"].map(|content| turn(Some("a"), content));
    let ids = enqueue(queue, &turns).await;
    assert_eq!(queue.cancel(ids[1]).await, Cancelled::Now);
    assert_eq!(queue.cancel(ids[0]).await, Cancelled::Now);
    assert_eq!(queue.cancel(ids[0]).await, Cancelled::Ended(Outcome::Cancelled));
    assert_eq!(queue.cancel(TurnId::new(0)).await, Cancelled::Unknown);
    for id in &ids[..2] {
        assert_eq!(outcomes(queue, *id).await, [Outcome::Cancelled]);
    }
    let broker = queue.worker("w").await;
    let running = claim(&broker).await;
    assert_eq!(running.lease.turn, ids[2]);
    finish(&broker, &running.lease, 0).await;
    assert_eq!(queue.cancel(ids[2]).await, Cancelled::Ended(Outcome::Completed));
    let counts = broker.counts().await.expect("counted");
    assert_eq!((counts.open(), counts.runnable(), counts.leased()), (0, 0, 0));
}

/// The worker read the ticket for the turn that is gone: the ticket stands for the next one, or for nothing.
pub async fn a_turn_cancelled_between_read_and_lease_is_passed_over<Q: TestQueue>(queue: &Q) {
    let ids = enqueue(queue, &[turn(Some("a"), "1"), turn(Some("a"), "2"), turn(Some("b"), "1")]).await;
    let broker = queue.worker("w").await;
    let (of_a, of_b) = (read_one(&broker).await, read_one(&broker).await);
    assert_eq!(queue.cancel(ids[0]).await, Cancelled::Now);
    assert_eq!(queue.cancel(ids[2]).await, Cancelled::Now);
    let running = broker.lease(&of_a).await.expect("answered").expect("ours");
    assert_eq!(running.lease.turn, ids[1]);
    assert!(broker.lease(&of_b).await.expect("answered").is_none());
}

/// One that waits for a time or for an operator: what is behind it takes its place there.
pub async fn a_delayed_or_paused_turn_can_be_cancelled<Q: TestQueue>(queue: &Q) {
    let later_ms = queue.now_ms().await + 3_600_000;
    let scheduled = Turn { not_before_ms: Some(later_ms), ..turn(Some("a"), "1") };
    let turns = [scheduled, turn(Some("a"), "2"), turn(Some("b"), "1"), turn(Some("b"), "2")];
    let ids = enqueue(queue, &turns).await;
    let broker = queue.worker("w").await;
    assert_eq!(queue.act(&agent("b"), AgentAction::Pause).await, Acted::State(AgentState::Paused));
    assert_eq!(queue.cancel(ids[0]).await, Cancelled::Now);
    assert_eq!(queue.cancel(ids[2]).await, Cancelled::Now);
    let running = claim(&broker).await;
    assert_eq!(running.lease.turn, ids[1]);
    let counts = broker.counts().await.expect("counted");
    assert_eq!((counts.delayed, counts.runnable()), (0, 0), "the paused agent stays paused");
    queue.act(&agent("b"), AgentAction::Resume).await;
    assert_eq!(claim(&broker).await.lease.turn, ids[3]);
}

/// It ends at once; its worker writes nothing more, and hears of it with its next renewal.
pub async fn a_running_turn_is_cancelled_and_its_worker_fenced<Q: TestQueue>(queue: &Q) {
    let ids = enqueue(queue, &[turn(Some("a"), "1"), turn(Some("a"), "2")]).await;
    let (broker, other) = (queue.worker("w").await, queue.worker("other").await);
    let running = claim(&broker).await;
    broker.append(&running.lease, &delta(0, &[1])).await.expect("appended");
    assert_eq!(queue.cancel(ids[0]).await, Cancelled::Now);
    assert_eq!(outcomes(queue, ids[0]).await, [Outcome::Cancelled]);
    broker.renew().await.expect("answered");
    assert!(running.lease.is_lost());
    assert!(is_fenced(broker.append(&running.lease, &delta(1, &[2])).await));
    assert!(is_fenced(broker.finish(&running.lease, &ending(1, Outcome::Completed)).await));
    assert!(is_fenced(broker.requeue(&running.lease, None).await));
    let retried = broker.retry(&running.lease, Duration::ZERO, DeadReason::Attempts, "a fault").await;
    assert!(is_fenced(retried));
    assert_eq!(outcomes(queue, ids[0]).await, [Outcome::Cancelled]);
    assert_eq!(claim(&other).await.lease.turn, ids[1]);
}

/// A paused agent keeps its turns; one that runs goes on.
pub async fn a_paused_agent_runs_nothing_new<Q: TestQueue>(queue: &Q) {
    assert_eq!(queue.act(&agent("a"), AgentAction::Pause).await, Acted::Unknown);
    let ids = enqueue(queue, &[turn(Some("a"), "1"), turn(Some("a"), "2")]).await;
    let broker = queue.worker("w").await;
    let ticket = read_one(&broker).await;
    assert_eq!(queue.act(&agent("a"), AgentAction::Pause).await, Acted::State(AgentState::Paused));
    assert!(broker.lease(&ticket).await.expect("answered").is_none());
    assert_eq!(broker.counts().await.expect("counted").runnable(), 0);
    assert_eq!(queue.act(&agent("a"), AgentAction::Resume).await, Acted::State(AgentState::Ready));

    let running = claim(&broker).await;
    assert_eq!(queue.act(&agent("a"), AgentAction::Pause).await, Acted::State(AgentState::Leased));
    broker.append(&running.lease, &delta(0, &[1])).await.expect("it goes on");
    finish(&broker, &running.lease, 1).await;
    assert_eq!(broker.counts().await.expect("counted").runnable(), 0);
    queue.act(&agent("a"), AgentAction::Resume).await;
    assert_eq!(claim(&broker).await.lease.turn, ids[1]);
}

/// Tickets that workers hold are returned, and lost to nobody.
pub async fn a_paused_queue_leases_nothing<Q: TestQueue>(queue: &Q) {
    let id = enqueue(queue, &[turn(Some("a"), "1")]).await[0];
    let (broker, other) = (queue.worker("w").await, queue.worker("other").await);
    let ticket = read_one(&broker).await;
    queue.pause(true).await;
    assert!(broker.lease(&ticket).await.expect("answered").is_none());
    let counts = broker.counts().await.expect("counted");
    assert_eq!((counts.runnable(), counts.leased()), (1, 0));
    queue.pause(false).await;
    assert_eq!(claim(&other).await.lease.turn, id);
}

/// Not while a turn runs, which would write to it.
pub async fn an_agents_history_can_be_forgotten<Q: TestQueue>(queue: &Q) {
    enqueue(queue, &[turn(Some("a"), "1"), turn(Some("a"), "2")]).await;
    let broker = queue.worker("w").await;
    let first = claim(&broker).await;
    assert_eq!(queue.act(&agent("a"), AgentAction::Reset).await, Acted::Busy);
    let ending = ending_with(entry(&first.lease, "1", 0, &[1, 2]), Outcome::Completed);
    broker.finish(&first.lease, &ending).await.expect("ended");
    assert_eq!(queue.act(&agent("a"), AgentAction::Reset).await, Acted::State(AgentState::Ready));
    assert_eq!(claim(&broker).await.history, Default::default());
}

/// Sooner than by a renewal, once the worker listens.
pub async fn workers_are_told_of_cancelled_turns<Q: TestQueue>(queue: &Q) {
    let broker = queue.worker("w").await;
    let mut hearing = std::pin::pin!(async {
        loop {
            broker.hear().await.expect("heard");
        }
    });
    let patience = Instant::now() + PATIENCE;
    // Notices that nobody listened to are gone, so there are several.
    loop {
        let id = enqueue(queue, &[turn(None, "1")]).await[0];
        let (running, kept) = (claim(&broker).await, claim_another(queue, &broker).await);
        assert_eq!(running.lease.turn, id);
        let heard = async {
            tokio::select! {
                () = &mut hearing => {}
                () = running.lease.lost() => {}
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
        };
        assert_eq!(futures::future::join(heard, queue.cancel(id)).await.1, Cancelled::Now);
        assert!(!kept.lease.is_lost(), "somebody else's notice");
        if running.lease.is_lost() {
            return;
        }
        assert!(Instant::now() < patience, "nobody was told");
    }
}

async fn claim_another<Q: TestQueue>(queue: &Q, broker: &Q::Broker) -> Claim {
    enqueue(queue, &[turn(None, "2")]).await;
    claim(broker).await
}

/// Which of the last turns that ended another worker completed; not one's own, and not those that ended otherwise.
pub async fn workers_know_what_others_completed<Q: TestQueue>(queue: &Q) {
    let ids = enqueue(queue, &["1", "2", "3"].map(|content| turn(Some("a"), content))).await;
    let (one, two) = (queue.worker("one").await, queue.worker("two").await);
    let end = async |broker: &Q::Broker, name: &str, outcome: Outcome| {
        let running = claim(broker).await;
        let mut ending = ending(0, outcome);
        ending.end.worker = Some(name.to_owned());
        broker.finish(&running.lease, &ending).await.expect("the turn ends");
    };
    let others =
        async |broker: &Q::Broker, newest| broker.completed_by_others(newest).await.expect("answered");
    assert_eq!(others(&one, 10).await, []);
    end(&one, "one", Outcome::Completed).await;
    end(&two, "two", Outcome::Completed).await;
    assert_eq!((others(&one, 10).await, others(&two, 10).await), (vec![ids[1]], vec![ids[0]]));
    assert_eq!((others(&one, 1).await, others(&two, 1).await), (vec![ids[1]], vec![]), "the newest is two's");
    end(&two, "two", Outcome::Failed).await;
    assert_eq!((others(&one, 10).await, others(&two, 10).await), (vec![ids[1]], vec![ids[0]]));
}
