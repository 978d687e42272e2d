//! Batches that end half-way: what the library and `turnmill submit` say is in the queue is what is there.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use turnmill_client::{Advice, Client, ClientError, Enqueued, Fate, NewTurn, PreparedTurn};
use turnmill_tests::PATIENCE;
use turnmill_tests::line::{Line, ids, name};
use turnmill_tests::proxy::{Hold, Proxy};
use turnmill_tests::redis_server::RedisServer;

/// Lines of which the `wrong`th, if there is such, is `instead`.
fn lines(count: usize, wrong: usize, instead: &Value) -> NamedTempFile {
    let mut text = String::new();
    for i in 1..=count {
        let own = json!({"agent": format!("agent-{}", i % 60), "message": format!("Line {i}")});
        writeln!(text, "{}", if i == wrong { instead } else { &own }).expect("written");
    }
    let mut file = NamedTempFile::new().expect("the temporary directory is writable");
    file.write_all(text.as_bytes()).expect("written");
    file
}

async fn open_turns(line: &Line) -> u64 {
    line.producer.lag().await.expect("counts").open_turns
}

/// How many ids it printed, and what it said.
fn said(output: &Output) -> (u64, String) {
    let printed = String::from_utf8_lossy(&output.stdout).lines().count();
    (printed as u64, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn a_wrong_line_is_named_and_what_stands_before_it_is_in_the_queue() {
    let line = Line::without_workers().await;
    let keyed = NewTurn { idempotency_key: Some(name("taken")), ..NewTurn::user("first") };
    line.enqueue(vec![keyed]).await;
    for (instead, says) in [
        (json!({"massage": "a"}), "unknown key \"massage\""),
        (json!({"message": "other", "idempotency_key": "taken"}), "idempotency key taken of turn "),
        (json!({"message": "a", "tool_choice": "required"}), "the turn has no tools"),
        (json!({"message": "x".repeat(300 * 1024)}), "it goes through an object store"),
    ] {
        for wrong in [1, 2, 200, 201, 250] {
            let before = open_turns(&line).await;
            let file = lines(300, wrong, &instead);
            let output = line.turnmill(&["submit", &file.path().to_string_lossy()]).await;
            let (printed, stderr) = said(&output);
            assert_eq!(output.status.code(), Some(2), "{stderr}");
            assert_eq!(open_turns(&line).await - before, wrong as u64 - 1, "{stderr}");
            assert_eq!(printed, wrong as u64 - 1);
            assert!(stderr.contains(&format!("line {wrong}: ")) && stderr.contains(says), "{stderr}");
            let end = match wrong - 1 {
                0 => String::new(),
                1 => "enqueued: line 1; ".to_owned(),
                last => format!("enqueued: lines 1 to {last}; "),
            };
            let end = format!("; {end}not enqueued: line {wrong} and all after it\n");
            assert!(stderr.ends_with(&end), "{stderr}");
        }
    }
}

#[tokio::test]
async fn a_full_queue_is_told_with_what_is_in_it() {
    let line = Line::without_workers().await;
    let file = lines(600, 0, &Value::Null);
    let output = line.turnmill(&["submit", &file.path().to_string_lossy(), "--max-depth", "450"]).await;
    let (printed, stderr) = said(&output);
    assert_eq!((output.status.code(), printed), (Some(5), open_turns(&line).await), "{stderr}");
    assert!(printed >= 250, "{printed} of 450 places taken");
    let end =
        format!("; enqueued: lines 1 to {printed}; not enqueued: line {} and all after it\n", printed + 1);
    assert!(stderr.ends_with(&end), "{stderr}");
}

#[tokio::test]
async fn a_batch_that_ends_half_way_says_so_of_each_turn_and_can_be_repeated() {
    let line = Line::without_workers().await;
    let limited = async |max_depth| Client::builder(line.redis.url()).max_depth(max_depth).connect().await;
    let (small, large) = tokio::join!(limited(300), limited(1000));
    let (small, large) = (small.expect("Redis answers"), large.expect("Redis answers"));
    let turn = |i| small.prepare(NewTurn::user("hi").agent(name(&format!("agent-{i}"))));
    let mut turns: Vec<_> = (0..450).map(turn).collect();
    let error = small.enqueue_prepared(&mut turns).await.expect_err("too many");
    assert_eq!(error.fates.len(), turns.len());
    for (i, fate) in error.fates.iter().enumerate() {
        let expected = match i < 200 {
            true => Fate::Enqueued(Enqueued { turn: turns[i].id(), fresh: true }),
            false => Fate::NotEnqueued,
        };
        assert_eq!(*fate, expected, "turn {i}");
    }
    let told = error.to_string();
    assert!(told.starts_with("200 of 450 turns are in the queue; the others are not: queue full"), "{told}");
    assert!(matches!(*error.source, ClientError::QueueFull { open: 200, limit: 300, .. }));
    assert_eq!(open_turns(&line).await, 200);
    let enqueued = large.enqueue_prepared(&mut turns).await.expect("there is room");
    assert_eq!(ids(enqueued), turns.iter().map(PreparedTurn::id).collect::<Vec<_>>());
    assert_eq!(open_turns(&line).await, 450, "none twice");
}

#[tokio::test]
async fn a_batch_without_an_answer_is_unknown_not_absent() {
    let line = Line::without_workers().await;
    let proxy = Proxy::start(line.redis.address()).await.expect("a port is free");
    let builder = Client::builder(proxy.url()).response_timeout(Duration::from_millis(500));
    let producer = builder.retry_for(Duration::from_secs(2)).connect().await.expect("Redis answers");
    let mut turns: Vec<_> = (0..450).map(|i| producer.prepare(NewTurn::user(format!("{i}")))).collect();
    // The connection stands and the script is known: what is held back below is the answer to the batch, and nothing before it.
    producer.enqueue(NewTurn::user("first")).await.expect("enqueued");
    proxy.hold(Hold::Replies);
    let error = producer.enqueue_prepared(&mut turns).await.expect_err("no answer");
    let expected = [[Fate::Unknown; 200].as_slice(), &[Fate::NotEnqueued; 250]].concat();
    assert_eq!(error.fates, expected, "{error}");
    assert_eq!(error.advice(), Advice::Retry);
    // They are there.
    assert_eq!(open_turns(&line).await, 201);
}

/// The first try is carried out and its answer is lost; the server that answers the later ones refuses them. Who then enqueues
/// the turns again, under other ids, would have them twice.
#[tokio::test]
async fn a_lost_answer_is_not_forgotten_because_a_later_try_is_refused() {
    let (first, second) = (RedisServer::start(), RedisServer::start());
    let proxy = Proxy::start(first.address()).await.expect("a port is free");
    let builder = |url: String| {
        let builder = Client::builder(url).response_timeout(Duration::from_millis(200));
        builder.retry_for(Duration::from_secs(3))
    };
    let producer = builder(proxy.url()).connect().await.expect("Redis answers");
    let direct = builder(first.url()).connect().await.expect("Redis answers");
    let replica = redis::Client::open(second.url()).expect("a URL");
    let mut replica = replica.get_multiplexed_async_connection().await.expect("Redis answers");
    let mut follow = redis::cmd("REPLICAOF");
    follow.arg("127.0.0.1").arg(1);
    let () = follow.query_async(&mut replica).await.expect("it is a replica now");

    producer.enqueue(NewTurn::user("first")).await.expect("enqueued");
    proxy.hold(Hold::Replies);
    let turns = (0..3).map(|i| NewTurn::user(format!("{i}"))).collect();
    let enqueued = tokio::spawn(async move { producer.enqueue_batch(turns).await });
    let deadline = Instant::now() + PATIENCE;
    while direct.lag().await.expect("counts").open_turns < 4 {
        assert!(Instant::now() < deadline, "the first try is not carried out");
    }
    proxy.lead_to(second.address());
    proxy.cut_all();
    proxy.hold(Hold::Nothing);
    let error = enqueued.await.expect("no panic").expect_err("a replica takes no turns");
    assert_eq!(error.fates, [Fate::Unknown; 3], "{error}");
    assert!(error.is_outage() && error.advice() == Advice::Retry, "{error}");
}
