//! Turns and agents that wait: for their priority, for a time, for another attempt, for a place; and those that do not
//! have to, because their worker goes on with their agent.

use std::time::{Duration, Instant};

use turnmill_redis::steps::{AgentAction, DepthLimits};
use turnmill_schema::{AgentId, DeadReason, Delta, Outcome, Priority, TenantName, Turn, TurnId};
use turnmill_worker::broker::{Broker, Claim, Ending, Retry};

use super::{
    LEASE_MS, PATIENCE, ROOM, TestQueue, WorkerLimits, claim, delta, ending, ends, enqueue, finish, full,
    is_fenced, promote, read_one, read_ticket, reclaim_one, turn, unheard,
};
use crate::memory_broker::{Acted, AgentState, DeadLetter};

fn agent(name: &str) -> AgentId {
    turn(Some(name), "").agent_id()
}

/// An end after which the worker would go on.
fn going_on(published: u32) -> Ending {
    Ending { continues: true, ..ending(published, Outcome::Completed) }
}

/// Whichever is more, both kinds are read.
pub async fn neither_priority_starves<Q: TestQueue>(queue: &Q) {
    let broker = queue.worker("w").await;
    let of = |priority, i| Turn { priority, ..turn(Some(&format!("{priority:?}{i}")), "1") };
    let turns: Vec<Turn> =
        (0..12).flat_map(|i| [of(Priority::Interactive, i), of(Priority::Batch, i)]).collect();
    enqueue(queue, &turns).await;
    let mut read = Vec::new();
    for _ in 0..8 {
        read.push(read_one(&broker).await);
    }
    let batch = read.iter().filter(|ticket| ticket.id.priority == Priority::Batch).count();
    assert_eq!(batch, 2, "one of every four: {read:?}");
}

/// Nothing of the agent runs before it, and it does not run before its time.
pub async fn a_scheduled_turn_keeps_its_place<Q: TestQueue>(queue: &Q) {
    let not_before_ms = queue.now_ms().await + 300;
    let scheduled = Turn { not_before_ms: Some(not_before_ms), ..turn(Some("a"), "1") };
    let ids = enqueue(queue, &[scheduled, turn(Some("a"), "2")]).await;
    let broker = queue.worker("w").await;
    let counts = broker.counts().await.expect("counted");
    assert_eq!((counts.delayed, counts.runnable(), counts.open()), (1, 0, 2));
    let first = claim(&broker).await;
    assert!(queue.now_ms().await >= not_before_ms);
    assert_eq!(first.lease.turn, ids[0]);
    finish(&broker, &first.lease, 0).await;
    assert_eq!(claim(&broker).await.lease.turn, ids[1]);
}

/// Later turns wait with the one that failed.
pub async fn a_retry_keeps_the_agents_order<Q: TestQueue>(queue: &Q) {
    let ids = enqueue(queue, &[turn(Some("a"), "1"), turn(Some("a"), "2")]).await;
    let broker = queue.worker("w").await;
    let failed = claim(&broker).await;
    broker.append(&failed.lease, &delta(0, &[1])).await.expect("appended");
    for _ in 0..2 {
        let delay = Duration::from_millis(200);
        let retried = broker.retry(&failed.lease, delay, DeadReason::Attempts, "a fault").await;
        assert_eq!(retried.expect("the same answer"), Retry::Later);
    }
    assert!(is_fenced(broker.finish(&failed.lease, &ending(1, Outcome::Completed)).await));
    let counts = broker.counts().await.expect("counted");
    assert_eq!((counts.delayed, counts.runnable(), counts.leased()), (1, 0, 0));
    let again = claim(&broker).await;
    assert_eq!((again.lease.turn, again.lease.attempt), (ids[0], 2));
    assert_eq!(again.published, [delta(0, &[1])]);
    finish(&broker, &again.lease, 1).await;
    assert_eq!(claim(&broker).await.lease.turn, ids[1]);
}

/// It says why, and its agent goes on.
pub async fn the_last_retry_makes_a_dead_letter<Q: TestQueue>(queue: &Q) {
    let ids = enqueue(queue, &[turn(Some("a"), "1"), turn(Some("a"), "2")]).await;
    let broker = queue.worker_with("w", WorkerLimits { max_attempts: 2, ..Default::default() }).await;
    let first = claim(&broker).await;
    let retry =
        async |lease| broker.retry(lease, Duration::ZERO, DeadReason::Attempts, "the disk is full").await;
    assert_eq!(retry(&first.lease).await.expect("answered"), Retry::Later);
    let last = claim(&broker).await;
    for _ in 0..2 {
        assert_eq!(retry(&last.lease).await.expect("the same answer"), Retry::Dead);
    }
    let letter = DeadLetter { turn: ids[0], agent: agent("a"), reason: "attempts".into(), attempts: 2 };
    assert_eq!(queue.dead_letters().await, [letter]);
    let events = queue.events(ids[0]).await;
    assert_eq!(ends(&events)[0].outcome, Outcome::Failed);
    assert!(ends(&events)[0].error.as_deref().is_some_and(|error| error.contains("the disk is full")));
    assert_eq!(broker.counts().await.expect("counted").dead, 1);
    assert_eq!(claim(&broker).await.lease.turn, ids[1]);
}

/// The policy of an agent whose turns build on each other.
pub async fn a_dead_letter_halts_an_agent_that_asks_for_it<Q: TestQueue>(queue: &Q) {
    let ids = enqueue(queue, &[turn(Some("a"), "1"), turn(Some("a"), "2"), turn(Some("a"), "3")]).await;
    let broker = queue.worker("w").await;
    queue.act(&agent("a"), AgentAction::Halt).await;
    let first = claim(&broker).await;
    broker.finish(&first.lease, &ending(0, Outcome::Failed)).await.expect("ended");
    let counts = broker.counts().await.expect("counted");
    assert_eq!((counts.runnable(), counts.leased(), counts.open()), (0, 0, 2));
    enqueue(queue, &[turn(Some("a"), "4")]).await;
    assert_eq!(broker.counts().await.expect("counted").runnable(), 0, "later turns wait too");
    queue.act(&agent("a"), AgentAction::Skip).await;
    queue.act(&agent("a"), AgentAction::Resume).await;
    let second = claim(&broker).await;
    assert_eq!(second.lease.turn, ids[1]);
    broker.finish(&second.lease, &ending(0, Outcome::Failed)).await.expect("ended");
    assert_eq!(claim(&broker).await.lease.turn, ids[2]);
}

/// The others of the tenant wait, and other tenants do not.
pub async fn a_tenant_runs_as_many_turns_as_it_may<Q: TestQueue>(queue: &Q) {
    let limits = WorkerLimits { tenant_max_running: 1, ..Default::default() };
    let broker = queue.worker_with("w", limits).await;
    let other = Turn { tenant: TenantName::new("other").expect("a name"), ..turn(Some("a"), "1") };
    let ids = enqueue(queue, &[turn(Some("a"), "1"), turn(Some("b"), "1"), other]).await;
    let first = claim(&broker).await;
    let ticket = read_one(&broker).await;
    assert!(broker.lease(&ticket).await.expect("answered").is_none());
    assert_eq!(claim(&broker).await.lease.turn, ids[2]);
    assert_eq!(broker.counts().await.expect("counted").runnable(), 0);
    finish(&broker, &first.lease, 0).await;
    assert_eq!(claim(&broker).await.lease.turn, ids[1]);
}

/// More agents may be promoted than there are places, because several workers look.
pub async fn an_agent_that_finds_no_place_keeps_its_place_in_line<Q: TestQueue>(queue: &Q) {
    let limits = WorkerLimits { tenant_max_running: 1, ..Default::default() };
    let broker = queue.worker_with("w", limits).await;
    let ids = enqueue(queue, &["a", "b", "c", "d"].map(|name| turn(Some(name), "1"))).await;
    let first = claim(&broker).await;
    for _ in 1..ids.len() {
        let ticket = read_ticket(&broker).await;
        assert!(broker.lease(&ticket).await.expect("answered").is_none(), "there is no place");
    }
    finish(&broker, &first.lease, 0).await;
    for _ in 0..2 {
        broker.promote().await.expect("answered");
    }
    let second = claim_at_once(&broker).await.expect("there is a place");
    assert_eq!(second.lease.turn, ids[1]);
    if let Some(third) = claim_at_once(&broker).await {
        panic!("{} runs as well", third.lease.turn);
    }
    finish(&broker, &second.lease, 0).await;
    for id in &ids[2..] {
        let next = claim(&broker).await;
        assert_eq!(next.lease.turn, *id);
        finish(&broker, &next.lease, 0).await;
    }
}

/// What comes of a ticket, if one is there.
async fn claim_at_once<B: Broker>(broker: &B) -> Option<Claim> {
    let read = tokio::time::timeout(Duration::from_millis(200), broker.read(1)).await;
    let ticket = read.ok()?.expect("the read is answered").pop()?;
    broker.lease(&ticket).await.expect("the lease is answered")
}

/// One tenant's turns do not keep out another's.
pub async fn a_tenant_has_a_depth_of_its_own<Q: TestQueue>(queue: &Q) {
    let limits = DepthLimits { tenant: 1, ..ROOM };
    assert!(queue.enqueue(&[turn(Some("a"), "1")], limits).await.is_ok());
    let full = full(queue.enqueue(&[turn(Some("b"), "1")], limits).await);
    assert_eq!((full.tenant.as_deref(), full.open, full.limit), (Some("test"), 1, 1));
    let other = Turn { tenant: TenantName::new("other").expect("a name"), ..turn(Some("a"), "1") };
    assert!(queue.enqueue(&[other], limits).await.is_ok());
}

/// The worker that has an agent's blocks goes on with it, whether it heard so the first time or not.
pub async fn a_worker_may_go_on_with_its_agent<Q: TestQueue>(queue: &Q) {
    let limits = WorkerLimits { max_continues: 1, ..Default::default() };
    let broker = queue.worker_with("w", limits).await;
    let turns = ["1", "2", "3"].map(|content| turn(Some("a"), content));
    let ids = enqueue(queue, &turns).await;
    let first = claim(&broker).await;
    let answered = match unheard(broker.finish(&first.lease, &going_on(0))).await {
        Some(answered) => answered,
        None => broker.finish(&first.lease, &going_on(0)).await,
    };
    let ticket = answered.expect("ended").expect("the worker continues");
    let second = broker.lease(&ticket).await.expect("answered").expect("ours");
    assert_eq!((second.lease.turn, second.lease.attempt), (ids[1], 1));
    assert_eq!(
        broker.finish(&first.lease, &going_on(0)).await.expect("answered"),
        None,
        "it is leased by now"
    );
    // Beyond the budget only while nobody else waits.
    enqueue(queue, &[turn(Some("b"), "1")]).await;
    assert_eq!(broker.finish(&second.lease, &going_on(0)).await.expect("ended"), None);
    assert_eq!(claim(&broker).await.lease.agent, agent("b"));
    assert_eq!(claim(&broker).await.lease.turn, ids[2]);
}

/// The ticket stays pending to it, so it is taken over as any other.
pub async fn a_worker_that_dies_as_it_continues_strands_nobody<Q: TestQueue>(queue: &Q) {
    let limits = WorkerLimits { max_continues: 4, ..Default::default() };
    let (dying, other) = (queue.worker_with("dying", limits).await, queue.worker("other").await);
    let ids = enqueue(queue, &[turn(Some("a"), "1"), turn(Some("a"), "2")]).await;
    let first = claim(&dying).await;
    assert!(dying.finish(&first.lease, &going_on(0)).await.expect("ended").is_some());
    let ticket = reclaim_one(&other).await;
    let taken = other.lease(&ticket).await.expect("answered").expect("ours");
    assert_eq!((taken.lease.turn, taken.lease.attempt), (ids[1], 1));
}

/// Readers that come late find it beside the outcome.
pub async fn a_short_reply_is_kept_with_its_outcome<Q: TestQueue>(queue: &Q) {
    let ids: Vec<TurnId> = enqueue(queue, &[turn(Some("a"), "1"), turn(Some("b"), "1")]).await;
    let broker = queue.worker("w").await;
    let whole = delta(0, &[1, 2]);
    let replies: [Option<Delta>; 2] = [Some(whole.clone()), None];
    for reply in replies.clone() {
        let running = claim(&broker).await;
        broker.append(&running.lease, &whole).await.expect("appended");
        let ending = Ending { reply, ..ending(2, Outcome::Completed) };
        broker.finish(&running.lease, &ending).await.expect("ended");
    }
    assert_eq!([queue.short_reply(ids[0]).await, queue.short_reply(ids[1]).await], replies);
}

/// A paused agent's turn, and one behind it: a look at them ends them, so that nobody waits for them in vain. The one that runs is
/// its worker's to end.
pub async fn a_deadline_holds_while_a_turn_waits<Q: TestQueue>(queue: &Q) {
    let broker = queue.worker("w").await;
    let deadline_ms = queue.now_ms().await + 200;
    let hurried = |agent| Turn { deadline_ms: Some(deadline_ms), ..turn(Some(agent), "1") };
    let ids = enqueue(queue, &[hurried("a"), turn(Some("a"), "2"), hurried("a"), hurried("b")]).await;
    assert_eq!(queue.act(&agent("a"), AgentAction::Pause).await, Acted::State(AgentState::Paused));
    // None: the machine was too slow for the deadline.
    let running = broker.lease(&read_one(&broker).await).await.expect("answered");
    let patience = Instant::now() + PATIENCE;
    while ends(&queue.events(ids[0]).await).is_empty() || ends(&queue.events(ids[2]).await).is_empty() {
        broker.promote().await.expect("answered");
        assert!(Instant::now() < patience, "a deadline passed and nobody minded");
    }
    assert!(queue.now_ms().await >= deadline_ms);
    for id in [ids[0], ids[2]] {
        assert_eq!(ends(&queue.events(id).await)[0].outcome, Outcome::Expired);
    }
    if let Some(running) = running {
        assert_eq!(running.lease.turn, ids[3]);
        finish(&broker, &running.lease, 0).await;
    }
    assert_eq!(queue.act(&agent("a"), AgentAction::Resume).await, Acted::State(AgentState::Ready));
    assert_eq!(claim(&broker).await.lease.turn, ids[1]);
}

/// A worker with one place and an agent that would fill it for ever; the agent of a dead worker, one that is due a moment later,
/// and one of the hot agent's own tenant, which may run one turn at a time: they all run long before the hot one is done.
pub async fn nobody_starves_behind_a_hot_agent<Q: TestQueue>(queue: &Q) {
    const HOT: usize = 400;
    let limits = WorkerLimits { tenant_max_running: 1, max_continues: 2, ..Default::default() };
    let (broker, dead) = (queue.worker_with("w", limits).await, queue.worker_with("dead", limits).await);
    let of = |tenant: &str, agent: &str| Turn {
        tenant: TenantName::new(tenant).expect("a name"),
        ..turn(Some(agent), "1")
    };
    let orphan = enqueue(queue, &[of("dead", "a")]).await[0];
    drop(claim(&dead).await);
    let due = Turn { not_before_ms: Some(queue.now_ms().await + LEASE_MS / 2), ..of("due", "a") };
    let mut hot: Vec<Turn> = (0..HOT).map(|_| of("hot", "a")).collect();
    hot.push(of("hot", "parked"));
    let parked = *enqueue(queue, &hot).await.last().expect("some");
    let mut waiting = vec![orphan, parked, enqueue(queue, &[due]).await[0]];
    let work = async {
        let mut next = None;
        while !waiting.is_empty() {
            let ticket = match next.take() {
                Some(ticket) => ticket,
                None => read_one(&broker).await,
            };
            let Some(claim) = broker.lease(&ticket).await.expect("answered") else { continue };
            // Time in which the others come up.
            tokio::time::sleep(Duration::from_millis(2)).await;
            next = broker.finish(&claim.lease, &going_on(0)).await.expect("ended");
            waiting.retain(|turn| *turn != claim.lease.turn);
        }
    };
    let reclaim = async {
        loop {
            broker.reclaim().await.expect("answered");
            broker.renew().await.expect("answered");
            tokio::time::sleep(Duration::from_millis(LEASE_MS / 4)).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = async { tokio::join!(promote(&broker), reclaim); } => unreachable!("timers have no end"),
    }
    let left = broker.counts().await.expect("counted").open();
    assert!(left > HOT as u64 / 4, "the others waited until {left} turns of the hot agent were left");
}

/// While its holder renews in time, a lease is nobody else's, and a ticket that was read neither.
pub async fn renewing_keeps_leases<Q: TestQueue>(queue: &Q) {
    enqueue(queue, &[turn(Some("a"), "1"), turn(Some("b"), "1")]).await;
    let (holder, other) = (queue.worker("holder").await, queue.worker("other").await);
    let (running, unleased) = (claim(&holder).await, read_one(&holder).await);
    let start_ms = queue.now_ms().await;
    let mut renewed_ms = start_ms;
    while renewed_ms < start_ms + 4 * LEASE_MS {
        let sent_ms = queue.now_ms().await;
        holder.renew().await.expect("answered");
        assert!(!running.lease.is_lost());
        renewed_ms = sent_ms;
        let taken = other.reclaim().await.expect("answered");
        // A busy machine may have made the holder late.
        let is_late = queue.now_ms().await >= renewed_ms + LEASE_MS;
        assert!(taken == 0 || is_late, "taken over from a worker that renews");
        if is_late {
            break;
        }
        tokio::time::sleep(Duration::from_millis(LEASE_MS / 10)).await;
    }
    drop((running, unleased));
}
