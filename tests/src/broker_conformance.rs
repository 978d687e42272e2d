//! What every adapter of the [`Broker`] port must do. An adapter's test file gives a [`TestQueue`] and calls
//! [`broker_conformance!`](crate::broker_conformance!), which makes one test of each function here.
//!
//! Nothing here knows how a queue is stored. Leases are short, and every wait is for a condition.

mod after;
mod hands;
mod histories;
mod manifests;
mod operators;
mod waiting;

use std::collections::HashMap;
use std::future::Future;
use std::time::{Duration, Instant};

use turnmill_redis::steps::{AgentAction, DepthLimits};
use turnmill_schema::{
    AgentId, AgentName, Begin, DeadReason, Delta, End, Event, FinishReason, IdempotencyKey, Message, Outcome,
    Priority, Role, StoredTurn, TenantName, Timing, TranscriptEntry, Turn, TurnId, Usage,
};
use turnmill_worker::broker::{Advice, Broker, BrokerError, Claim, Ending, Lease, QueueCounts, Ticket};

use crate::memory_broker::{Acted, AfterTurn, Cancelled, DeadLetter, NotEnqueued, QueueFull};

pub use after::*;
pub use hands::*;
pub use histories::*;
pub use manifests::*;
pub use operators::*;
pub use waiting::*;

/// The lease of brokers that [`TestQueue::worker`] makes, in milliseconds.
pub const LEASE_MS: u64 = 300;
/// Attempts without progress that brokers of [`TestQueue::worker`] allow.
pub const MAX_ATTEMPTS: u32 = 4;
/// Longest wait for a condition before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a test sets of a worker besides its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerLimits {
    /// Attempts in a row without a new token after which a turn fails.
    pub max_attempts: u32,
    /// Turns of one tenant that may run at once; 0: no limit.
    pub tenant_max_running: u64,
    /// Turns in a row that a worker continues with while others wait; 0: none.
    pub max_continues: u32,
}

impl Default for WorkerLimits {
    fn default() -> Self {
        Self { max_attempts: MAX_ATTEMPTS, tenant_max_running: 0, max_continues: 0 }
    }
}

/// A fresh queue of one shard, seen from outside of the [`Broker`] port: as producers, readers and operators see it.
///
/// When it is dropped, it checks that nothing is left which belongs to nobody: no ticket or lease in a worker's hands, and, once
/// every open turn is cancelled, no entry of a ready stream and no index entry.
pub trait TestQueue: Send + Sync + 'static {
    /// The adapter under test.
    type Broker: Broker;

    /// A worker of this queue, with a lease of [`LEASE_MS`].
    fn worker_with(&self, name: &str, limits: WorkerLimits) -> impl Future<Output = Self::Broker> + Send;

    /// The same with the default limits.
    fn worker(&self, name: &str) -> impl Future<Output = Self::Broker> + Send {
        self.worker_with(name, WorkerLimits::default())
    }

    /// Enqueues turns as a producer does, each after the turn that it must follow: all or none. The ids they run under.
    fn enqueue_after(
        &self,
        turns: &[AfterTurn<'_>],
        limits: DepthLimits,
    ) -> impl Future<Output = Result<Vec<TurnId>, NotEnqueued>> + Send;

    /// The same of turns that may follow any.
    fn enqueue(
        &self,
        turns: &[Turn],
        limits: DepthLimits,
    ) -> impl Future<Output = Result<Vec<TurnId>, NotEnqueued>> + Send {
        let turns: Vec<AfterTurn<'_>> = turns.iter().map(|turn| (turn, None)).collect();
        async move { self.enqueue_after(&turns, limits).await }
    }

    /// What a reader of the turn's results sees.
    fn events(&self, turn: TurnId) -> impl Future<Output = Vec<Event>> + Send;

    /// The whole reply that is kept with the outcome of a turn, where it is short.
    fn short_reply(&self, turn: TurnId) -> impl Future<Output = Option<Delta>> + Send;

    /// Cancels a turn.
    fn cancel(&self, turn: TurnId) -> impl Future<Output = Cancelled> + Send;

    /// Acts on an agent.
    fn act(&self, agent: &AgentId, action: AgentAction) -> impl Future<Output = Acted> + Send;

    /// Pauses the queue or lets it go on.
    fn pause(&self, paused: bool) -> impl Future<Output = ()> + Send;

    /// Every dead letter, oldest first.
    fn dead_letters(&self) -> impl Future<Output = Vec<DeadLetter>> + Send;

    /// Unix milliseconds by the queue's clock.
    fn now_ms(&self) -> impl Future<Output = u64> + Send;
}

/// One test of each conformance function; `$queue` is an expression that makes a [`TestQueue`].
#[macro_export]
macro_rules! broker_conformance {
    ($queue:expr) => {
        $crate::broker_conformance!(@tests $queue;
            turns_of_an_agent_run_one_at_a_time_in_order
            the_next_turn_waits_for_the_end_of_the_one_before
            a_lease_taken_over_fences_the_old_worker
            a_worker_that_slept_between_read_and_lease_gets_nothing
            a_crashed_turn_resumes_after_its_last_token
            lease_and_finish_may_be_repeated
            a_repeated_append_adds_nothing
            finish_refuses_missing_tokens
            an_append_over_a_gap_is_refused
            a_requeued_turn_is_first_again_and_lost_no_attempt
            a_returned_ticket_is_read_by_another
            a_turn_past_its_deadline_expires_and_the_next_runs
            history_grows_by_completed_turns_only
            a_new_session_replaces_history_when_it_completes
            attempts_without_progress_come_to_an_end
            progress_starts_the_count_of_attempts_anew
            enqueueing_again_returns_the_first_turn
            a_turn_that_names_the_one_before_follows_it_or_is_refused
            turns_of_one_call_may_follow_each_other
            a_turn_enqueued_before_is_never_stale
            what_did_not_complete_leaves_the_head_where_it_was
            a_changed_history_has_another_head
            a_lease_brings_the_whole_history
            a_full_queue_takes_nothing
            reads_keep_to_their_room_and_take_interactive_first
            lone_turns_need_no_order
            counts_add_up
            neither_priority_starves
            a_scheduled_turn_keeps_its_place
            a_retry_keeps_the_agents_order
            the_last_retry_makes_a_dead_letter
            a_dead_letter_halts_an_agent_that_asks_for_it
            a_tenant_runs_as_many_turns_as_it_may
            an_agent_that_finds_no_place_keeps_its_place_in_line
            a_tenant_has_a_depth_of_its_own
            a_worker_may_go_on_with_its_agent
            a_worker_that_dies_as_it_continues_strands_nobody
            nobody_starves_behind_a_hot_agent
            a_deadline_holds_while_a_turn_waits
            what_is_dropped_comes_back_to_a_lone_worker
            a_renewal_while_a_turn_ends_loses_nothing
            a_short_reply_is_kept_with_its_outcome
            renewing_keeps_leases
            a_waiting_turn_is_cancelled_at_once
            a_turn_cancelled_between_read_and_lease_is_passed_over
            a_delayed_or_paused_turn_can_be_cancelled
            a_running_turn_is_cancelled_and_its_worker_fenced
            a_paused_agent_runs_nothing_new
            a_paused_queue_leases_nothing
            an_agents_history_can_be_forgotten
            workers_are_told_of_cancelled_turns
            a_waiting_turn_that_published_keeps_its_history
            a_manifest_is_committed_with_the_end
            a_requeued_turn_carries_its_manifest
            a_late_manifest_is_taken_unless_a_newer_lease_said_something
            a_new_session_forgets_the_manifest_when_it_completes
            a_reset_forgets_the_manifest_and_late_ones
            lone_turns_leave_no_manifest
            workers_know_what_others_completed
        );
    };
    (@tests $queue:expr; $($name:ident)*) => {$(
        #[tokio::test]
        async fn $name() {
            let queue = $queue;
            $crate::broker_conformance::$name(&queue).await;
        }
    )*};
}

/// A turn of agent `agent` of tenant `test` saying `content`.
pub fn turn(agent: Option<&str>, content: &str) -> Turn {
    let tenant = TenantName::new("test").expect("a name");
    let agent = agent.map(|agent| AgentName::new(agent).expect("a name"));
    Turn { agent, ..Turn::new(TurnId::new(0), tenant, vec![Message::new(Role::User, content)]) }
}

/// Room for more turns than any test has.
pub const ROOM: DepthLimits = DepthLimits { queue: 1000, tenant: 1000 };

/// Room for `queue` turns, whosever they are.
pub fn room_for(queue: u64) -> DepthLimits {
    DepthLimits { queue, ..ROOM }
}

/// How a turn ends whose `published` tokens are in its result stream.
pub fn ending(published: u32, outcome: Outcome) -> Ending {
    let reason = (outcome == Outcome::Failed).then_some(DeadReason::Rejected);
    Ending {
        published,
        end: end(outcome),
        entry: None,
        reply: None,
        reason,
        continues: false,
        manifest: None,
    }
}

/// The same, with what it adds to its agent's history.
pub fn ending_with(entry: TranscriptEntry, outcome: Outcome) -> Ending {
    Ending { entry: Some(entry), ..ending(0, outcome) }
}

/// A delta of `tokens` from `index` on.
pub fn delta(index: u32, tokens: &[u32]) -> Delta {
    let mut delta = Delta { index, ..Delta::default() };
    tokens.iter().for_each(|token| delta.push(*token, &format!("{token} "), None));
    delta
}

/// An End of `outcome`.
pub fn end(outcome: Outcome) -> End {
    End {
        outcome,
        finish: (outcome == Outcome::Completed).then_some(FinishReason::Stop),
        stop: None,
        error: (outcome != Outcome::Completed).then(|| "it went wrong".to_owned()),
        usage: Usage::default(),
        timing: Timing::default(),
        worker: Some("w".to_owned()),
    }
}

/// What a completed turn commits: its message, and `tokens` after `keep` kept ones.
pub fn entry(lease: &Lease, content: &str, keep: u32, tokens: &[u32]) -> TranscriptEntry {
    let messages = vec![Message::new(Role::User, content)];
    TranscriptEntry { turn: lease.turn, messages, keep, tokens: tokens.to_vec(), rendering: None }
}

/// Enqueues turns into a queue with room.
pub async fn enqueue<Q: TestQueue>(queue: &Q, turns: &[Turn]) -> Vec<TurnId> {
    queue.enqueue(turns, ROOM).await.expect("the queue has room")
}

/// Which limit refused turns.
fn full(refused: Result<Vec<TurnId>, NotEnqueued>) -> QueueFull {
    match refused {
        Err(NotEnqueued::Full(full)) => full,
        other => panic!("expected no room, not {other:?}"),
    }
}

/// Reads one ticket and leases it.
pub async fn claim<B: Broker>(broker: &B) -> Claim {
    let ticket = read_one(broker).await;
    broker.lease(&ticket).await.expect("the lease is answered").expect("the ticket is ours")
}

/// Waits for one ticket; meanwhile it promotes agents, as a worker does on a timer.
pub async fn read_one<B: Broker>(broker: &B) -> Ticket {
    tokio::select! {
        ticket = read_ticket(broker) => ticket,
        () = promote(broker) => unreachable!("promoting has no end"),
    }
}

/// Waits for one ticket that is there already, so that nothing else happens meanwhile.
async fn read_ticket<B: Broker>(broker: &B) -> Ticket {
    let read = async {
        loop {
            if let Some(ticket) = broker.read(1).await.expect("the read is answered").pop() {
                return ticket;
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("a ticket comes")
}

/// Promotes agents for as long as it is polled.
pub async fn promote<B: Broker>(broker: &B) {
    loop {
        let look_again = broker.promote().await.expect("promoting is answered");
        tokio::time::sleep(look_again).await;
    }
}

/// Waits until agents of silent workers are runnable again; how many.
pub async fn reclaim<B: Broker>(broker: &B) -> u64 {
    let patience = Instant::now() + PATIENCE;
    loop {
        match broker.reclaim().await.expect("the reclaim is answered") {
            0 => assert!(Instant::now() < patience, "nothing could be reclaimed"),
            reclaimed => return reclaimed,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until agents of silent workers are runnable again, and reads the ticket of one.
pub async fn reclaim_one<B: Broker>(broker: &B) -> Ticket {
    reclaim(broker).await;
    read_one(broker).await
}

async fn take_over<B: Broker>(broker: &B) -> Claim {
    let ticket = reclaim_one(broker).await;
    broker.lease(&ticket).await.expect("the lease is answered").expect("the ticket is ours")
}

async fn finish<B: Broker>(broker: &B, lease: &Lease, published: u32) {
    let next = broker.finish(lease, &ending(published, Outcome::Completed)).await.expect("the turn ends");
    assert!(next.is_none(), "nobody asked to continue");
}

fn is_fenced<T: std::fmt::Debug>(result: Result<T, BrokerError>) -> bool {
    match result {
        Err(e @ BrokerError::Fenced { .. }) => e.advice() == Advice::Reject,
        other => panic!("expected Fenced, not {other:?}"),
    }
}

/// What tells a lease from any other.
fn fence(lease: &Lease) -> (TurnId, u64, u32) {
    (lease.turn, lease.epoch, lease.attempt)
}

/// Sends a call and does not wait for its answer, as if that got lost. Some: it was answered at once.
async fn unheard<T>(call: impl Future<Output = T>) -> Option<T> {
    futures::FutureExt::now_or_never(call)
}

fn ends(events: &[Event]) -> Vec<&End> {
    events.iter().filter_map(|event| if let Event::End(end) = event { Some(end) } else { None }).collect()
}

/// Promise 1, with two workers that race for the turns of several agents.
pub async fn turns_of_an_agent_run_one_at_a_time_in_order<Q: TestQueue>(queue: &Q) {
    let agents = ["a", "b", "c", "d"];
    let mut enqueued: HashMap<String, Vec<TurnId>> = HashMap::new();
    for round in 0..5 {
        let turns: Vec<Turn> = agents.iter().map(|agent| turn(Some(agent), &format!("{round}"))).collect();
        for (turn, id) in turns.iter().zip(enqueue(queue, &turns).await) {
            enqueued.entry(turn.agent_id().to_string()).or_default().push(id);
        }
    }
    let total = agents.len() * 5;
    let log = std::sync::Mutex::new(Vec::new());
    let running = std::sync::Mutex::new(std::collections::HashSet::new());
    let work = async |name: &str| {
        let broker = queue.worker(name).await;
        while log.lock().expect("not poisoned").len() < total {
            for ticket in broker.read(2).await.expect("the read is answered") {
                let Some(claim) = broker.lease(&ticket).await.expect("answered") else { continue };
                let agent = ticket.agent.to_string();
                assert!(running.lock().expect("not poisoned").insert(agent.clone()), "{agent} runs twice");
                broker.append(&claim.lease, &delta(0, &[1])).await.expect("appended");
                running.lock().expect("not poisoned").remove(&agent);
                log.lock().expect("not poisoned").push((agent, claim.lease.turn));
                finish(&broker, &claim.lease, 1).await;
            }
        }
    };
    futures::future::join(work("w1"), work("w2")).await;
    let mut ran: HashMap<String, Vec<TurnId>> = HashMap::new();
    for (agent, turn) in log.into_inner().expect("not poisoned") {
        ran.entry(agent).or_default().push(turn);
    }
    assert_eq!(ran, enqueued);
}

/// Nothing of an agent is runnable while one of its turns runs.
pub async fn the_next_turn_waits_for_the_end_of_the_one_before<Q: TestQueue>(queue: &Q) {
    let ids = enqueue(queue, &[turn(Some("a"), "1"), turn(Some("a"), "2")]).await;
    let broker = queue.worker("w").await;
    let first = claim(&broker).await;
    assert_eq!(first.lease.turn, ids[0]);
    assert_eq!(broker.counts().await.expect("counted").runnable(), 0);
    enqueue(queue, &[turn(Some("a"), "3")]).await;
    assert_eq!(broker.counts().await.expect("counted").runnable(), 0);
    finish(&broker, &first.lease, 0).await;
    let second = claim(&broker).await;
    assert_eq!((second.lease.turn, second.lease.attempt), (ids[1], 1));
    assert!(second.lease.epoch > first.lease.epoch);
}

/// A worker that was silent for a lease writes nothing more, whatever it tries.
pub async fn a_lease_taken_over_fences_the_old_worker<Q: TestQueue>(queue: &Q) {
    let id = enqueue(queue, &[turn(Some("a"), "1"), turn(Some("a"), "2")]).await[0];
    let (old, new) = (queue.worker("old").await, queue.worker("new").await);
    let stale = claim(&old).await;
    old.append(&stale.lease, &delta(0, &[1])).await.expect("appended");
    let fresh = take_over(&new).await;
    let before = queue.events(id).await;

    assert!(!stale.lease.is_lost(), "nobody told it");
    old.renew().await.expect("answered");
    assert!(stale.lease.is_lost());
    assert!(is_fenced(old.append(&stale.lease, &delta(1, &[9])).await));
    assert!(is_fenced(old.append(&stale.lease, &delta(1, &[9])).await));
    assert!(is_fenced(old.finish(&stale.lease, &ending(1, Outcome::Failed)).await));
    assert!(is_fenced(old.requeue(&stale.lease, None).await));
    assert_eq!(queue.events(id).await, before);

    new.renew().await.expect("answered");
    assert!(!fresh.lease.is_lost());
    finish(&new, &fresh.lease, 1).await;
    assert!(is_fenced(old.append(&stale.lease, &delta(1, &[9])).await));
    assert!(is_fenced(old.finish(&stale.lease, &ending(1, Outcome::Failed)).await));
    let after = queue.events(id).await;
    assert_eq!(ends(&after), [&end(Outcome::Completed)]);
    assert_eq!(after.len(), before.len() + 1);
}

/// The ticket itself went to another worker: leasing it must not steal the agent back.
pub async fn a_worker_that_slept_between_read_and_lease_gets_nothing<Q: TestQueue>(queue: &Q) {
    enqueue(queue, &[turn(Some("a"), "1")]).await;
    let (sleeper, other) = (queue.worker("sleeper").await, queue.worker("other").await);
    let ticket = read_one(&sleeper).await;
    let running = take_over(&other).await;
    assert!(sleeper.lease(&ticket).await.expect("answered").is_none());
    sleeper.return_ticket(&ticket).await.expect("answered");
    assert_eq!(other.counts().await.expect("counted").runnable(), 0);
    other.append(&running.lease, &delta(0, &[1])).await.expect("still the lease's holder");
    finish(&other, &running.lease, 1).await;
}

/// The tokens of the result stream are the checkpoint.
pub async fn a_crashed_turn_resumes_after_its_last_token<Q: TestQueue>(queue: &Q) {
    let id = enqueue(queue, &[turn(Some("a"), "1")]).await[0];
    let first = queue.worker("first").await;
    let crashed = claim(&first).await;
    assert_eq!((crashed.first_token_ms, crashed.published.len()), (None, 0));
    first.append(&crashed.lease, &delta(0, &[10, 11])).await.expect("appended");
    first.append(&crashed.lease, &delta(2, &[12])).await.expect("appended");
    let second = queue.worker("second").await;
    let resumed = take_over(&second).await;
    assert_eq!(resumed.published, [delta(0, &[10, 11]), delta(2, &[12])]);
    assert_eq!((resumed.lease.attempt, resumed.earlier_epoch), (2, Some(crashed.lease.epoch)));
    assert!(resumed.first_token_ms.is_some_and(|first| first <= resumed.queued_ms));
    second.append(&resumed.lease, &delta(3, &[13])).await.expect("appended");
    finish(&second, &resumed.lease, 4).await;
    let begin = |claim: &Claim, resume_from, worker: &str| {
        let Lease { epoch, attempt, .. } = *claim.lease;
        Event::Begin(Begin { epoch, resume_from, attempt, worker: worker.into() })
    };
    let expected = [
        begin(&crashed, 0, "first"),
        Event::Delta(delta(0, &[10, 11])),
        Event::Delta(delta(2, &[12])),
        begin(&resumed, 3, "second"),
        Event::Delta(delta(3, &[13])),
        Event::End(end(Outcome::Completed)),
    ];
    assert_eq!(queue.events(id).await, expected);
}

/// Replies get lost; the same call again gives the same answer and writes nothing.
pub async fn lease_and_finish_may_be_repeated<Q: TestQueue>(queue: &Q) {
    let ids = enqueue(queue, &[turn(Some("a"), "1"), turn(Some("a"), "2")]).await;
    let broker = queue.worker("w").await;
    let ticket = read_one(&broker).await;
    let first = broker.lease(&ticket).await.expect("answered").expect("ours");
    let again = broker.lease(&ticket).await.expect("answered").expect("ours");
    assert_eq!(fence(&first.lease), fence(&again.lease));
    assert_eq!(
        [first.earlier_epoch, again.earlier_epoch],
        [None; 2],
        "its own Begin is no earlier attempt's"
    );
    assert_eq!(queue.events(ids[0]).await.len(), 1);
    finish(&broker, &first.lease, 0).await;
    finish(&broker, &first.lease, 0).await;
    let next = claim(&broker).await;
    assert_eq!(next.lease.turn, ids[1]);
    finish(&broker, &first.lease, 0).await;
    assert_eq!(ends(&queue.events(ids[0]).await).len(), 1);
    finish(&broker, &next.lease, 0).await;
}

/// Whether the first reply was lost or not, the stream has the tokens once.
pub async fn a_repeated_append_adds_nothing<Q: TestQueue>(queue: &Q) {
    let id = enqueue(queue, &[turn(None, "1")]).await[0];
    let broker = queue.worker("w").await;
    let claim = claim(&broker).await;
    for delta in [delta(0, &[1]), delta(0, &[1]), delta(1, &[2, 3]), delta(1, &[2, 3])] {
        broker.append(&claim.lease, &delta).await.expect("appended, now or before");
    }
    assert_eq!(queue.events(id).await.len(), 3);
}

/// An End over missing tokens would make a reply with a hole.
pub async fn finish_refuses_missing_tokens<Q: TestQueue>(queue: &Q) {
    let id = enqueue(queue, &[turn(Some("a"), "1")]).await[0];
    let broker = queue.worker("w").await;
    let claim = claim(&broker).await;
    broker.append(&claim.lease, &delta(0, &[1, 2])).await.expect("appended");
    let refused = broker.finish(&claim.lease, &ending(3, Outcome::Completed)).await;
    assert!(matches!(refused, Err(BrokerError::Gap { expected: 3, found: 2, .. })), "{refused:?}");
    assert_eq!(queue.events(id).await.len(), 2);
    broker.append(&claim.lease, &delta(2, &[3])).await.expect("appended");
    finish(&broker, &claim.lease, 3).await;
}

/// A delta whose predecessor did not land may not land either.
pub async fn an_append_over_a_gap_is_refused<Q: TestQueue>(queue: &Q) {
    enqueue(queue, &[turn(Some("a"), "1")]).await;
    let broker = queue.worker("w").await;
    let claim = claim(&broker).await;
    let refused = broker.append(&claim.lease, &delta(2, &[3])).await;
    assert!(matches!(refused, Err(BrokerError::Gap { expected: 2, found: 0, .. })), "{refused:?}");
    broker.append(&claim.lease, &delta(0, &[1, 2])).await.expect("appended");
    broker.append(&claim.lease, &delta(2, &[3])).await.expect("appended");
    finish(&broker, &claim.lease, 3).await;
}

/// Drain: another worker goes on at once, with what was published.
pub async fn a_requeued_turn_is_first_again_and_lost_no_attempt<Q: TestQueue>(queue: &Q) {
    let ids = enqueue(queue, &[turn(Some("a"), "1"), turn(Some("a"), "2")]).await;
    let (draining, other) = (queue.worker("draining").await, queue.worker("other").await);
    let requeued = claim(&draining).await;
    draining.append(&requeued.lease, &delta(0, &[1])).await.expect("appended");
    draining.requeue(&requeued.lease, None).await.expect("requeued");
    draining.requeue(&requeued.lease, None).await.expect("a repeated requeue answers the same");
    assert!(is_fenced(draining.finish(&requeued.lease, &ending(1, Outcome::Completed)).await));
    let resumed = claim(&other).await;
    assert_eq!((resumed.lease.turn, resumed.lease.attempt), (ids[0], 1));
    assert_eq!(resumed.earlier_epoch, Some(requeued.lease.epoch));
    assert_eq!(resumed.published, [delta(0, &[1])]);
    assert!(is_fenced(draining.append(&requeued.lease, &delta(1, &[9])).await));
    finish(&other, &resumed.lease, 1).await;
    assert_eq!(claim(&other).await.lease.turn, ids[1]);
}

/// A worker that read more than it can run hands tickets on without a lease's wait.
pub async fn a_returned_ticket_is_read_by_another<Q: TestQueue>(queue: &Q) {
    let id = enqueue(queue, &[turn(Some("a"), "1")]).await[0];
    let (full, other) = (queue.worker("full").await, queue.worker("other").await);
    let ticket = read_one(&full).await;
    full.return_ticket(&ticket).await.expect("returned");
    full.return_ticket(&ticket).await.expect("a repeated call answers the same");
    let counts = other.counts().await.expect("counted");
    assert_eq!((counts.runnable(), counts.leased()), (1, 0));
    let claim = claim(&other).await;
    assert_eq!((claim.lease.turn, claim.lease.attempt), (id, 1));
    assert!(full.lease(&ticket).await.expect("answered").is_none());
    finish(&other, &claim.lease, 0).await;
}

/// Nobody waits for it any more: its end says so, and the agent goes on.
pub async fn a_turn_past_its_deadline_expires_and_the_next_runs<Q: TestQueue>(queue: &Q) {
    let late = Turn { deadline_ms: Some(1), ..turn(Some("a"), "late") };
    let later = Turn { deadline_ms: Some(253_402_300_799_999), ..turn(Some("a"), "later") };
    let ids = enqueue(queue, &[late.clone(), later]).await;
    let broker = queue.worker("w").await;
    let running = claim(&broker).await;
    assert_eq!(running.lease.turn, ids[1]);
    let events = queue.events(ids[0]).await;
    assert_eq!(ends(&events).iter().map(|end| end.outcome).collect::<Vec<_>>(), [Outcome::Expired]);
    assert!(ends(&events)[0].error.as_deref().is_some_and(|error| error.contains("deadline")), "{events:?}");
    finish(&broker, &running.lease, 0).await;

    enqueue(queue, &[Turn { id: TurnId::new(0), ..late }]).await;
    // Promoting would end the turn before it is read.
    let ticket = read_ticket(&broker).await;
    assert!(broker.lease(&ticket).await.expect("answered").is_none());
    let counts = broker.counts().await.expect("counted");
    assert_eq!((counts.open(), counts.runnable(), counts.leased()), (0, 0, 0));
}

/// What a failed turn said was never part of the conversation.
pub async fn history_grows_by_completed_turns_only<Q: TestQueue>(queue: &Q) {
    let turns = ["1", "2", "3"].map(|content| turn(Some("a"), content));
    enqueue(queue, &turns).await;
    let broker = queue.worker("w").await;
    let first = claim(&broker).await;
    assert_eq!(first.history, Default::default());
    assert_eq!(first.turn, Ok(StoredTurn::Inline(Box::new(turns[0].clone()))));
    let committed = ending_with(entry(&first.lease, "1", 0, &[1, 2]), Outcome::Completed);
    broker.finish(&first.lease, &committed).await.expect("ended");
    broker.finish(&first.lease, &committed).await.expect("the same answer");

    let second = claim(&broker).await;
    assert_eq!((second.history.messages.len(), second.history.tokens.clone()), (1, vec![1, 2]));
    let ignored = ending_with(entry(&second.lease, "2", 2, &[3]), Outcome::Failed);
    broker.finish(&second.lease, &ignored).await.expect("ended");

    let third = claim(&broker).await;
    assert_eq!((third.history.messages.len(), third.history.tokens.clone()), (1, vec![1, 2]));
}

/// History is forgotten with the completion of a turn that asks for it, and not before.
pub async fn a_new_session_replaces_history_when_it_completes<Q: TestQueue>(queue: &Q) {
    let anew = |content| Turn { new_session: true, ..turn(Some("a"), content) };
    enqueue(queue, &[turn(Some("a"), "1"), anew("2"), turn(Some("a"), "3"), anew("4"), turn(Some("a"), "5")])
        .await;
    let broker = queue.worker("w").await;
    let mut seen = Vec::new();
    for (content, outcome) in
        [("1", Outcome::Completed), ("2", Outcome::Failed), ("3", Outcome::Failed), ("4", Outcome::Completed)]
    {
        let claim = claim(&broker).await;
        seen.push((claim.history.messages.len(), claim.history.tokens.clone()));
        let tokens = [content.parse().expect("a number")];
        let entry = entry(&claim.lease, content, 0, &tokens);
        broker.finish(&claim.lease, &ending_with(entry, outcome)).await.expect("ended");
    }
    let history = claim(&broker).await.history;
    seen.push((history.messages.len(), history.tokens.clone()));
    assert_eq!(seen, [(0, vec![]), (0, vec![]), (1, vec![1]), (0, vec![]), (1, vec![4])]);
}

/// A turn that kills its workers must not do so for ever, nor take neighbours with it.
pub async fn attempts_without_progress_come_to_an_end<Q: TestQueue>(queue: &Q) {
    let ids = enqueue(queue, &[turn(Some("a"), "poison"), turn(Some("a"), "2")]).await;
    let mut attempts = Vec::new();
    for attempt in 1..=MAX_ATTEMPTS {
        let broker = queue.worker(&format!("w{attempt}")).await;
        let claim = if attempt == 1 { claim(&broker).await } else { take_over(&broker).await };
        assert_eq!(claim.lease.turn, ids[0]);
        attempts.push((claim.lease.attempt, claim.alone));
    }
    assert_eq!(attempts, [(1, false), (2, false), (3, true), (4, true)]);
    let last = queue.worker("last").await;
    let next = take_over(&last).await;
    assert_eq!((next.lease.turn, next.alone), (ids[1], false));
    let events = queue.events(ids[0]).await;
    let error = ends(&events)[0].error.clone().expect("a failed turn says why");
    assert_eq!(ends(&events)[0].outcome, Outcome::Failed);
    assert!(error.contains("gave up after 4 attempts that made no progress"), "{error}");
}

/// A long turn may outlive more workers than a poisonous one.
pub async fn progress_starts_the_count_of_attempts_anew<Q: TestQueue>(queue: &Q) {
    let id = enqueue(queue, &[turn(Some("a"), "long")]).await[0];
    for attempt in 0..MAX_ATTEMPTS + 2 {
        let broker = queue.worker(&format!("w{attempt}")).await;
        let claim = if attempt == 0 { claim(&broker).await } else { take_over(&broker).await };
        assert_eq!((claim.lease.turn, claim.lease.attempt, claim.alone), (id, attempt + 1, false));
        broker.append(&claim.lease, &delta(attempt, &[attempt])).await.expect("appended");
    }
}

/// A producer that did not hear the answer asks again.
pub async fn enqueueing_again_returns_the_first_turn<Q: TestQueue>(queue: &Q) {
    let keyed = |content| Turn { idempotency_key: IdempotencyKey::new("k").ok(), ..turn(Some("a"), content) };
    let first = keyed("1");
    assert_eq!(enqueue(queue, std::slice::from_ref(&first)).await, [first.id]);
    assert_eq!(enqueue(queue, &[keyed("1"), keyed("1")]).await, [first.id, first.id]);
    // Another question is not the same turn again.
    let other = queue.enqueue(&[turn(Some("b"), "1"), keyed("2")], ROOM).await;
    assert_eq!(other, Err(NotEnqueued::Conflict { place: 1, first: first.id }));
    let other_tenant = Turn { tenant: TenantName::new("other").expect("a name"), ..keyed("1") };
    assert_eq!(enqueue(queue, std::slice::from_ref(&other_tenant)).await, [other_tenant.id]);
    let plain = turn(Some("b"), "1");
    assert_eq!(enqueue(queue, &[plain.clone(), plain.clone()]).await, [plain.id, plain.id]);
    let broker = queue.worker("w").await;
    assert_eq!(broker.counts().await.expect("counted").open(), 3);
    let running = claim(&broker).await;
    finish(&broker, &running.lease, 0).await;
    assert_eq!(running.lease.turn, first.id);
    assert_eq!(enqueue(queue, &[keyed("1")]).await, [first.id]);
    assert_eq!(broker.counts().await.expect("counted").open(), 2);
}

/// All of a call's turns or none of them.
pub async fn a_full_queue_takes_nothing<Q: TestQueue>(queue: &Q) {
    let broker = queue.worker("w").await;
    let turns = [turn(Some("a"), "1"), turn(Some("a"), "2")];
    assert!(queue.enqueue(&turns, room_for(2)).await.is_ok());
    let more = [turn(Some("b"), "1"), turn(Some("c"), "1")];
    for (turns, limit) in [(&more[..1], 2), (&more[..], 3)] {
        let full = full(queue.enqueue(turns, room_for(limit)).await);
        assert_eq!((full.tenant, full.open, full.limit), (None, 2, limit));
        assert!(full.retry_after_ms > 0);
    }
    assert!(queue.enqueue(&turns, room_for(2)).await.is_ok(), "turns that are there already need no room");
    let counts = broker.counts().await.expect("counted");
    assert_eq!((counts.open(), counts.runnable()), (2, 1));
    let running = claim(&broker).await;
    finish(&broker, &running.lease, 0).await;
    assert!(queue.enqueue(&[turn(Some("b"), "1")], room_for(2)).await.is_ok());
}

/// Two streams could deliver twice what was asked for.
pub async fn reads_keep_to_their_room_and_take_interactive_first<Q: TestQueue>(queue: &Q) {
    let broker = queue.worker("w").await;
    let batch = |agent: &str| Turn { priority: Priority::Batch, ..turn(Some(agent), "1") };
    enqueue(queue, &[batch("a"), batch("b"), turn(Some("c"), "1"), turn(Some("d"), "1")]).await;
    assert_eq!(broker.read(0).await.expect("answered"), []);
    let read = broker.read(3).await.expect("answered");
    let priorities: Vec<Priority> = read.iter().map(|ticket| ticket.id.priority).collect();
    assert_eq!(priorities, [Priority::Interactive, Priority::Interactive, Priority::Batch]);
    let rest = broker.read(3).await.expect("answered");
    assert_eq!(rest.len(), 1);
    assert_eq!(broker.counts().await.expect("counted").leased(), 4);
}

/// Turns without an agent run side by side and have no history.
pub async fn lone_turns_need_no_order<Q: TestQueue>(queue: &Q) {
    let ids = enqueue(queue, &[turn(None, "1"), turn(None, "2")]).await;
    let broker = queue.worker("w").await;
    let (first, second) = (claim(&broker).await, claim(&broker).await);
    assert_eq!([first.lease.turn, second.lease.turn], ids[..]);
    for claim in [first, second] {
        let ending = ending_with(entry(&claim.lease, "x", 0, &[1]), Outcome::Completed);
        broker.finish(&claim.lease, &ending).await.expect("ended");
        broker.finish(&claim.lease, &ending).await.expect("the same answer");
    }
    let counts = broker.counts().await.expect("counted");
    assert!(counts.retained_bytes > 0, "outcomes take room");
    assert_eq!(
        counts,
        QueueCounts { retained_bytes: counts.retained_bytes, ended: [2, 0, 0, 0], ..no_work(2) }
    );
}

/// A queue to which `enqueued` turns were enqueued, and that has none to run.
fn no_work(enqueued: u64) -> QueueCounts {
    QueueCounts { enqueued, lag: Some(0), ..QueueCounts::default() }
}

/// Runnable, leased and open turns at every stage.
pub async fn counts_add_up<Q: TestQueue>(queue: &Q) {
    let broker = queue.worker("w").await;
    assert_eq!(broker.counts().await.expect("counted"), no_work(0));
    enqueue(queue, &[turn(Some("a"), "1"), turn(Some("a"), "2"), turn(Some("b"), "1")]).await;
    let stage = async || {
        let counts = broker.counts().await.expect("counted");
        assert!(counts.enqueued == 3 && counts.lag == Some(counts.runnable()), "{counts:?}");
        (counts.runnable(), counts.leased(), counts.open(), counts.oldest_ms.is_some())
    };
    assert_eq!(stage().await, (2, 0, 3, true));
    let running = claim(&broker).await;
    assert_eq!(stage().await, (1, 1, 3, true));
    finish(&broker, &running.lease, 0).await;
    assert_eq!(stage().await, (2, 0, 2, true));
    for _ in 0..2 {
        let running = claim(&broker).await;
        finish(&broker, &running.lease, 0).await;
    }
    assert_eq!(stage().await, (0, 0, 0, false));
    assert_eq!(broker.counts().await.expect("counted").ended, [3, 0, 0, 0]);
}
