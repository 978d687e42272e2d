//! Turns too large for Redis, from the producer's library through a real Redis and a store of files to a worker's
//! adapters.

use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use redis::AsyncCommands;
use tempfile::TempDir;
use turnmill_client::{
    Advice, Cancelled, Client, ClientError, Enqueued, Fate, NewTurn, PreparedTurn, TurnId,
};
use turnmill_schema::envelope::{MAX_ENVELOPE_BYTES, MAX_INLINE_BYTES};
use turnmill_schema::keys::Keys;
use turnmill_schema::{Outcome, PayloadReference, StoredTurn, Turn};
use turnmill_tests::broker_conformance::{claim, ending};
use turnmill_tests::line::{ids, name};
use turnmill_tests::program;
use turnmill_tests::redis_server::RedisServer;
use turnmill_tests::s3_server::{Faults, S3Server};
use turnmill_worker::broker::Broker;
use turnmill_worker::broker::redis::{BrokerSettings, RedisBroker};
use turnmill_worker::config::{RedisUrl, StoreUrl};
use turnmill_worker::store::{Payloads, StoreError};

const MIB: usize = 1024 * 1024;

/// A queue and a store of files.
struct Place {
    redis: RedisServer,
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { redis: RedisServer::start(), folder: TempDir::new().expect("a temporary folder") }
    }

    /// A folder that is made by whoever opens it first.
    fn store(&self) -> PathBuf {
        self.folder.path().join("made/by-us")
    }

    fn url(&self) -> String {
        format!("file://{}", self.store().display())
    }

    async fn producer(&self, store: Option<String>) -> Client {
        let builder = Client::builder(self.redis.url()).queue(name("q")).tenant(name("t"));
        let builder = match store {
            Some(store) => builder.store(store),
            None => builder,
        };
        builder.connect().await.expect("Redis answers and the store opens")
    }

    async fn broker(&self) -> RedisBroker {
        let settings = BrokerSettings {
            redis: RedisUrl::from(self.redis.url()).into(),
            queue: name("q"),
            shards: NonZeroU16::MIN,
            worker: "w".into(),
            lease_ms: 60_000,
            max_attempts: 3,
            result_ttl_ms: 60_000,
            outcome_ttl_ms: 60_000,
            keep_stream_ms: 10_000,
            retained_bytes: 1 << 30,
            dead_bytes: 1 << 30,
            tenant_max_running: 0,
            max_continues: 0,
        };
        RedisBroker::connect(settings).await.expect("the server is suitable")
    }

    fn payloads(&self) -> Payloads {
        Payloads::open(&StoreUrl::from(self.url()), &name("q")).expect("the store opens")
    }

    /// Enqueues a turn of `bytes` and some; the turn, and the reference that a worker is handed for it.
    async fn enqueue_large(&self, bytes: usize) -> (Turn, PayloadReference) {
        let producer = self.producer(Some(self.url())).await;
        let mut prepared = producer.prepare(NewTurn::user("x".repeat(bytes)).agent(name("a")));
        producer.enqueue_prepared(std::slice::from_mut(&mut prepared)).await.expect("enqueued");
        let turn = prepared.turn().clone();
        match claim(&self.broker().await).await.turn {
            Ok(StoredTurn::Reference(reference)) => (turn, reference),
            other => panic!("no reference: {other:?}"),
        }
    }

    fn file(&self, reference: &PayloadReference) -> PathBuf {
        self.store().join(reference.path(&name("q")))
    }

    async fn connection(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(self.redis.url()).expect("a URL");
        client.get_multiplexed_async_connection().await.expect("Redis answers")
    }
}

/// Every file under `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = folder.read_dir() else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("a folder can be read").path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn a_large_turn_goes_by_reference_and_arrives_as_it_was_sent() {
    let place = Place::new();
    let (turn, reference) = place.enqueue_large(MIB).await;
    assert_eq!(files(&place.store()), [place.file(&reference)]);
    let stored: Vec<u8> = place
        .connection()
        .await
        .hget(Keys::new(&name("q"), 0).turn(turn.id), "envelope")
        .await
        .expect("HGET");
    assert!(stored.len() < 256, "{} bytes are in Redis", stored.len());
    assert_eq!(place.payloads().get(&reference).await.expect("it is there"), turn);
    place.payloads().remove(&reference).await.expect("removed");
    assert_eq!(files(&place.store()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn what_fits_stays_in_redis_and_batches_may_hold_both() {
    let place = Place::new();
    let producer = place.producer(Some(place.url())).await;
    let (small, large) = (|| NewTurn::user("small"), || NewTurn::user("x".repeat(MAX_INLINE_BYTES)));
    let mut turns = [small(), large(), small(), large()].map(|turn| producer.prepare(turn.agent(name("a"))));
    let enqueued = producer.enqueue_prepared(&mut turns).await.expect("enqueued");
    assert_eq!(ids(enqueued), turns.each_ref().map(PreparedTurn::id));
    assert_eq!(files(&place.store()).len(), 2);
    for turn in turns.iter().map(PreparedTurn::turn) {
        let key = Keys::new(&name("q"), 0).turn(turn.id);
        let stored: Vec<u8> = place.connection().await.hget(key, "envelope").await.expect("HGET");
        let arrived = match StoredTurn::decode(&stored).expect("readable") {
            StoredTurn::Inline(turn) => *turn,
            StoredTurn::Reference(reference) => {
                assert_eq!(reference.turn, turn.id);
                place.payloads().get(&reference).await.expect("it is there")
            }
        };
        assert_eq!(&arrived, turn);
    }
}

/// Redis serves nobody else during a call: turns are weighed, and not only counted.
#[tokio::test]
async fn a_call_takes_a_mebibyte_of_turns() {
    let place = Place::new();
    let producer = place.producer(None).await;
    let turns = |count| (0..count).map(|_| NewTurn::user("x".repeat(200_000))).collect::<Vec<_>>();
    let calls = async || {
        let mut redis = place.connection().await;
        let stats = redis::cmd("INFO").arg("commandstats").query_async::<String>(&mut redis).await;
        let stats = stats.expect("INFO");
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        calls.and_then(|calls| calls.split(',').next()?.parse::<u64>().ok()).expect("steps were taken")
    };
    // The first call of a step may count twice.
    producer.enqueue_batch(turns(1)).await.expect("enqueued");
    let before = calls().await;
    producer.enqueue_batch(turns(12)).await.expect("enqueued");
    assert_eq!(calls().await - before, 3, "five fit into a call");
}

#[tokio::test]
async fn without_a_store_and_over_the_hard_limit_a_turn_is_refused_and_nothing_is_written() {
    let place = Place::new();
    let large = || NewTurn::user("x".repeat(MIB));
    let error = place.producer(None).await.enqueue(large()).await.expect_err("no store");
    assert!(matches!(error, ClientError::NoStore { .. }) && error.advice() == Advice::Reject, "{error}");
    assert!(["262144", "none is named"].iter().all(|part| error.to_string().contains(part)), "{error}");

    let producer = place.producer(Some(place.url())).await;
    let huge = NewTurn::user("x".repeat(MAX_ENVELOPE_BYTES));
    let error = producer.enqueue_batch(vec![large(), huge]).await.expect_err("too large");
    assert!(matches!(*error.source, ClientError::Envelope(_)) && error.advice() == Advice::Reject, "{error}");
    assert_eq!((error.place, &*error.fates), (Some(1), &[Fate::NotEnqueued; 2][..]));
    assert!(error.to_string().contains("at most 16777216 are allowed"), "{error}");

    assert_eq!(files(&place.store()), Vec::<PathBuf>::new());
    let keys: Vec<String> = place.connection().await.keys("*").await.expect("KEYS");
    assert_eq!(keys, Vec::<String>::new());
}

#[tokio::test]
async fn a_store_that_cannot_be_written_to_enqueues_nothing() {
    let place = Place::new();
    let producer = place.producer(Some(place.url())).await;
    // A file where a folder should be.
    std::fs::write(place.store().join("payloads"), "").expect("written");
    let error = producer.enqueue(NewTurn::user("x".repeat(MIB))).await.expect_err("it cannot be stored");
    assert!(matches!(error, ClientError::Store { .. }) && error.advice() == Advice::Retry, "{error}");
    let keys: Vec<String> = place.connection().await.keys("*").await.expect("KEYS");
    assert_eq!(keys, Vec::<String>::new());
}

#[tokio::test]
async fn a_flipped_byte_or_a_cut_is_an_error_that_names_the_object_and_never_a_turn() {
    let place = Place::new();
    let (turn, reference) = place.enqueue_large(MIB).await;
    let (file, path) = (place.file(&reference), reference.path(&name("q")));
    let whole = std::fs::read(&file).expect("readable");
    for at in [0, 1, whole.len() / 2, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        for damaged in [flipped, whole[..at].to_vec()] {
            std::fs::write(&file, damaged).expect("written");
            let error = place.payloads().get(&reference).await.expect_err("damaged");
            assert!(matches!(error, StoreError::Damaged { .. }) && !error.may_pass(), "{error}");
            assert!(error.to_string().contains(&path), "{error}");
        }
    }
    // Enqueueing it again writes the object again.
    let producer = place.producer(Some(place.url())).await;
    let again = producer.enqueue_prepared(&mut [turn.clone().into()]).await.expect("known");
    assert_eq!(again, [Enqueued { turn: turn.id, fresh: true }]);
    assert_eq!(place.payloads().get(&reference).await.expect("whole again"), turn);
}

#[tokio::test]
async fn an_object_that_is_gone_is_named() {
    let place = Place::new();
    let (_, reference) = place.enqueue_large(MIB).await;
    std::fs::remove_file(place.file(&reference)).expect("removed");
    let error = place.payloads().get(&reference).await.expect_err("gone");
    assert!(matches!(error, StoreError::Missing { .. }) && !error.may_pass(), "{error}");
    assert!(error.to_string().contains(&reference.path(&name("q"))), "{error}");
}

#[tokio::test]
async fn enqueueing_again_under_an_idempotency_key_leaves_one_object() {
    let place = Place::new();
    let producer = place.producer(Some(place.url())).await;
    let keyed = || NewTurn { idempotency_key: Some(name("k")), ..NewTurn::user("x".repeat(MIB)) };
    let first = producer.enqueue(keyed()).await.expect("enqueued").turn;
    let [object] = &files(&place.store())[..] else { panic!("not one object") };
    assert!(object.display().to_string().contains(&first.to_string()));
    assert_eq!(producer.enqueue(keyed()).await.expect("known"), Enqueued { turn: first, fresh: false });
    assert_eq!(&files(&place.store()), std::slice::from_ref(object));
}

#[tokio::test]
async fn the_command_takes_a_large_line_where_a_store_is_named() {
    let place = Place::new();
    let file = place.folder.path().join("turns.jsonl");
    // Escaped sixfold, the line is longer than the turn may be.
    let line = format!("{{\"message\": \"{}\"}}\n", "\\u0078".repeat(MAX_ENVELOPE_BYTES / 4));
    std::fs::write(&file, line).expect("written");
    let submit = |store: Option<String>| {
        let mut command = Command::new(program("turnmill"));
        command.arg("submit").arg(&file).env("TURNMILL_REDIS_URL", place.redis.url());
        command.env_remove("TURNMILL_STORE").args(store.map(|url| format!("--store={url}")));
        command.output().expect("the command runs")
    };
    // The words that a worker knows stand for no place of the producers'.
    for none in [None, Some("none".into()), Some("auto".into())] {
        let refused = submit(none);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(2) && said.contains("--store"), "{said}");
    }
    let taken = submit(Some(place.url()));
    assert_eq!((taken.status.code(), String::from_utf8_lossy(&taken.stderr).as_ref()), (Some(0), ""));
    assert_eq!(files(&place.store()).len(), 1);
    let wrong = submit(Some("/var/lib/turnmill".into()));
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert!(wrong.status.code() == Some(2) && said.contains("file:///var/lib/turnmill"), "{said}");
}

/// An operator ends turns without a worker. Their objects go with them, and nobody else's.
#[tokio::test]
async fn cancelling_and_purging_remove_the_objects_of_large_turns() {
    let place = Place::new();
    let producer = place.producer(Some(place.url())).await;
    let large = |agent: &str| producer.prepare(NewTurn::user("x".repeat(MIB)).agent(name(agent)));
    let mut turns = ["dead", "cancelled", "blind", "stays"].map(large);
    let [dead, cancelled, blind, stays] = turns.each_ref().map(PreparedTurn::id);
    producer.enqueue_prepared(&mut turns[..1]).await.expect("enqueued");
    let broker = place.broker().await;
    broker.finish(&claim(&broker).await.lease, &ending(0, Outcome::Failed)).await.expect("it failed");
    producer.enqueue_prepared(&mut turns[1..]).await.expect("enqueued");
    let has = |turn: TurnId| {
        let id = turn.to_string();
        files(&place.store()).iter().any(|file| file.display().to_string().contains(&id))
    };
    assert!([dead, cancelled, blind, stays].into_iter().all(has), "a failed turn's object is needed");

    let operator = producer.operate();
    for _ in 0..2 {
        let ended = operator.client().cancel(cancelled).await.expect("answered");
        assert!(matches!(ended, Cancelled::Cancelled | Cancelled::Ended(Outcome::Cancelled)), "{ended:?}");
        assert!(!has(cancelled));
    }
    let letters = operator.newest_dead_letters(9).await.expect("answered");
    assert_eq!(operator.purge(&letters).await.expect("answered"), 1);
    let without_store = place.producer(None).await;
    assert_eq!(without_store.cancel(blind).await.expect("answered"), Cancelled::Cancelled);
    assert_eq!([dead, cancelled, blind, stays].map(has), [false, false, true, true]);
}

/// A store that does not work is told in a sentence, and soon: left alone, its client tries for three minutes.
#[tokio::test]
async fn the_command_says_that_the_store_does_not_answer() {
    let (place, mut server) = (Place::new(), S3Server::start());
    let file = place.folder.path().join("turns.jsonl");
    std::fs::write(&file, format!("{{\"message\": \"{}\"}}\n", "x".repeat(MAX_INLINE_BYTES)))
        .expect("written");
    let fault = |change: fn(&mut Faults)| {
        let mut faults = Faults::default();
        change(&mut faults);
        faults
    };
    // What is told depends on whether the client gives up first, after pauses drawn at random, or time does.
    const LATE: &str = "it gave no good answer within";
    let faults = [
        (Some(fault(|faults| faults.hang = true)), [LATE; 2]),
        (Some(fault(|faults| faults.errors_percent = 100)), ["500 Internal Server Error", LATE]),
        (None, ["Connection refused", LATE]),
    ];
    for (fault, reasons) in faults {
        match fault {
            Some(fault) => server.faults(&fault),
            None => server.kill(),
        }
        let start = Instant::now();
        let mut submit = Command::new(program("turnmill"));
        submit.arg("submit").arg(&file).args(["--store", &server.url()]).envs(server.env());
        let refused = submit.env("TURNMILL_REDIS_URL", place.redis.url()).output().expect("the command runs");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(3), "{said}");
        assert!(reasons.iter().any(|reason| said.contains(reason)), "{said}");
        for part in [&*server.url(), "not enqueued: line 1", "check that the store runs"] {
            assert!(said.contains(part) && !said.contains("max_retries"), "{said}");
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    }
    let waiting: u64 =
        redis::cmd("DBSIZE").query_async(&mut place.connection().await).await.expect("answered");
    assert_eq!(waiting, 0, "something was enqueued");
}
