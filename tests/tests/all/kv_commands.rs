//! `turnmill-worker kv`, over a real Redis and a store of files. No model: objects are made as a worker makes them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use turnmill_client::{Client, NewTurn};
use turnmill_schema::envelope::{MAX_INLINE_BYTES, encode};
use turnmill_schema::keys::{FIELD_MANIFEST, Keys};
use turnmill_schema::{AgentId, Digest, Manifest, PayloadReference, TurnId, kv_object};
use turnmill_tests::line::name;
use turnmill_tests::redis_server::RedisServer;
use turnmill_tests::{PATIENCE, command};
use turnmill_worker::broker::redis::{Collector, HoldError, RedisReferences};
use turnmill_worker::config::{KvCodec, KvDtype, RedisUrl};
use turnmill_worker::kv::{BlockShape, Namespace, PrefixHash, Segment, SegmentData, SegmentId};
use turnmill_worker::store::keys::TenantKey;
use turnmill_worker::store::object;

const DAY: Duration = Duration::from_secs(24 * 3600);
const SHAPE: BlockShape =
    BlockShape { layers: 2, block_tokens: 4, kv_heads: 2, head_dim: 8, dtype: KvDtype::F16 };
const HEX_KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// A segment that was stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stored {
    namespace: Namespace,
    last: PrefixHash,
}

/// What a command did.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    fn lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect()
    }

    /// Its last JSON line.
    fn last(&self) -> Value {
        self.lines().pop().unwrap_or_else(|| panic!("it printed nothing: {}", self.err))
    }
}

/// `turnmill-worker` without settings from outside.
fn worker() -> Command {
    command("turnmill-worker").into()
}

/// A queue, and a store of files.
struct Place {
    redis: RedisServer,
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { redis: RedisServer::start(), folder: TempDir::new().expect("a temporary folder") }
    }

    fn store(&self) -> String {
        format!("file://{}", self.folder.path().display())
    }

    /// `turnmill-worker kv` on the queue.
    async fn kv(&self, arguments: &[&str]) -> Ran {
        let mut command = worker();
        command.arg("kv").args(arguments).args(["--queue", "q", "--store", &self.store()]);
        command.args(["--redis-url", &self.redis.url()]).kill_on_drop(true).stdin(Stdio::null());
        let output = tokio::time::timeout(PATIENCE, command.output()).await;
        let output = output.unwrap_or_else(|_| panic!("{arguments:?} does not end")).expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    async fn redis<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> T {
        let client = redis::Client::open(self.redis.url()).expect("a URL");
        let mut connection = client.get_multiplexed_async_connection().await.expect("Redis answers");
        command.query_async(&mut connection).await.expect("the command works")
    }

    /// Stores a segment of two blocks as if a month ago: a first one, or one that comes after its parent.
    fn segment(&self, namespace: u8, parent: Option<Stored>, tokens: u32, key: Option<&TenantKey>) -> Stored {
        let namespace = Namespace::from_bytes([namespace; 32]);
        let parent = parent.map_or(PrefixHash::ROOT, |parent| parent.last);
        let tokens: Vec<u32> = (tokens..tokens + 8).collect();
        let last = parent.after(&namespace, &tokens, SHAPE.block_tokens);
        let id = SegmentId { namespace, parent, last };
        let data = vec![3; 2 * SHAPE.block_bytes()].into();
        let segment = Arc::new(Segment { id, tenant: "t".into(), first_block: 0, tokens });
        let stored = Stored { namespace, last };
        let object = object::encode(&SegmentData { segment, data }, &SHAPE, KvCodec::F16, key);
        self.write(&path_of(stored), &object, 30 * DAY);
        stored
    }

    /// Writes a file of the store as if so long ago.
    fn write(&self, path: &str, bytes: &[u8], age: Duration) {
        let path = self.file(path);
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("made");
        std::fs::write(&path, bytes).expect("written");
        self.touch(&path, age);
    }

    fn touch(&self, file: &Path, age: Duration) {
        let file = std::fs::File::options().write(true).open(file).expect("it is there");
        file.set_modified(SystemTime::now() - age).expect("times can be set");
    }

    fn file(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn has(&self, path: &str) -> bool {
        self.file(path).is_file()
    }

    /// An agent in `shard` whose manifest ends at `segment`.
    async fn agent(&self, shard: u16, agent: &str, segment: Stored) {
        let namespace = Digest(*segment.namespace.as_bytes());
        let manifest = Manifest { namespace, tokens: 8, shared_tokens: 0, last: Digest(segment.last.0) };
        let key = Keys::new(&name("q"), shard).agent(&AgentId::named(&name("t"), &name(agent)));
        let mut set = redis::cmd("HSET");
        set.arg(key).arg("state").arg("idle").arg(FIELD_MANIFEST).arg(encode(&manifest).expect("encodes"));
        self.redis::<()>(&set).await;
    }

    async fn collector(&self) -> Collector {
        let url = RedisUrl::from(self.redis.url());
        RedisReferences::connect(&url.into(), &name("q")).await.expect("Redis is suitable").collector()
    }

    async fn holder(&self) -> Option<String> {
        self.redis(redis::cmd("GET").arg("tm:{q.0}:collector")).await
    }
}

fn path_of(segment: Stored) -> String {
    kv_object::path(&name("q"), &Digest(*segment.namespace.as_bytes()), &Digest(segment.last.0))
}

/// A prompt that two agents share, what each of them has after it, and what nobody has any more.
struct Scene {
    kept: Vec<Stored>,
    garbage: Vec<Stored>,
}

async fn scene(place: &Place) -> Scene {
    let prompt = place.segment(1, None, 0, None);
    let (a, b) = (place.segment(1, Some(prompt), 100, None), place.segment(1, Some(prompt), 200, None));
    let gone = place.segment(1, Some(prompt), 300, None);
    let after_gone = place.segment(1, Some(gone), 400, None);
    let other = place.segment(2, None, 0, None);
    place.agent(0, "a", a).await;
    // Of a shard that the command is not told of.
    place.agent(3, "b", b).await;
    Scene { kept: vec![prompt, a, b], garbage: vec![gone, after_gone, other] }
}

#[tokio::test]
async fn ls_counts_by_namespace_what_is_there_and_who_points_there() {
    let place = Place::new();
    scene(&place).await;
    let ran = place.kv(&["ls", "--json"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let lines = ran.lines();
    let size = std::fs::metadata(place.file(&path_of(place.segment(1, None, 0, None)))).expect("there").len();
    let figures = |line: &Value| json!([line["namespace"], line["objects"], line["bytes"], line["agents"]]);
    let expected = [("01".repeat(32), 5, 2), ("02".repeat(32), 1, 0)];
    let expected =
        expected.map(|(namespace, segments, agents)| json!([namespace, segments, segments * size, agents]));
    assert_eq!(lines[..2].iter().map(figures).collect::<Vec<_>>(), expected);
    let total = &lines[2]["total"];
    assert_eq!((&total["objects"], &total["agents"]), (&json!(6), &json!(2)));
    assert!(total["oldest_ms"].as_u64() > Some(0) && lines.len() == 3, "{}", ran.out);

    let people = place.kv(&["ls"]).await.out;
    let starts: Vec<_> = people.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(starts, ["NAMESPACE", &"01".repeat(8), &"02".repeat(8), "total"], "{people}");
}

#[tokio::test]
async fn ls_without_redis_says_that_it_does_not_know_the_agents() {
    let mut place = Place::new();
    scene(&place).await;
    place.redis.crash();
    let ran = place.kv(&["ls", "--json"]).await;
    assert_eq!((ran.code, &ran.last()["total"]["agents"]), (Some(0), &Value::Null));
    assert!(ran.err.contains("unknown") && ran.err.contains("cannot reach Redis"), "{}", ran.err);
}

#[tokio::test]
async fn verify_finds_a_flipped_byte() {
    let place = Place::new();
    let scene = scene(&place).await;
    let ran = place.kv(&["verify", "--json"]).await;
    assert_eq!((ran.code, &ran.last()["good"]), (Some(0), &json!(6)), "{}", ran.err);
    let path = path_of(scene.kept[1]);
    let mut object = std::fs::read(place.file(&path)).expect("there");
    *object.last_mut().expect("not empty") ^= 0x10;
    place.write(&path, &object, DAY);
    let ran = place.kv(&["verify", "--json", "--parallel", "2"]).await;
    let lines = ran.lines();
    assert_eq!((ran.code, lines.len()), (Some(1), 2), "{}", ran.out);
    assert_eq!((&lines[0]["path"], &lines[0]["reason"]), (&json!(path), &json!("layer_checksum")));
    assert_eq!((&lines[1]["good"], &lines[1]["damaged"]), (&json!(5), &json!({"layer_checksum": 1})));
    let people = place.kv(&["verify"]).await;
    assert!(people.out.contains(&path) && people.out.contains("5 segments are whole"), "{}", people.out);
}

#[tokio::test]
async fn verify_opens_encrypted_segments_with_their_keys() {
    let place = Place::new();
    place.segment(1, None, 0, TenantKey::from_hex(HEX_KEY).as_ref());
    let ran = place.kv(&["verify", "--json"]).await;
    assert_eq!((ran.code, &ran.last()["sealed"]), (Some(1), &json!(1)));
    assert!(ran.err.contains("--kv-keys"), "{}", ran.err);
    let keys = TempDir::new().expect("a temporary folder");
    std::fs::write(keys.path().join("t.key"), HEX_KEY).expect("written");
    let ran = place.kv(&["verify", "--json", "--kv-keys", &keys.path().display().to_string()]).await;
    assert_eq!((ran.code, &ran.last()["good"]), (Some(0), &json!(1)), "{}{}", ran.out, ran.err);
}

#[tokio::test]
async fn gc_removes_garbage_and_nothing_else_and_only_when_told_to() {
    let place = Place::new();
    let scene = scene(&place).await;
    let young = place.segment(1, None, 500, None);
    place.touch(&place.file(&path_of(young)), DAY);
    place.write("kv-damaged/q/old", b"x", 30 * DAY);
    place.write("kv-damaged/q/young", b"x", DAY);
    place.write("kv/q2/other", b"x", 30 * DAY);

    let dry = place.kv(&["gc", "--json"]).await;
    assert_eq!(dry.code, Some(0), "{}", dry.err);
    let report = dry.last();
    assert_eq!((&report["dry_run"], &report["agents"]), (&json!(true), &json!(2)));
    assert_eq!((&report["segments"]["garbage"], &report["segments"]["deleted"]), (&json!(3), &json!(0)));
    assert!(scene.garbage.iter().all(|segment| place.has(&path_of(*segment))), "a dry run removed something");
    assert!(place.has("kv-damaged/q/old"));

    let ran = place.kv(&["gc", "--delete", "--json"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let report = ran.last();
    let counted = |kind: &str, field: &str| report[kind][field].as_u64().expect("a number");
    assert_eq!(
        (counted("segments", "kept"), counted("segments", "deleted"), counted("segments", "failed")),
        (4, 3, 0)
    );
    assert_eq!((counted("damaged", "kept"), counted("damaged", "deleted")), (1, 1));
    assert!(scene.kept.iter().chain([&young]).all(|segment| place.has(&path_of(*segment))), "{}", ran.out);
    assert!(!scene.garbage.iter().any(|segment| place.has(&path_of(*segment))), "{}", ran.out);
    assert!(place.has("kv-damaged/q/young") && !place.has("kv-damaged/q/old") && place.has("kv/q2/other"));
    assert_eq!(place.holder().await, None, "the right was given up");

    let again = place.kv(&["gc", "--delete", "--retention", "0s"]).await;
    assert_eq!(again.code, Some(0), "{}", again.err);
    assert!(!place.has(&path_of(young)) && scene.kept.iter().all(|segment| place.has(&path_of(*segment))));
    assert_eq!(place.kv(&["gc", "--retention", "soon"]).await.code, Some(2));
}

#[tokio::test]
async fn gc_refuses_a_redis_that_knows_no_agents() {
    let place = Place::new();
    let segment = place.segment(1, None, 0, None);
    // Agents of other queues do not count.
    let other = Keys::new(&name("q.1"), 0).agent(&AgentId::named(&name("t"), &name("a")));
    place.redis::<()>(redis::cmd("HSET").arg(other).arg("state").arg("idle")).await;
    let ran = place.kv(&["gc", "--delete", "--retention", "0s"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert!(ran.err.contains("knows no agent of queue q") && ran.err.lines().count() == 1, "{}", ran.err);
    assert!(place.has(&path_of(segment)));
}

#[tokio::test]
async fn gc_refuses_manifests_that_it_cannot_read() {
    let place = Place::new();
    let scene = scene(&place).await;
    let key = Keys::new(&name("q"), 0).agent(&AgentId::named(&name("t"), &name("c")));
    place.redis::<()>(redis::cmd("HSET").arg(key).arg(FIELD_MANIFEST).arg("\u{2}later")).await;
    let ran = place.kv(&["gc", "--delete"]).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("the manifests of 1 agents cannot be read"), "{}", ran.err);
    assert!(scene.garbage.iter().all(|segment| place.has(&path_of(*segment))));
}

#[tokio::test]
async fn a_second_gc_says_who_is_at_it() {
    let place = Place::new();
    let scene = scene(&place).await;
    let second = place.collector().await.hold("first-1:x", place.kv(&["gc", "--delete"])).await;
    let second = second.expect("nobody else");
    assert_eq!((second.code, second.out.as_str()), (Some(3), ""));
    assert!(second.err.contains("first-1:x") && second.err.lines().count() == 1, "{}", second.err);
    assert!(scene.garbage.iter().all(|segment| place.has(&path_of(*segment))));
    assert_eq!(place.kv(&["gc", "--delete"]).await.code, Some(0), "the first is done");
}

#[tokio::test]
async fn the_right_to_collect_is_renewed_and_work_ends_when_it_is_lost() {
    let place = Place::new();
    let held = Duration::from_millis(600);
    let collector = place.collector().await.lasting(held);
    // Far longer than it lasts by itself.
    let work = async {
        tokio::time::sleep(3 * held).await;
        place.holder().await
    };
    assert_eq!(collector.hold("one", work).await.expect("held").as_deref(), Some("one"));
    assert_eq!(place.holder().await, None);

    let work = async {
        place.redis::<()>(redis::cmd("SET").arg("tm:{q.0}:collector").arg("two")).await;
        std::future::pending::<()>().await
    };
    let lost = tokio::time::timeout(PATIENCE, collector.hold("one", work)).await.expect("it ends");
    assert!(matches!(lost, Err(HoldError::Lost)), "{lost:?}");
    assert_eq!(place.holder().await.as_deref(), Some("two"), "another's right is left alone");
}

#[tokio::test]
async fn gc_removes_payloads_that_no_turn_refers_to() {
    let place = Place::new();
    scene(&place).await;
    let builder = Client::builder(place.redis.url()).queue(name("q")).tenant(name("t"));
    let producer = builder.clone().store(place.store()).connect().await.expect("Redis answers");
    let large = || NewTurn::user("x".repeat(MAX_INLINE_BYTES)).agent(name("a"));
    let waiting = producer.enqueue(large()).await.expect("enqueued").turn;
    let replayed = producer.enqueue(large()).await.expect("enqueued").turn;
    let small = producer.enqueue(NewTurn::user("hi").agent(name("a"))).await.expect("enqueued").turn;
    // A replay refers to the object of its letter, which is purged.
    let keys = Keys::new(&name("q"), 0);
    place.redis::<()>(redis::cmd("RENAME").arg(keys.turn(replayed)).arg(keys.turn(TurnId::new(0)))).await;
    // Whoever cancelled this one had no store; a deadline that passes while a turn waits leaves the same.
    let cancelled = producer.enqueue(large()).await.expect("enqueued").turn;
    let blind = builder.connect().await.expect("Redis answers");
    blind.cancel(cancelled).await.expect("cancelled");
    let payloads = place.file("payloads/q");
    let files = std::fs::read_dir(&payloads).expect("there").map(|file| file.expect("readable").path());
    let files: Vec<PathBuf> = files.collect();
    assert_eq!(files.len(), 3);
    files.iter().for_each(|file| place.touch(file, 30 * DAY));
    let orphan = |turn: TurnId| PayloadReference::of(turn, b"x").path(&name("q"));
    let (ended, young) = (orphan(small), orphan(TurnId::new(0)));
    place.write(&ended, b"x", 30 * DAY);
    place.write(&young, b"x", Duration::from_secs(60));
    place.write("payloads/q/README", b"x", 30 * DAY);

    let ran = place.kv(&["gc", "--delete", "--retention", "0s", "--json"]).await;
    let report = ran.last();
    let counted = |field: &str| report["payloads"][field].as_u64().expect("a number");
    assert_eq!((counted("kept"), counted("deleted"), &report["foreign"]), (3, 2, &json!(1)), "{}", ran.out);
    let is_left = |turn: TurnId| {
        let is_its = |file: &&PathBuf| file.display().to_string().contains(&turn.to_string());
        files.iter().find(is_its).expect("it had an object").is_file()
    };
    assert_eq!([waiting, replayed, cancelled].map(is_left), [true, true, false], "two are needed");
    assert!(!place.has(&ended) && place.has(&young) && place.has("payloads/q/README"));
}

#[tokio::test]
async fn without_a_store_there_is_nothing_to_look_at() {
    for command in ["ls", "verify", "gc"] {
        let output = worker().args(["kv", command, "--store", "none"]).output().await.expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("--store or TURNMILL_STORE"), "{said}");
    }
}
