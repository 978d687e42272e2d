//! What programs do wrong with the client library, and what they get for it: one clear error, or an exact partial answer.

use std::time::Duration;

use futures::StreamExt;
use redis::aio::MultiplexedConnection;
use turnmill_client::events::EventsQuery;
use turnmill_client::schema::keys::{Keys, events_group};
use turnmill_client::{
    Advice, Cancelled, Client, ClientError, Enqueued, Event, Fate, NewTurn, Outcome, Sampling, TurnId,
};
use turnmill_tests::line::{Line, exactly, ids, name};
use turnmill_tests::proxy::Proxy;
use turnmill_tests::{PATIENCE, until};

async fn connection(line: &Line) -> MultiplexedConnection {
    let client = redis::Client::open(line.redis.url()).expect("a URL");
    client.get_multiplexed_async_connection().await.expect("Redis answers")
}

fn keys() -> Keys {
    Keys::new(&name("default"), 0)
}

/// Whether the queue has the turn.
async fn has(client: &Client, turn: TurnId) -> bool {
    match client.operate().turn(turn).await {
        Ok(view) => view.state == "queued",
        Err(ClientError::UnknownTurn { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn ten_thousand_turns_for_a_queue_that_has_room_for_a_thousand_are_told_one_by_one() {
    const TURNS: usize = 10_000;
    const ROOM: usize = 1_000;
    let line = Line::without_workers().await;
    let client =
        Client::builder(line.redis.url()).max_depth(ROOM as u64).connect().await.expect("Redis answers");
    let mut turns: Vec<_> = (0..TURNS).map(|i| client.prepare(NewTurn::user(format!("Turn {i}")))).collect();
    let error = client.enqueue_prepared(&mut turns).await.expect_err("too many");
    assert!(matches!(*error.source, ClientError::QueueFull { limit: 1000, tenant: None, .. }), "{error}");
    assert_eq!((error.advice(), error.place, error.fates.len()), (Advice::Retry, None, TURNS));
    let told = error.to_string();
    assert!(
        told.starts_with("1000 of 10000 turns are in the queue; the others are not: queue full"),
        "{told}"
    );
    for (i, (turn, fate)) in turns.iter().zip(&error.fates).enumerate() {
        let expected = match i < ROOM {
            true => Fate::Enqueued(Enqueued { turn: turn.id(), fresh: true }),
            false => Fate::NotEnqueued,
        };
        assert_eq!(*fate, expected, "turn {i}");
    }
    assert_eq!(client.lag().await.expect("counts").open_turns, ROOM as u64);
    for (place, there) in [(0, true), (ROOM - 1, true), (ROOM, false), (TURNS - 1, false)] {
        assert_eq!(has(&client, turns[place].id()).await, there, "turn {place}");
    }

    // Again: there is no room at all, and those that are in are not taken for new ones.
    let again = client.enqueue_prepared(&mut turns).await.expect_err("still too many");
    assert_eq!(again.fates, error.fates);
    assert_eq!(client.lag().await.expect("counts").open_turns, ROOM as u64);
}

#[tokio::test]
async fn a_wrong_turn_among_many_is_named_by_its_place_and_nothing_is_written() {
    let line = Line::without_workers().await;
    let mut turns: Vec<_> = (0..300).map(|i| NewTurn::user(format!("Turn {i}"))).collect();
    turns[250] = NewTurn::user("hi").sampling(Sampling { temperature: -1.0, ..exactly(1) });
    let error = line.producer.enqueue_batch(turns).await.expect_err("one is wrong");
    assert_eq!(error.to_string(), "turn 251 of 300: temperature is -1; it must be from 0 to 100");
    assert_eq!((error.place, error.fates), (Some(250), vec![Fate::NotEnqueued; 300]));
    assert_eq!(line.all_keys().await, Vec::<String>::new());

    let keyed = |text: &str| NewTurn::user(text).idempotency_key(name("k"));
    let first = line.producer.enqueue(keyed("one")).await.expect("enqueued");
    let mut turns: Vec<_> = (0..300).map(|i| NewTurn::user(format!("Turn {i}"))).collect();
    turns[250] = keyed("another");
    let error = line.producer.enqueue_batch(turns).await.expect_err("the key is taken");
    assert!(matches!(*error.source, ClientError::KeyTaken { first: taken_by, .. } if taken_by == first.turn));
    let in_queue = error.fates.iter().filter(|fate| fate.enqueued().is_some()).count();
    assert_eq!((error.place, in_queue, &error.fates[200..]), (Some(250), 200, &[Fate::NotEnqueued; 100][..]));
    assert_eq!(line.producer.lag().await.expect("counts").open_turns, 201);
}

#[tokio::test]
async fn a_key_that_is_known_is_no_fresh_turn() {
    let line = Line::without_workers().await;
    let keyed = |key| NewTurn::user("hi").idempotency_key(name(key));
    let first = line.producer.enqueue(keyed("a")).await.expect("enqueued");
    assert!(first.fresh);
    let both = line.producer.enqueue_batch(vec![keyed("a"), keyed("b")]).await.expect("enqueued");
    assert_eq!(both[0], Enqueued { turn: first.turn, fresh: false });
    assert!(both[1].fresh && both[1].turn != first.turn);
}

/// The turns that a program takes for its agent's newest one.
#[tokio::test]
async fn a_turn_that_would_follow_another_one_than_it_names_is_not_enqueued() {
    let line = Line::without_workers().await;
    let client = &line.producer;
    let say = |text: &str| NewTurn::user(text).agent(name("ada"));
    let stale = |error: &ClientError| match error {
        ClientError::StaleHead { head, .. } => *head,
        other => panic!("{other}"),
    };
    let nobody = TurnId::new(0);
    let error = client.enqueue(say("first").after(nobody)).await.expect_err("she has no turn");
    assert_eq!((stale(&error), error.advice()), (None, Advice::Reject));
    assert!(error.to_string().contains("its agent has no turn"), "{error}");

    let first = client.enqueue(say("first")).await.expect("enqueued").turn;
    let second = client.enqueue(say("second").after(first)).await.expect("it follows the first").turn;
    let error = client.enqueue(say("third").after(first)).await.expect_err("the second came between");
    assert_eq!(stale(&error), Some(second));
    assert!(error.to_string().contains(&format!("the newest turn of its agent is {second}")), "{error}");
    let other = client.enqueue(NewTurn::user("hi").agent(name("bob"))).await.expect("enqueued").turn;
    assert_eq!(stale(&client.enqueue(say("third").after(other)).await.expect_err("bob's")), Some(second));

    let error = client.enqueue(NewTurn::user("alone").after(second)).await.expect_err("it follows none");
    assert!(matches!(error, ClientError::FollowsAlone { after, .. } if after == second), "{error}");
    assert_eq!(client.lag().await.expect("counts").open_turns, 3);

    // A chain in one call, which is repeated although others came after it.
    let mut chain = vec![client.prepare(say("third").after(second))];
    for text in ["fourth", "fifth"] {
        let before = chain.last().expect("one is there").id();
        chain.push(client.prepare(say(text).after(before)));
    }
    let enqueued = client.enqueue_prepared(&mut chain).await.expect("each follows the one before it");
    assert!(enqueued.iter().all(|enqueued| enqueued.fresh));
    client.enqueue(say("sixth")).await.expect("enqueued");
    assert_eq!(client.enqueue_prepared(&mut chain).await.expect("they are in the queue"), enqueued);
    // One stale turn refuses its call, and is named.
    let error = client.enqueue_batch(vec![say("a"), say("b").after(second)]).await.expect_err("stale");
    assert_eq!((error.place, &error.fates[..]), (Some(1), &[Fate::NotEnqueued; 2][..]));
    assert_eq!(client.lag().await.expect("counts").open_turns, 7);
}

#[tokio::test]
async fn follows_that_are_dropped_half_way_leave_nothing_behind() {
    let line = Line::without_workers().await;
    let _worker = line.stand_in().await;
    let mut redis = connection(&line).await;
    let mut connections = async || {
        let list = redis::cmd("CLIENT").arg("LIST").query_async::<String>(&mut redis).await;
        list.expect("the server answers").lines().count()
    };
    line.run(NewTurn::user("The connections that stay are made.").sampling(exactly(1))).await;
    let before = connections().await;
    let turns =
        line.enqueue((0..50).map(|i| NewTurn::user(format!("{i}")).sampling(exactly(20))).collect()).await;
    for turn in &turns {
        let mut events = line.producer.follow(*turn, None);
        assert!(events.next().await.is_some_and(|event| event.is_ok()));
    }
    until("connections of followers are closed", async || connections().await <= before).await;
    // The turns went on, and whoever follows them again gets all of their words.
    for turn in turns {
        let whole = line.wait(turn).await.text.expect("it has not expired");
        let events: Vec<_> = line.producer.follow(turn, None).collect().await;
        let said = events.iter().filter_map(|event| match &event.as_ref().expect("nothing is wrong").event {
            Event::Delta(delta) => Some(delta.text.as_str()),
            _ => None,
        });
        assert_eq!(said.collect::<String>(), whole);
    }
}

/// As a firewall does with connections that are idle for an hour: they look open, and nothing comes back.
#[tokio::test]
async fn connections_that_were_forgotten_are_made_anew_and_no_turn_is_enqueued_twice() {
    let line = Line::without_workers().await;
    let proxy = Proxy::start(line.redis.address()).await.expect("a local port is free");
    let builder = Client::builder(proxy.url()).response_timeout(Duration::from_millis(300));
    let client = builder.connect().await.expect("Redis answers");
    let first = client.enqueue(NewTurn::user("first")).await.expect("enqueued");
    let mut events = client.follow(first.turn, None);
    let mut ends = client.events(EventsQuery::group(name("g"), name("c")));
    let mut waited = client.wait_many();
    waited.add(first.turn);
    assert!(futures::poll!(std::pin::pin!(events.next())).is_pending());
    let told = tokio::spawn(async move { ends.next().await });
    let mut direct = connection(&line).await;
    let group = events_group(Some(&name("default")), &name("g"));
    until("the group is made", async || {
        let groups = redis::cmd("XINFO")
            .arg("GROUPS")
            .arg(keys().events())
            .query_async::<redis::Value>(&mut direct)
            .await;
        groups.is_ok_and(|groups| format!("{groups:?}").contains(&group))
    })
    .await;

    proxy.forget_all();
    let second = client.enqueue(NewTurn::user("second")).await.expect("enqueued over a new connection");
    assert!(second.fresh);
    assert_eq!(client.lag().await.expect("counts").open_turns, 2, "none twice");
    assert_eq!(client.cancel(first.turn).await.expect("cancelled"), Cancelled::Cancelled);
    let ended = tokio::time::timeout(PATIENCE, events.next()).await.expect("it is told");
    let ended = ended.expect("the end").expect("nothing is wrong").event;
    assert!(matches!(ended, Event::End(end) if end.outcome == Outcome::Cancelled));
    let (turn, result) = tokio::time::timeout(PATIENCE, waited.next()).await.expect("told").expect("one");
    assert_eq!((turn, result.expect("it ended").outcome), (first.turn, Outcome::Cancelled));
    let ended = tokio::time::timeout(PATIENCE, told).await.expect("told").expect("no panic");
    assert_eq!(ended.expect("nothing is wrong").map(|ended| ended.turn), Some(first.turn));
}

/// The server closes connections that are idle.
#[tokio::test]
async fn connections_that_the_server_closed_are_made_anew() {
    let line = Line::without_workers().await;
    let client = Client::builder(line.redis.url()).connect().await.expect("Redis answers");
    client.enqueue(NewTurn::user("first")).await.expect("enqueued");
    let mut redis = connection(&line).await;
    let kill = redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes").clone();
    let killed: u64 = kill.query_async(&mut redis).await.expect("answers");
    assert!(killed > 0);
    let second = client.enqueue(NewTurn::user("second")).await.expect("enqueued over a new connection");
    assert!(second.fresh);
    assert_eq!(client.lag().await.expect("counts").open_turns, 2, "none twice");
}

#[tokio::test]
async fn a_turn_that_expires_while_it_is_followed_ends_for_all_who_wait() {
    let line = Line::without_workers().await;
    let hurried = NewTurn::user("hi").deadline_in(Duration::from_millis(300));
    let turn = ids(line.producer.enqueue_batch(vec![hurried]).await.expect("enqueued"))[0];
    let mut waited = line.producer.wait_many();
    waited.add(turn);
    let events: Vec<_> =
        tokio::time::timeout(PATIENCE, line.producer.follow(turn, None).collect()).await.expect("ends");
    let [Ok(followed)] = &events[..] else { panic!("one event: {events:?}") };
    assert!(
        matches!(&followed.event, Event::End(end) if end.outcome == Outcome::Expired && end.error.is_some())
    );
    let (_, result) = waited.next().await.expect("one is waited for");
    assert_eq!(result.expect("a turn that expired is a result").outcome, Outcome::Expired);
}

#[tokio::test]
async fn a_turn_that_is_forgotten_while_it_is_followed_is_told_once() {
    let line = Line::without_workers().await;
    let turn = line.enqueue(vec![NewTurn::user("hi").agent(name("a"))]).await[0];
    let mut events = line.producer.follow(turn, None);
    assert!(futures::poll!(std::pin::pin!(events.next())).is_pending());
    let mut redis = connection(&line).await;
    for key in [keys().result(turn), keys().turn(turn)] {
        let _: u64 = redis::cmd("DEL").arg(key).query_async(&mut redis).await.expect("DEL");
    }
    let lost = tokio::time::timeout(PATIENCE, events.next()).await.expect("it is told");
    let Some(Err(error @ ClientError::UnknownTurn { .. })) = lost else { panic!("{lost:?}") };
    let said = error.to_string();
    assert!(said.contains("its result has expired") && error.advice() == Advice::Reject, "{said}");
    assert!(events.next().await.is_none(), "it is told once");
    assert!(matches!(line.producer.wait(turn).await, Err(ClientError::UnknownTurn { .. })));
}

#[tokio::test]
async fn the_history_of_an_agent_is_what_it_heard_and_said() {
    let line = Line::without_workers().await;
    let unknown = line.producer.history(&name("ada")).await.expect_err("nobody knows her");
    assert!(matches!(unknown, ClientError::UnknownAgent { .. }), "{unknown}");
    let _worker = line.stand_in().await;
    let say = |text: &str| NewTurn::user(text).agent(name("ada")).sampling(exactly(2));
    let turns = line.enqueue(vec![say("one"), say("two")]).await;
    for turn in &turns {
        line.producer.wait(*turn).await.expect("it ended");
    }
    let history = line.producer.history(&name("ada")).await.expect("read");
    assert_eq!(history.iter().map(|entry| entry.turn).collect::<Vec<_>>(), turns);
    assert!(history.iter().all(|entry| entry.messages.len() == 2), "{history:?}");
    assert_eq!(line.producer.operate().agent(&name("ada")).await.expect("there").transcript, 2);
}
