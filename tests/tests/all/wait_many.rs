//! Waiting for many turns: every end comes once, over a few connections, whatever happens to events and to Redis.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokio::time::timeout;
use turnmill_client::schema::keys::{FIELD_END, FIELD_EVENT, Keys};
use turnmill_client::schema::{Delta, End, Event, Outcome, Timing, TurnId, Usage, envelope};
use turnmill_client::{Client, ClientError, NewTurn, WaitMany};
use turnmill_tests::line::{Line, exactly, name};
use turnmill_tests::{PATIENCE, until};

async fn connection(line: &Line) -> MultiplexedConnection {
    let client = redis::Client::open(line.redis.url()).expect("a URL");
    client.get_multiplexed_async_connection().await.expect("Redis answers")
}

async fn clients(redis: &mut MultiplexedConnection) -> usize {
    let clients: String = redis::cmd("CLIENT").arg("LIST").query_async(redis).await.expect("CLIENT LIST");
    clients.lines().count()
}

/// Ends a turn without an event of it.
async fn end_quietly(redis: &mut MultiplexedConnection, turn: TurnId) {
    let keys = Keys::new(&name("default"), 0);
    let end = End {
        outcome: Outcome::Completed,
        finish: None,
        stop: None,
        error: None,
        usage: Usage::default(),
        timing: Timing::default(),
        worker: None,
    };
    let mut text = Delta::default();
    text.push(1, "said", None);
    let end = envelope::encode(&Event::End(end)).expect("encodes");
    for (id, event) in
        [("5-1", envelope::encode(&Event::Delta(text)).expect("encodes")), ("6-1", end.clone())]
    {
        let _id: String = redis.xadd(keys.result(turn), id, &[(FIELD_EVENT, event)]).await.expect("XADD");
    }
    let _new: u64 = redis.hset(keys.turn(turn), FIELD_END, end).await.expect("HSET");
}

/// Connections that wait on the server, such as for the next event.
async fn blocked(redis: &mut MultiplexedConnection) -> u64 {
    let info: String = redis::cmd("INFO").arg("clients").query_async(redis).await.expect("INFO");
    let blocked = info.lines().find_map(|line| line.strip_prefix("blocked_clients:"));
    blocked.expect("INFO tells it").parse().expect("a number")
}

async fn until_blocked(redis: &mut MultiplexedConnection, expected: u64) {
    let reached = async {
        while blocked(redis).await != expected {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("never {expected} that wait for events"));
}

async fn next(ends: &mut WaitMany) -> (TurnId, String) {
    let (turn, result) =
        timeout(PATIENCE, ends.next()).await.expect("an end comes").expect("some are waited for");
    (turn, result.expect("it can be read").text.expect("it is kept"))
}

#[tokio::test]
async fn all_ends_come_over_one_more_connection_while_their_taker_does_other_things() {
    let line = Line::without_workers().await;
    let _worker = line.stand_in().await;
    // The worker has its connections.
    line.run(NewTurn::user("first")).await;
    let mut redis = connection(&line).await;
    let before = clients(&mut redis).await;
    let turn = |i| NewTurn::user("hi").agent(name(&format!("agent-{}", i % 60))).sampling(exactly(1));
    let turns: BTreeSet<TurnId> = line.enqueue((0..600).map(turn).collect()).await.into_iter().collect();
    let mut ends = line.producer.wait_many();
    turns.iter().for_each(|turn| ends.add(*turn));
    let (mut ended, mut most) = (BTreeSet::new(), 0);
    while ends.waiting() > 0 {
        let (turn, _) = next(&mut ends).await;
        assert!(ended.insert(turn), "{turn} ends twice");
        if ended.len() % 50 == 0 {
            // Over the connection that its results come over.
            line.enqueue(vec![NewTurn::user("more").sampling(exactly(1))]).await;
            most = most.max(clients(&mut redis).await);
        }
    }
    assert_eq!(ended, turns);
    assert!(ends.next().await.is_none());
    // Workers open and close some of their own.
    assert!(most <= before + 8, "{most} connections, {before} before");
}

#[tokio::test]
async fn ends_that_no_event_tells_of_are_found() {
    let line = Line::without_workers().await;
    let mut redis = connection(&line).await;
    let turns = line.enqueue((0..3).map(|i| NewTurn::user(format!("{i}"))).collect()).await;
    let mut ends = line.producer.wait_many();
    // One that ended before.
    end_quietly(&mut redis, turns[0]).await;
    ends.add(turns[0]);
    assert_eq!(next(&mut ends).await, (turns[0], "said".to_owned()));
    // One that ends without an event.
    ends.add(turns[1]);
    end_quietly(&mut redis, turns[1]).await;
    assert_eq!(next(&mut ends).await, (turns[1], "said".to_owned()));
    // One where nothing of the kind can be read any more.
    let events = Keys::new(&name("default"), 0).events();
    let _deleted: u64 = redis.del(&events).await.expect("DEL");
    let _set: () = redis.set(&events, "something else").await.expect("SET");
    ends.add(turns[2]);
    end_quietly(&mut redis, turns[2]).await;
    assert_eq!(next(&mut ends).await, (turns[2], "said".to_owned()));
    // Once they can be read, they are.
    until_blocked(&mut redis, 0).await;
    let _deleted: u64 = redis.del(&events).await.expect("DEL");
    until_blocked(&mut redis, 1).await;
}

#[tokio::test]
async fn a_turn_that_is_named_again_has_one_result_at_a_time() {
    let line = Line::without_workers().await;
    let mut redis = connection(&line).await;
    let turn = line.enqueue(vec![NewTurn::user("hi")]).await[0];
    end_quietly(&mut redis, turn).await;
    let mut ends = line.producer.wait_many();
    for _ in 0..2 {
        ends.add(turn);
        ends.add(turn);
        assert_eq!(ends.waiting(), 1);
        assert_eq!(next(&mut ends).await, (turn, "said".to_owned()));
        assert_eq!(ends.waiting(), 0);
        let after = timeout(PATIENCE, ends.next()).await.expect("nothing is waited for");
        assert!(after.is_none(), "{after:?}");
    }
}

/// A server that cannot answer just then says so of each turn, and not of the whole call.
#[tokio::test]
async fn turns_are_not_given_up_while_redis_is_busy() {
    let line = Line::start_with(&["--busy-reply-threshold", "20"]).await;
    let mut redis = connection(&line).await;
    let turns = line.enqueue((0..3).map(|i| NewTurn::user(format!("{i}"))).collect()).await;
    let mut ends = line.producer.wait_many();
    ends.add(turns[0]);
    let mut script = connection(&line).await;
    let endless = tokio::spawn(async move {
        redis::cmd("EVAL").arg("while true do end").arg(0).query_async::<()>(&mut script).await
    });
    let busy = async {
        while redis::cmd("PING").query_async::<String>(&mut redis).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, busy).await.expect("the script runs");
    // They are looked at now.
    turns.iter().for_each(|turn| ends.add(*turn));
    let told = timeout(Duration::from_millis(700), ends.next()).await;
    assert!(told.is_err(), "given up: {told:?}");
    let () = redis::cmd("SCRIPT").arg("KILL").query_async(&mut redis).await.expect("it is killed");
    endless.await.expect("no panic").expect_err("it was killed");
    // On a busy machine any script may take longer than that, also one that the server runs just now.
    let threshold = ["SET", "busy-reply-threshold", "5000"];
    until("scripts may take longer", async || {
        redis::cmd("CONFIG").arg(&threshold).query_async::<()>(&mut redis).await.is_ok()
    })
    .await;
    let mut ended = BTreeSet::new();
    for turn in &turns {
        end_quietly(&mut redis, *turn).await;
        ended.insert(next(&mut ends).await.0);
    }
    assert_eq!(ended, turns.into_iter().collect());
}

#[tokio::test]
async fn what_is_not_there_and_a_redis_that_stays_away_are_told_of_each_turn() {
    let line = Line::without_workers().await;
    let builder = Client::builder(line.redis.url()).retry_for(Duration::from_millis(300));
    let producer = builder.connect().await.expect("Redis answers");
    let mut ends = producer.wait_many();
    let unknown = TurnId::new(0);
    ends.add(unknown);
    let told = ends.next().await.expect("one is waited for");
    assert!(matches!(told, (turn, Err(ClientError::UnknownTurn { .. })) if turn == unknown));

    let turns = line.enqueue((0..3).map(|i| NewTurn::user(format!("{i}"))).collect()).await;
    turns.iter().for_each(|turn| ends.add(*turn));
    drop(line);
    let mut told = BTreeSet::new();
    while let Some((turn, result)) = timeout(PATIENCE, ends.next()).await.expect("it gives up") {
        assert!(matches!(&result, Err(error) if error.is_outage()), "{result:?}");
        told.insert(turn);
    }
    assert_eq!(told, turns.into_iter().collect());
}
