//! What each check of the scripts is for: without it, the conformance suite fails.

use std::sync::Arc;

use turnmill_schema::Outcome;
use turnmill_tests::broker_conformance::{
    TestQueue, a_late_manifest_is_taken_unless_a_newer_lease_said_something,
    a_lease_taken_over_fences_the_old_worker, a_worker_that_slept_between_read_and_lease_gets_nothing, claim,
    ending, enqueue, manifest, renewing_keeps_leases, turn,
};
use turnmill_tests::redis_queue::RedisQueue;
use turnmill_worker::broker::Broker;
use turnmill_worker::broker::redis::Scripts;

/// The script without `check`, which must be there once.
fn without(script: &mut String, check: &str, instead: &str) {
    assert_eq!(script.matches(check).count(), 1, "the script has changed; name its check anew: {check}");
    *script = script.replace(check, instead);
}

/// The suite's function passes with the protocol's scripts and fails with `scripts`.
async fn is_missed<F: Future<Output = ()> + Send + 'static>(
    function: fn(Arc<RedisQueue>) -> F,
    scripts: Scripts,
) {
    let (whole, broken) = (RedisQueue::start(), RedisQueue::start().with_scripts(scripts));
    tokio::spawn(function(Arc::new(whole))).await.expect("the protocol passes");
    let missed = tokio::spawn(function(Arc::new(broken))).await;
    assert!(missed.is_err_and(|e| e.is_panic()), "nobody misses the check");
}

#[tokio::test]
async fn the_fence() {
    let mut scripts = Scripts::default();
    let check = "agent.state ~= 'leased' or agent.owner ~= worker or agent.epoch ~= epoch";
    without(&mut scripts.finish, check, "false");
    without(&mut scripts.finish, "top_epoch > tonumber(epoch)", "false");
    is_missed(|queue| async move { a_lease_taken_over_fences_the_old_worker(&*queue).await }, scripts).await;
}

#[tokio::test]
async fn renewing() {
    let mut scripts = Scripts::default();
    let keep = "redis.call('XCLAIM', READY[priority], GROUP, WORKER, 0, ticket, 'JUSTID')";
    without(&mut scripts.renew, keep, "");
    is_missed(|queue| async move { renewing_keeps_leases(&*queue).await }, scripts).await;
}

/// The suite sees no keys.
async fn a_late_manifest_brings_no_agent_back(queue: Arc<RedisQueue>) {
    enqueue(&*queue, &[turn(None, "1")]).await;
    let worker = queue.worker("w").await;
    let lease = claim(&worker).await.lease;
    worker.finish(&lease, &ending(0, Outcome::Completed)).await.expect("ended");
    worker.advance(&lease, &manifest(16)).await.expect("answered");
    let left: u64 = queue.command(&["EXISTS", &queue.keys().agent(&lease.ticket.agent)]).await;
    assert_eq!(left, 0);
}

#[tokio::test]
async fn the_fence_of_manifests() {
    let mut scripts = Scripts::default();
    without(&mut scripts.advance, "tonumber(ARGV[1]) < (tonumber(found[2]) or 0)", "false");
    is_missed(
        |queue| async move { a_late_manifest_is_taken_unless_a_newer_lease_said_something(&*queue).await },
        scripts,
    )
    .await;
    let mut scripts = Scripts::default();
    without(&mut scripts.advance, "not found[1] or ", "");
    is_missed(a_late_manifest_brings_no_agent_back, scripts).await;
}

#[tokio::test]
async fn the_owner_check_in_lease() {
    let mut scripts = Scripts::default();
    without(&mut scripts.lease, "if consumer ~= WORKER then", "if false then");
    is_missed(
        |queue| async move { a_worker_that_slept_between_read_and_lease_gets_nothing(&*queue).await },
        scripts,
    )
    .await;
}
