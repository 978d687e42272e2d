//! Many followers of one producer against a real Redis: they share a few connections and hold nobody up, and a server that
//! gives way to another one, or a broken key, costs them nothing. The worker is played by the test.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use turnmill_client::schema::keys::{FIELD_AT, FIELD_END, FIELD_EVENT, Keys};
use turnmill_client::schema::{Delta, End, Event, FinishReason, Outcome, Timing, TurnId, Usage, envelope};
use turnmill_client::{Client, ClientBuilder, ClientError, NewTurn};
use turnmill_tests::PATIENCE;
use turnmill_tests::chaos::failover::Failovers;
use turnmill_tests::line::{ids, name};
use turnmill_tests::proxy::Proxy;
use turnmill_tests::redis_link::RedisLink;
use turnmill_tests::redis_server::RedisServer;

fn builder(url: &str) -> ClientBuilder {
    Client::builder(url).queue(name("q")).tenant(name("t"))
}

async fn producer(url: &str) -> Client {
    // Looks at what the streams do not tell come often.
    builder(url).block(Duration::from_millis(200)).connect().await.expect("Redis answers")
}

/// Enqueues `count` turns.
async fn enqueue(producer: &Client, count: usize) -> Vec<TurnId> {
    let turns = (0..count).map(|number| NewTurn::user(number.to_string())).collect();
    ids(producer.enqueue_batch(turns).await.expect("enqueued"))
}

fn keys() -> Keys {
    Keys::new(&name("q"), 0)
}

async fn publish(redis: &RedisLink, turn: TurnId, id: &str, event: &Event) {
    let mut add = redis::pipe();
    let event = envelope::encode(event).expect("encodes");
    add.cmd("XADD").arg(keys().result(turn)).arg(id).arg(FIELD_EVENT).arg(event).arg(FIELD_AT).arg(0);
    let _: String = redis.one(&add).await;
}

/// Publishes the token of this number.
async fn say(redis: &RedisLink, turn: TurnId, token: u32) {
    let mut delta = Delta { index: token, ..Delta::default() };
    delta.push(token, &text(turn, token), None);
    publish(redis, turn, &format!("5-{}", token + 1), &Event::Delta(delta)).await;
}

fn text(turn: TurnId, token: u32) -> String {
    format!("{turn} says {token}; ")
}

/// Ends a turn that said `tokens`.
async fn end(redis: &RedisLink, turn: TurnId, tokens: u32) {
    let (usage, timing) = (Usage::default(), Timing::default());
    let (outcome, finish) = (Outcome::Completed, Some(FinishReason::Stop));
    let end = Event::End(End { outcome, finish, stop: None, error: None, usage, timing, worker: None });
    publish(redis, turn, &format!("6-{tokens}"), &end).await;
    let mut set = redis::pipe();
    set.hset(keys().turn(turn), FIELD_END, envelope::encode(&end).expect("encodes"));
    let _: u64 = redis.one(&set).await;
}

/// How many clients are connected, the asking one included.
async fn clients(redis: &RedisLink) -> usize {
    redis.command::<String>(&["CLIENT", "LIST"]).await.lines().count()
}

#[tokio::test]
async fn hundreds_of_followers_share_a_few_connections() {
    let server = RedisServer::start();
    let (producer, redis) = (producer(&server.url()).await, RedisLink::new(server.url()));
    let turns = enqueue(&producer, 300).await;
    let waiting = {
        let (producer, turns) = (producer.clone(), turns.clone());
        let wait = move |turn| {
            let producer = producer.clone();
            async move { (turn, producer.wait(turn).await) }
        };
        tokio::spawn(async move { futures::future::join_all(turns.into_iter().map(wait)).await })
    };
    let mut most = 0;
    for token in 0..3 {
        for turn in &turns {
            say(&redis, *turn, token).await;
        }
        most = most.max(clients(&redis).await);
    }
    for turn in &turns {
        end(&redis, *turn, 3).await;
    }
    for (turn, result) in waiting.await.expect("no panic") {
        let whole: String = (0..3).map(|token| text(turn, token)).collect();
        assert_eq!(result.expect("ended").text, Some(whole));
    }
    assert!(most < 20, "{most} connections");
}

#[tokio::test]
async fn followers_that_nobody_polls_hold_nobody_up() {
    let server = RedisServer::start();
    let (producer, redis) = (producer(&server.url()).await, RedisLink::new(server.url()));
    let turns = enqueue(&producer, 100).await;
    let mut followers: Vec<_> = turns.iter().map(|turn| producer.follow(*turn, None).boxed()).collect();
    let mut waits: Vec<_> = turns.iter().map(|turn| producer.wait(*turn).boxed()).collect();
    // Each is polled once and then left alone, as in an arm of a `select!` that goes on to await something else.
    for (follower, wait) in followers.iter_mut().zip(&mut waits) {
        assert!(futures::poll!(follower.next()).is_pending() && futures::poll!(wait).is_pending());
    }
    // More pieces than are kept for one that does not take them.
    for token in 0..50 {
        for turn in &turns {
            say(&redis, *turn, token).await;
        }
    }
    for turn in &turns {
        end(&redis, *turn, 50).await;
    }
    for _ in 0..20 {
        enqueue(&producer, 1).await;
    }
    // A slow follower loses nothing.
    let whole: Vec<_> = followers.pop().expect("there are some").collect().await;
    assert_eq!(whole.len(), 51);
    assert!(whole.iter().all(Result::is_ok), "{whole:?}");
    let result = waits.pop().expect("there are some").await.expect("ended");
    assert_eq!(result.tokens.len(), 50);
}

#[tokio::test]
async fn a_broken_stream_fails_its_own_follower_alone() {
    let server = RedisServer::start();
    let (producer, redis) = (producer(&server.url()).await, RedisLink::new(server.url()));
    let turns = enqueue(&producer, 3).await;
    let mut events = pin!(producer.follow_many(turns.clone()));
    for turn in &turns {
        say(&redis, *turn, 0).await;
    }
    for _ in &turns {
        let (turn, followed) = events.next().await.expect("not ended");
        assert!(followed.is_ok(), "{turn}: {followed:?}");
    }
    let mut replace = redis::pipe();
    replace.atomic().del(keys().result(turns[1])).set(keys().result(turns[1]), "x");
    redis.ask(&replace).await;
    let (turn, followed) = events.next().await.expect("not ended");
    let error = followed.expect_err("it is broken");
    assert!(turn == turns[1] && error.to_string().contains("turnmill doctor"), "{turn}: {error}");
    for turn in [turns[0], turns[2]] {
        end(&redis, turn, 1).await;
    }
    let mut ended: Vec<_> = events.map(|(turn, followed)| (turn, followed.is_ok())).collect().await;
    ended.sort();
    assert_eq!(ended, [(turns[0], true), (turns[2], true)]);
}

/// Entries of somebody else, and those of a newer version, cost neither followers nor those who wait anything.
#[tokio::test]
async fn foreign_entries_of_a_result_are_passed_by() {
    let server = RedisServer::start();
    let (producer, redis) = (producer(&server.url()).await, RedisLink::new(server.url()));
    let turn = enqueue(&producer, 1).await[0];
    let result = keys().result(turn);
    let follow = tokio::spawn(producer.follow(turn, None).collect::<Vec<_>>());
    let _: String = redis.command(&["XADD", &result, "4-0", "whose", "not ours"]).await;
    say(&redis, turn, 0).await;
    say(&redis, turn, 1).await;
    let _: String = redis.command(&["XADD", &result, "5-7", FIELD_EVENT, "\u{2}"]).await;
    end(&redis, turn, 2).await;

    let whole = format!("{}{}", text(turn, 0), text(turn, 1));
    let followed = tokio::time::timeout(PATIENCE, follow).await.expect("it ends").expect("no panic");
    let mut said = String::new();
    for followed in followed {
        if let Event::Delta(delta) = followed.expect("nothing is wrong").event {
            said.push_str(&delta.text);
        }
    }
    assert_eq!(said, whole);
    assert_eq!(producer.wait(turn).await.expect("ended").text.as_ref(), Some(&whole));
    let mut ends = producer.wait_many();
    ends.add(turn);
    let (_, ended) = ends.next().await.expect("one is waited for");
    assert_eq!(ended.expect("ended").text, Some(whole));
}

#[tokio::test]
async fn a_turn_that_goes_while_it_is_followed_is_told() {
    let server = RedisServer::start();
    let (producer, redis) = (producer(&server.url()).await, RedisLink::new(server.url()));
    let turn = enqueue(&producer, 1).await[0];
    let mut events = producer.follow(turn, None);
    say(&redis, turn, 0).await;
    assert!(events.next().await.is_some_and(|event| event.is_ok()));
    let _: String = redis.command(&["FLUSHALL"]).await;
    let lost = tokio::time::timeout(PATIENCE, events.next()).await.expect("it is told");
    assert!(matches!(lost, Some(Err(ClientError::UnknownTurn { .. }))), "{lost:?}");
}

/// The address moves to another server, and connections made before stay open to the old one, which becomes a replica.
#[tokio::test]
async fn a_producer_goes_on_after_a_failover_that_keeps_its_connections() {
    let (mut primary, mut failovers) = Failovers::pair(&[]).await.expect("a replica in sync");
    let proxy = Proxy::start(primary.address()).await.expect("a local port is free");
    let producer = producer(&proxy.url()).await;
    let turn = enqueue(&producer, 1).await[0];
    let mut events = producer.follow(turn, None);
    say(&RedisLink::new(primary.url()), turn, 0).await;
    assert!(events.next().await.is_some_and(|event| event.is_ok()));

    assert!(failovers.fail_over(&mut primary).await.expect("both answer"));
    proxy.lead_to(primary.address());

    let new = RedisLink::new(primary.url());
    say(&new, turn, 1).await;
    end(&new, turn, 2).await;
    let rest: Vec<_> = events.collect().await;
    assert!(matches!(&rest[..], [Ok(delta), Ok(_)] if matches!(delta.event, Event::Delta(_))), "{rest:?}");
    enqueue(&producer, 1).await;
    assert_eq!(producer.lag().await.expect("counts").open_turns, 2);
}

/// Each gives up when its own time is over, however many of them catch up at once.
#[tokio::test]
async fn an_outage_ends_the_waits_of_many_together() {
    const RETRY_FOR: Duration = Duration::from_secs(2);
    let server = RedisServer::start();
    let proxy = Proxy::start(server.address()).await.expect("a local port is free");
    let producer = builder(&proxy.url()).retry_for(RETRY_FOR).connect().await.expect("Redis answers");
    let turns = enqueue(&producer, 320).await;
    proxy.refuse(true);
    proxy.cut_all();
    let start = Instant::now();
    for result in futures::future::join_all(turns.iter().map(|turn| producer.wait(*turn))).await {
        assert!(result.as_ref().is_err_and(ClientError::is_outage), "{result:?}");
    }
    assert!(start.elapsed() < RETRY_FOR * 5, "one wave after the other: {:?}", start.elapsed());
}

#[tokio::test]
async fn a_deadline_ends_the_wait_for_a_turn_that_no_worker_runs() {
    let server = RedisServer::start();
    let producer = producer(&server.url()).await;
    let hurried = || NewTurn::user("hi").deadline_in(Duration::from_millis(300));
    let turns = ids(producer.enqueue_batch(vec![hurried(), hurried()]).await.expect("enqueued"));
    let mut ends = producer.wait_many();
    ends.add(turns[1]);
    let both = async { (producer.wait(turns[0]).await, ends.next().await) };
    let (one, other) = tokio::time::timeout(PATIENCE, both).await.expect("both end");
    assert_eq!(one.expect("it ended").outcome, Outcome::Expired);
    let (turn, other) = other.expect("one is waited for");
    assert_eq!((turn, other.expect("it ended").outcome), (turns[1], Outcome::Expired));
}
