//! The operator's library against a real Redis: what it lists, and what it does while the server or its caller is elsewhere.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use turnmill_client::events::{EventsQuery, Membership};
use turnmill_client::operate::agent::AgentQuery;
use turnmill_client::operate::doctor::Verdict;
use turnmill_client::operate::{Operator, Scope};
use turnmill_client::schema::keys::{Keys, events_group};
use turnmill_client::schema::{AgentId, TurnId};
use turnmill_client::{Client, ClientBuilder, NewTurn};
use turnmill_tests::PATIENCE;
use turnmill_tests::line::name;
use turnmill_tests::proxy::{Hold, Proxy};
use turnmill_tests::redis_link::RedisLink;
use turnmill_tests::redis_server::RedisServer;

fn builder(url: &str) -> ClientBuilder {
    Client::builder(url).queue(name("q")).tenant(name("t"))
}

fn keys() -> Keys {
    Keys::new(&name("q"), 0)
}

async fn producer(url: &str) -> Client {
    builder(url).connect().await.expect("Redis answers")
}

/// Ends a turn, with an event.
async fn end_one(producer: &Client) -> TurnId {
    let turn = producer.enqueue(NewTurn::user("hi")).await.expect("enqueued").turn;
    producer.cancel(turn).await.expect("cancels");
    turn
}

/// As in an arm of a `select!` that another arm overtakes, just when Redis has delivered an end.
#[tokio::test]
async fn an_end_that_was_delivered_to_a_dropped_read_is_handed_out() {
    let server = RedisServer::start();
    let (direct, redis) = (producer(&server.url()).await, RedisLink::new(server.url()));
    let proxy = Proxy::start(server.address()).await.expect("a local port is free");
    // Longer than this test: what it waits for is one read.
    let long = builder(&proxy.url()).block(Duration::from_secs(600));
    let reader = long.connect().await.expect("Redis answers");
    let membership = Some(Membership { group: name("g"), consumer: name("c") });
    let mut events = reader.events(EventsQuery { membership, ..EventsQuery::default() });
    let (events_key, group) = (keys().events(), events_group(Some(&name("t")), &name("g")));
    let pending = async |redis: &RedisLink| {
        let made: bool = redis.command(&["EXISTS", &events_key]).await;
        let found: Vec<redis::Value> = match made {
            true => redis.command(&["XPENDING", &events_key, &group, "-", "+", "10"]).await,
            false => Vec::new(),
        };
        found.len()
    };
    // The group is made when it is read for the first time.
    let first = async {
        let made = async {
            while !redis.command::<bool>(&["EXISTS", &events_key]).await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, made).await.expect("the group is made");
        end_one(&direct).await
    };
    let (ended, first) = tokio::join!(timeout(PATIENCE, events.next()), first);
    let ended = ended.expect("it comes").expect("Redis answers").expect("there is no count");
    assert_eq!(ended.turn, first);
    events.acknowledge(ended.id).await.expect("acknowledged");

    // Until it waits for the next one.
    let waits = async |redis: &RedisLink| loop {
        let info: String = redis.command(&["INFO", "clients"]).await;
        if info.contains("blocked_clients:1") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let second = tokio::select! {
        ended = events.next() => panic!("its answer is held: {ended:?}"),
        second = async {
            timeout(PATIENCE, waits(&redis)).await.expect("it waits");
            proxy.hold(Hold::Replies);
            let second = end_one(&direct).await;
            let delivered = async {
                while pending(&redis).await == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(PATIENCE, delivered).await.expect("it is delivered");
            second
        } => second,
    };
    proxy.hold(Hold::Nothing);
    // Long before it could be claimed from a consumer that does not deal with it.
    let ended = timeout(Duration::from_secs(30), events.next()).await.expect("it is not lost");
    let ended = ended.expect("Redis answers").expect("there is no count");
    assert_eq!(ended.turn, second);
    events.acknowledge(ended.id).await.expect("acknowledged");
    assert_eq!(pending(&redis).await, 0);
}

/// Whatever its place among the keys of the server.
#[tokio::test]
async fn an_agent_with_work_is_listed_before_idle_ones() {
    let server = RedisServer::start();
    let (producer, redis) = (producer(&server.url()).await, RedisLink::new(server.url()));
    for agent in 0..20 {
        let key = keys().agent(&AgentId::named(&name("t"), &name(&format!("a{agent}"))));
        let _new: u64 = redis.command(&["HSET", &key, "state", "idle"]).await;
    }
    for agent in ["b", "z"] {
        producer.enqueue(NewTurn::user("hi").agent(name(agent))).await.expect("enqueued");
    }
    let operator = producer.operate();
    for (limit, idle) in [(2, 0), (3, 1), (22, 20), (1000, 20)] {
        let query = AgentQuery { scope: Scope::Tenant, idle: true, limit };
        let listed = operator.agents(query).await.expect("lists");
        let with_work = listed.iter().filter(|agent| agent.backlog > 0).count();
        assert_eq!((with_work, listed.len() - with_work), (2, idle), "at most {limit}");
        assert!(listed[..2].iter().all(|agent| agent.backlog > 0), "they stand in front");
    }
}

/// As while it loads its data, or waits for a master that is gone.
#[tokio::test]
async fn a_server_that_does_not_serve_is_told_soon_and_not_as_a_want_of_rights() {
    let server = RedisServer::start();
    let redis = RedisLink::new(server.url());
    let () = redis.command(&["CONFIG", "SET", "replica-serve-stale-data", "no"]).await;
    let () = redis.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let operator = Operator::reach(builder(&server.url())).await.expect("it answers");
    let start = Instant::now();
    let checks = operator.examine(15_000).await;
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    let of = |name| checks.iter().find(|check| check.check == name).expect("the check is made");
    assert_eq!(of("scripts").verdict, Verdict::Fail, "{checks:?}");
    for check in ["types", "scripts", "stuck", "dead"].map(of) {
        assert!(check.found.contains("MASTERDOWN"), "{check:?}");
        let advice = check.advice.as_deref().unwrap_or_default();
        assert!(advice.contains("once the server serves the queue"), "{check:?}");
    }
}
