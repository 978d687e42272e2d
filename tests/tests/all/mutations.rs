//! What each check of the scripts is for: without it, the conformance suite fails.

use std::sync::Arc;

use turnmill_redis::steps::{Advance, Enqueue, Finish, LeaseHead, Renew};
use turnmill_redis::{ItemStep, Step};
use turnmill_schema::Outcome;
use turnmill_tests::broker_conformance::{
    TestQueue, a_late_manifest_is_taken_unless_a_newer_lease_said_something,
    a_lease_brings_the_whole_history, a_lease_taken_over_fences_the_old_worker,
    a_turn_enqueued_before_is_never_stale, a_turn_that_names_the_one_before_follows_it_or_is_refused,
    a_worker_that_slept_between_read_and_lease_gets_nothing, claim, ending, enqueue, manifest,
    nobody_starves_behind_a_hot_agent, renewing_keeps_leases, turn, turns_of_one_call_may_follow_each_other,
};
use turnmill_tests::redis_queue::RedisQueue;
use turnmill_worker::broker::Broker;

use super::broker_redis::a_broken_history_keeps_nobody_busy;
use super::histories::{a_lost_end_is_forgotten, an_edited_history_is_read_anew};

/// A step's script without `checks`, each of which must be there once; in its place stands what follows it.
fn without(script: &str, checks: &[(&str, &str)]) -> String {
    checks.iter().fold(script.to_owned(), |script, (check, instead)| {
        assert_eq!(script.matches(check).count(), 1, "the script has changed; name its check anew: {check}");
        script.replace(check, instead)
    })
}

/// The suite's function passes with the protocol's scripts. With `script` in place of that of the step `name` it fails, and says
/// `complaint`: anything else would be a fault of the cut, not the lack of the check.
async fn is_missed<F: Future<Output = ()> + Send + 'static>(
    function: fn(Arc<RedisQueue>) -> F,
    (name, script): (&'static str, String),
    complaint: &str,
) {
    let whole = RedisQueue::start();
    let compiled: String = whole.command(&["SCRIPT", "LOAD", &script]).await;
    assert!(!compiled.is_empty(), "a script that was cut has to compile");
    let broken = RedisQueue::start().with_scripts(vec![(name, script)]);
    tokio::spawn(function(Arc::new(whole))).await.expect("the protocol passes");
    let missed = tokio::spawn(function(Arc::new(broken))).await.expect_err("nobody misses the check");
    let panic = missed.into_panic();
    let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    assert!(said.is_some_and(|said| said.contains(complaint)), "not for want of {complaint:?}: {said:?}");
}

#[tokio::test]
async fn the_fence() {
    let script = without(
        Finish::SCRIPT,
        &[
            ("agent.state ~= 'leased' or agent.owner ~= worker or agent.epoch ~= epoch", "false"),
            ("top_epoch > tonumber(epoch)", "false"),
        ],
    );
    let function =
        |queue: Arc<RedisQueue>| async move { a_lease_taken_over_fences_the_old_worker(&*queue).await };
    is_missed(function, (Finish::NAME, script), "expected Fenced, not ").await;
}

#[tokio::test]
async fn renewing() {
    let keep = "redis.call('XCLAIM', READY[priority], GROUP, WORKER, '0', ticket, 'JUSTID')";
    let function = |queue: Arc<RedisQueue>| async move { renewing_keeps_leases(&*queue).await };
    let script = without(Renew::SCRIPT, &[(keep, "")]);
    is_missed(function, (Renew::NAME, script), "taken over from a worker that renews").await;
}

/// The suite sees no keys.
async fn a_late_manifest_brings_no_agent_back(queue: Arc<RedisQueue>) {
    enqueue(&*queue, &[turn(None, "1")]).await;
    let worker = queue.worker("w").await;
    let lease = claim(&worker).await.lease;
    worker.finish(&lease, &ending(0, Outcome::Completed)).await.expect("ended");
    worker.advance(&lease.fence(), &manifest(16)).await.expect("answered");
    let left: u64 = queue.command(&["EXISTS", &queue.keys().agent(&lease.agent)]).await;
    assert_eq!(left, 0, "the agent is back");
}

#[tokio::test]
async fn the_fence_of_manifests() {
    let script = without(Advance::SCRIPT, &[("tonumber(ARGV[1]) < (tonumber(found[2]) or 0)", "false")]);
    let function = |queue: Arc<RedisQueue>| async move {
        a_late_manifest_is_taken_unless_a_newer_lease_said_something(&*queue).await;
    };
    is_missed(function, (Advance::NAME, script), "tokens: 999").await;
    let script = without(Advance::SCRIPT, &[("not found[1] or ", "")]);
    is_missed(a_late_manifest_brings_no_agent_back, (Advance::NAME, script), "the agent is back").await;
}

/// A ticket that its worker had for too long is not its any more, and its agent has another.
#[tokio::test]
async fn the_ticket_check_in_lease() {
    let checks = [
        ("local consumer, delivery = pending(stream, ticket)", "local consumer, delivery = WORKER, 1"),
        ("not stands_for(agent, ticket) or agent.priority", "agent.priority"),
    ];
    let function = |queue: Arc<RedisQueue>| async move {
        a_worker_that_slept_between_read_and_lease_gets_nothing(&*queue).await;
    };
    let script = without(LeaseHead::SCRIPT, &checks);
    is_missed(function, (LeaseHead::NAME, script), "sleeper.lease(&ticket)").await;
}

/// The turn that a turn must follow is the newest one: of the same call, of the backlog, or of the history.
#[tokio::test]
async fn what_a_turn_follows() {
    let one_after_another = |queue: Arc<RedisQueue>| async move {
        a_turn_that_names_the_one_before_follows_it_or_is_refused(&*queue).await;
    };
    let stale = "head ~= (following.renamed[special.after] or special.after)";
    for (check, instead, complaint) in [
        (stale, "false", "the agent has no turn"),
        ("if last then", "if false then", "head: None"),
        ("entry and turn_of_entry(entry) or ''", "''", "head: None"),
    ] {
        let script = without(Enqueue::SCRIPT, &[(check, instead)]);
        is_missed(one_after_another, (Enqueue::NAME, script), complaint).await;
    }
    let in_one_call =
        |queue: Arc<RedisQueue>| async move { turns_of_one_call_may_follow_each_other(&*queue).await };
    let script = without(Enqueue::SCRIPT, &[("if newest[agent_key] then", "if false then")]);
    is_missed(in_one_call, (Enqueue::NAME, script), "place: 2").await;
    let again = |queue: Arc<RedisQueue>| async move { a_turn_enqueued_before_is_never_stale(&*queue).await };
    let script = without(Enqueue::SCRIPT, &[(stale, "head ~= special.after")]);
    is_missed(again, (Enqueue::NAME, script), "place: 1").await;
}

/// What a worker knows of a history is still the agent's: the last entry stands where it did, it is this one, and nobody gave the agent
/// another history.
#[tokio::test]
async fn what_is_known_of_a_history() {
    let is_the_entry = "found[1] and string.sub(found[1], 1, #start) == start";
    let script = without(LeaseHead::SCRIPT, &[(is_the_entry, "found[1]")]);
    let lost = |queue: Arc<RedisQueue>| async move { a_lost_end_is_forgotten(&queue).await };
    is_missed(lost, (LeaseHead::NAME, script), "the end that is there counts").await;
    let script = without(LeaseHead::SCRIPT, &[("entries and seeding == known_seeding", "entries")]);
    let edited = |queue: Arc<RedisQueue>| async move { an_edited_history_is_read_anew(&queue).await };
    is_missed(edited, (LeaseHead::NAME, script), "the edited words count").await;
    let script = without(LeaseHead::SCRIPT, &[("if not turn.new_session and not is_lone", "if not is_lone")]);
    let whole = |queue: Arc<RedisQueue>| async move { a_lease_brings_the_whole_history(&*queue).await };
    is_missed(whole, (LeaseHead::NAME, script), "the history is another one").await;
}

#[tokio::test]
async fn who_waits_while_a_worker_continues() {
    let script = without(Finish::SCRIPT, &[("or not others_wait(parked_key)", "or true")]);
    let function = |queue: Arc<RedisQueue>| async move { nobody_starves_behind_a_hot_agent(&*queue).await };
    is_missed(function, (Finish::NAME, script), "the others waited until").await;
}

#[tokio::test]
async fn setting_aside_what_cannot_be_leased() {
    let script = without(LeaseHead::SCRIPT, &[("pcall(set_aside, i, reason)", "")]);
    let function = |queue: Arc<RedisQueue>| async move { a_broken_history_keeps_nobody_busy(&queue).await };
    // Whose ticket is read again and again.
    is_missed(function, (LeaseHead::NAME, script), "test/poison").await;
}
