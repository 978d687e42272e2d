//! Manifests: what is said of an agent's stored blocks reaches its next claim, and nothing stale does.

use turnmill_redis::steps::AgentAction;
use turnmill_schema::{Digest, Manifest, Outcome, Turn};
use turnmill_worker::broker::{Broker, Claim, Ending, Lease};

use super::{
    TestQueue, claim, delta, ending, ending_with, enqueue, entry, finish, is_fenced, take_over, turn,
};
use crate::memory_broker::{Acted, AgentState};

/// A manifest of `tokens` tokens, unlike that of any other number.
pub fn manifest(tokens: u32) -> Manifest {
    let mut last = [7; 32];
    last[..4].copy_from_slice(&tokens.to_le_bytes());
    Manifest { namespace: Digest([0xff; 32]), tokens, shared_tokens: 0, last: last.into() }
}

/// Enqueues a turn of agent `a` and claims it.
async fn next<Q: TestQueue>(queue: &Q, broker: &Q::Broker) -> Claim {
    enqueue(queue, &[turn(Some("a"), "x")]).await;
    claim(broker).await
}

async fn finish_with<B: Broker>(broker: &B, lease: &Lease, outcome: Outcome, tokens: Option<u32>) {
    let ending = Ending { manifest: tokens.map(manifest), ..ending(0, outcome) };
    broker.finish(lease, &ending).await.expect("ended");
    broker.finish(lease, &ending).await.expect("the same answer");
}

/// Whatever the outcome; one who says nothing leaves what there was.
pub async fn a_manifest_is_committed_with_the_end<Q: TestQueue>(queue: &Q) {
    let broker = queue.worker("w").await;
    let mut seen = Vec::new();
    let said = [
        (Outcome::Completed, Some(16)),
        (Outcome::Completed, None),
        (Outcome::Failed, Some(32)),
        (Outcome::Failed, None),
        (Outcome::Completed, Some(48)),
    ];
    for (outcome, tokens) in said {
        let claim = next(queue, &broker).await;
        seen.push(claim.manifest);
        finish_with(&broker, &claim.lease, outcome, tokens).await;
    }
    // The next turn goes to the worker that ended this one.
    let claim = next(queue, &broker).await;
    seen.push(claim.manifest);
    assert_eq!(seen, [None, Some(16), Some(16), Some(32), Some(32), Some(48)].map(|said| said.map(manifest)));
    enqueue(queue, &[turn(Some("b"), "x")]).await;
    finish(&broker, &claim.lease, 0).await;
    assert_eq!(self::claim(&broker).await.manifest, None, "each agent has its own");
}

/// Drain: the next worker finds what this one stored in the middle of the turn.
pub async fn a_requeued_turn_carries_its_manifest<Q: TestQueue>(queue: &Q) {
    let (draining, other) = (queue.worker("draining").await, queue.worker("other").await);
    let requeued = next(queue, &draining).await;
    for _ in 0..2 {
        draining.requeue(&requeued.lease, Some(&manifest(16))).await.expect("requeued, now or before");
    }
    let resumed = claim(&other).await;
    assert_eq!(resumed.manifest, Some(manifest(16)));
    assert!(is_fenced(draining.finish(&requeued.lease, &ending(0, Outcome::Completed)).await));
    other.requeue(&resumed.lease, None).await.expect("requeued");
    let resumed = claim(&other).await;
    assert_eq!(resumed.manifest, Some(manifest(16)), "what was said stands");
    assert!(is_fenced(draining.requeue(&requeued.lease, Some(&manifest(99))).await));
    finish(&other, &resumed.lease, 0).await;
    assert_eq!(next(queue, &other).await.manifest, Some(manifest(16)));
}

/// The store acknowledges some blocks later than the turn ends.
pub async fn a_late_manifest_is_taken_unless_a_newer_lease_said_something<Q: TestQueue>(queue: &Q) {
    let (old, new) = (queue.worker("old").await, queue.worker("new").await);
    let first = next(queue, &old).await;
    old.advance(&first.lease.fence(), &manifest(16)).await.expect("during the lease");
    finish_with(&old, &first.lease, Outcome::Completed, Some(32)).await;
    for _ in 0..2 {
        old.advance(&first.lease.fence(), &manifest(48)).await.expect("after the lease");
    }
    let second = next(queue, &old).await;
    assert_eq!(second.manifest, Some(manifest(48)));
    old.advance(&first.lease.fence(), &manifest(64)).await.expect("the newer lease has said nothing yet");

    // The worker that was silent goes on storing.
    let third = take_over(&new).await;
    assert_eq!(third.manifest, Some(manifest(64)));
    finish_with(&new, &third.lease, Outcome::Completed, Some(80)).await;
    for stale in [&first.lease, &second.lease] {
        old.advance(&stale.fence(), &manifest(999)).await.expect("ignored");
    }
    assert_eq!(next(queue, &new).await.manifest, Some(manifest(80)));
}

/// Together with the history it was about, and not before.
pub async fn a_new_session_forgets_the_manifest_when_it_completes<Q: TestQueue>(queue: &Q) {
    let broker = queue.worker("w").await;
    let first = next(queue, &broker).await;
    finish_with(&broker, &first.lease, Outcome::Completed, Some(16)).await;
    for (outcome, tokens, left) in [
        (Outcome::Failed, None, Some(16)),
        (Outcome::Completed, None, None),
        (Outcome::Completed, Some(32), Some(32)),
    ] {
        enqueue(queue, &[Turn { new_session: true, ..turn(Some("a"), "anew") }]).await;
        let anew = claim(&broker).await;
        finish_with(&broker, &anew.lease, outcome, tokens).await;
        broker.advance(&first.lease.fence(), &manifest(999)).await.expect("answered");
        let after = next(queue, &broker).await;
        let left = if outcome == Outcome::Failed { Some(999) } else { left };
        assert_eq!(after.manifest, left.map(manifest), "{outcome:?} {tokens:?}");
        finish(&broker, &after.lease, 0).await;
    }
}

/// An operator's word stands, whatever was under way.
pub async fn a_reset_forgets_the_manifest_and_late_ones<Q: TestQueue>(queue: &Q) {
    let broker = queue.worker("w").await;
    let first = next(queue, &broker).await;
    let id = first.lease.agent.clone();
    finish_with(&broker, &first.lease, Outcome::Completed, Some(16)).await;
    assert_eq!(queue.act(&id, AgentAction::Reset).await, Acted::State(AgentState::Idle));
    broker.advance(&first.lease.fence(), &manifest(32)).await.expect("ignored");
    let second = next(queue, &broker).await;
    assert_eq!(second.manifest, None);
    broker.advance(&first.lease.fence(), &manifest(32)).await.expect("ignored");
    broker.advance(&second.lease.fence(), &manifest(48)).await.expect("taken");
    finish(&broker, &second.lease, 0).await;
    assert_eq!(next(queue, &broker).await.manifest, Some(manifest(48)));
}

/// They have no next turn. One that is requeued has a next worker.
pub async fn lone_turns_leave_no_manifest<Q: TestQueue>(queue: &Q) {
    let broker = queue.worker("w").await;
    enqueue(queue, &[turn(None, "1")]).await;
    let requeued = claim(&broker).await;
    broker.requeue(&requeued.lease, Some(&manifest(16))).await.expect("requeued");
    let resumed = claim(&broker).await;
    assert_eq!(resumed.manifest, Some(manifest(16)));
    finish_with(&broker, &resumed.lease, Outcome::Completed, Some(32)).await;
    broker.advance(&resumed.lease.fence(), &manifest(48)).await.expect("ignored");
    let unknown = queue.act(&resumed.lease.agent, AgentAction::Skip).await;
    assert_eq!(unknown, Acted::Unknown, "the agent is gone, and nothing of it came back");
}

/// It would go on after another history than the one it began with.
pub async fn a_waiting_turn_that_published_keeps_its_history<Q: TestQueue>(queue: &Q) {
    let broker = queue.worker("w").await;
    let first = next(queue, &broker).await;
    let id = first.lease.agent.clone();
    let committed = ending_with(entry(&first.lease, "1", 0, &[1, 2]), Outcome::Completed);
    broker.finish(&first.lease, &committed).await.expect("ended");
    let second = next(queue, &broker).await;
    broker.requeue(&second.lease, None).await.expect("requeued");
    assert_eq!(queue.act(&id, AgentAction::Pause).await, Acted::State(AgentState::Paused));
    queue.act(&id, AgentAction::Resume).await;
    let second = claim(&broker).await;
    broker.append(&second.lease, &delta(0, &[3])).await.expect("appended");
    broker.requeue(&second.lease, None).await.expect("requeued");
    assert_eq!(queue.act(&id, AgentAction::Reset).await, Acted::Busy);
    let second = claim(&broker).await;
    assert_eq!(second.history.tokens, [1, 2]);
    finish(&broker, &second.lease, 1).await;
    assert_eq!(queue.act(&id, AgentAction::Reset).await, Acted::State(AgentState::Idle));
}
