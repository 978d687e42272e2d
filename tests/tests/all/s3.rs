//! The S3 server of the tests does to the client that workers use what S3 does, and fails it as it is told to.

use std::path::Path as File;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload, PutResult,
    RetryConfig, WriteMultipart,
};
use tokio::process::Command;
use tokio::time::timeout;
use turnmill_schema::Outcome;
use turnmill_tests::line::Line;
use turnmill_tests::s3_server::{Faults, MAX_KEY_BYTES, S3Server};
use turnmill_tests::worker::Worker;
use turnmill_tests::{PATIENCE, program};

/// A client that asks once and then `retries` times more, soon.
fn client(server: &S3Server, retries: usize) -> AmazonS3 {
    let soon = Duration::from_millis(1);
    let backoff = BackoffConfig { init_backoff: soon, max_backoff: 10 * soon, base: 2.0 };
    let retry = RetryConfig { backoff, max_retries: retries, retry_timeout: PATIENCE };
    server.client().with_retry(retry).build().expect("the client has all it needs")
}

/// A key under the prefix of [`S3Server::url`].
fn key(name: &str) -> Path {
    Path::from(format!("t/{name}"))
}

/// Bytes of which no two halves are equal.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

async fn put(store: &AmazonS3, name: &str, content: &[u8]) {
    store.put(&key(name), content.to_vec().into()).await.expect("stored");
}

async fn get(store: &AmazonS3, name: &str) -> object_store::Result<Vec<u8>> {
    store.get(&key(name)).await?.bytes().await.map(Into::into)
}

async fn list(store: &AmazonS3, prefix: &str) -> Vec<String> {
    let listed = store.list(Some(&key(prefix))).map_ok(|object| object.location.to_string());
    let mut listed: Vec<String> = listed.try_collect().await.expect("a list");
    listed.sort();
    listed
}

#[tokio::test]
async fn objects_are_put_read_listed_and_deleted() {
    let server = S3Server::start();
    let store = client(&server, 0);
    for (name, length) in [("a/one", 0), ("a/two", 1), ("a/b/three", 100_000), ("c", 3_000_000)] {
        put(&store, name, &bytes(length)).await;
        assert_eq!(get(&store, name).await.expect("it is there"), bytes(length));
        assert_eq!(store.head(&key(name)).await.expect("it is there").size, length as u64);
        assert_eq!(std::fs::read(server.folder().join(name)).expect("a file"), bytes(length));
    }
    assert_eq!(list(&store, "a").await, ["t/a/b/three", "t/a/one", "t/a/two"]);
    let listed = store.list_with_delimiter(Some(&key("a"))).await.expect("a list");
    assert_eq!((listed.objects.len(), listed.common_prefixes), (2, vec![key("a/b")]));

    store.delete(&key("c")).await.expect("deleted");
    assert!(matches!(get(&store, "c").await, Err(Error::NotFound { .. })));
    assert!(matches!(store.head(&key("c")).await, Err(Error::NotFound { .. })));
    let gone = stream::iter(["a/one", "a/b/three", "never"].map(|name| Ok(key(name)))).boxed();
    let deleted: Vec<Path> = store.delete_stream(gone).try_collect().await.expect("deleted");
    assert_eq!((deleted.len(), list(&store, "").await), (3, vec!["t/a/two".to_owned()]));

    let counters = server.counters();
    assert_eq!((counters.puts, counters.gets, counters.refused_puts, counters.spoiled), (4, 5, 0, 0));
    assert_eq!(counters.bytes_out, 3_100_001);
    assert!(counters.bytes_in > 3_100_001, "the request that deletes has a body too: {counters:?}");
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let server = S3Server::start();
    let store = client(&server, 0);
    let folder = server.folder().join("many");
    std::fs::create_dir_all(&folder).expect("made");
    let names: Vec<String> = (0..2500).map(|number| format!("{number:04}")).collect();
    for name in &names {
        std::fs::write(folder.join(name), name).expect("written");
    }
    let wanted: Vec<String> = names.iter().map(|name| format!("t/many/{name}")).collect();
    assert_eq!(list(&store, "many").await, wanted);
    let after = store.list_with_offset(Some(&key("many")), &key("many/1200")).count().await;
    assert_eq!(after, 1299);
}

#[tokio::test]
async fn what_was_written_behind_its_back_is_what_is_read() {
    let server = S3Server::start();
    let store = client(&server, 0);
    put(&store, "a", b"as it was").await;
    std::fs::write(server.folder().join("a"), b"tampered with").expect("written");
    assert_eq!(get(&store, "a").await.expect("it is there"), b"tampered with");
    std::fs::remove_file(server.folder().join("a")).expect("removed");
    assert!(matches!(get(&store, "a").await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn of_many_conditional_puts_at_once_exactly_one_wins() {
    let server = S3Server::start();
    let store = client(&server, 0);
    for round in 0..20 {
        let name = format!("once/{round}");
        let create = |number: u8| {
            let (store, at) = (store.clone(), key(&name));
            tokio::spawn(async move {
                let payload = PutPayload::from(vec![number; 10_000]);
                store.put_opts(&at, payload, PutMode::Create.into()).await
            })
        };
        let puts: Vec<_> = (0..8).map(create).collect();
        let mut results: Vec<object_store::Result<PutResult>> = Vec::new();
        for put in puts {
            results.push(put.await.expect("no panic"));
        }
        let winners: Vec<usize> = (0..8).filter(|at| results[*at].is_ok()).collect();
        let [winner] = winners[..] else { panic!("{winners:?} won: {results:?}") };
        let refused = |result: &&object_store::Result<_>| matches!(result, Err(Error::AlreadyExists { .. }));
        assert_eq!(results.iter().filter(refused).count(), 7, "{results:?}");
        assert_eq!(get(&store, &name).await.expect("it is there"), vec![winner as u8; 10_000]);
    }
    assert_eq!(server.counters().refused_puts, 140);
    // A put without conditions replaces it, and one that names what it replaces does so once.
    let at = key("once/0");
    let old = store.put(&at, "new".into()).await.expect("replaced");
    let update = |old: PutResult| store.put_opts(&at, "newer".into(), PutMode::Update(old.into()).into());
    update(old.clone()).await.expect("replaced");
    assert!(matches!(update(old).await, Err(Error::Precondition { .. })));
    assert_eq!(get(&store, "once/0").await.expect("it is there"), b"newer");
}

#[tokio::test]
async fn a_range_is_what_is_sent() {
    let server = S3Server::start();
    let store = client(&server, 0);
    put(&store, "a", &bytes(100_000)).await;
    for range in [0..1, 0..100_000, 50_000..50_001, 4_095..8_193, 99_000..100_000] {
        let read = store.get_range(&key("a"), range.clone()).await.expect("a range");
        assert_eq!(read, bytes(100_000)[range.start as usize..range.end as usize]);
    }
    assert_eq!(server.counters().bytes_out, 1 + 100_000 + 1 + 4_098 + 1_000);
    store.get_range(&key("a"), 100_000..100_001).await.expect_err("there is nothing after its end");
}

#[tokio::test]
async fn an_object_may_come_in_parts() {
    let server = S3Server::start();
    let store = client(&server, 0);
    let content = bytes(11 * 1024 * 1024);
    let mut upload = WriteMultipart::new(store.put_multipart(&key("a")).await.expect("begun"));
    upload.write(&content);
    upload.finish().await.expect("stored");
    assert_eq!(get(&store, "a").await.expect("it is there"), content);
    assert_eq!(server.counters().puts, 3);

    let mut upload = store.put_multipart(&key("b")).await.expect("begun");
    upload.put_part(content.into()).await.expect("stored");
    upload.abort().await.expect("given up");
    assert_eq!(list(&store, "").await, ["t/a"]);
}

#[tokio::test]
async fn keys_may_be_as_long_as_is_said() {
    let server = S3Server::start();
    let store = client(&server, 0);
    let longest = "k".repeat(MAX_KEY_BYTES - "t/".len());
    put(&store, &longest, b"a").await;
    put(&store, &longest, b"b").await;
    assert_eq!(get(&store, &longest).await.expect("it is there"), b"b");
}

#[tokio::test]
async fn who_signs_with_another_key_or_not_at_all_is_refused() {
    let server = S3Server::start();
    put(&client(&server, 0), "a", b"mine").await;
    let wrong = server.client().with_secret_access_key("guessed").build().expect("a client");
    let nobody = server.client().with_skip_signature(true).build().expect("a client");
    for store in [wrong, nobody] {
        let error = get(&store, "a").await.expect_err("refused");
        assert!(matches!(error, Error::PermissionDenied { .. }), "{error}");
        let error = store.put(&key("b"), "x".into()).await.expect_err("refused");
        assert!(matches!(error, Error::PermissionDenied { .. }), "{error}");
    }
    assert!(!server.folder().join("b").exists());
}

#[tokio::test]
async fn a_slow_store_is_slow_until_it_is_not() {
    let server = S3Server::start();
    let store = client(&server, 0);
    put(&store, "a", b"x").await;
    server.faults(&Faults { slow_ms: 300, ..Faults::default() });
    let began = Instant::now();
    get(&store, "a").await.expect("it is there");
    assert!(began.elapsed() >= Duration::from_millis(300));
    // So slow that only a server that forgot it lets this end.
    server.faults(&Faults { slow_ms: 3_600_000, ..Faults::default() });
    server.faults(&Faults::default());
    timeout(PATIENCE, get(&store, "a")).await.expect("it is fast again").expect("it is there");
    assert_eq!(server.counters().spoiled, 0);
}

#[tokio::test]
async fn errors_pass_where_the_client_tries_again_and_show_where_it_does_not() {
    let server = S3Server::start();
    let patient = client(&server, 30);
    server.faults(&Faults { seed: 7, errors_percent: 50, ..Faults::default() });
    for number in 0..20 {
        let name = number.to_string();
        put(&patient, &name, name.as_bytes()).await;
        assert_eq!(get(&patient, &name).await.expect("it is there"), name.as_bytes());
    }
    let counters = server.counters();
    assert!(counters.spoiled > 10 && counters.gets + counters.puts == 40 + counters.spoiled, "{counters:?}");

    server.faults(&Faults { errors_percent: 100, ..Faults::default() });
    let error = get(&client(&server, 2), "0").await.expect_err("all are spoiled");
    assert!(matches!(error, Error::Generic { .. }) && error.to_string().contains("InternalError"), "{error}");
    let impatient = client(&server, 0).put(&key("new"), "x".into()).await;
    impatient.expect_err("all are spoiled");
    assert!(!server.folder().join("new").exists());
    assert_eq!((server.counters().gets, server.counters().puts), (counters.gets + 3, counters.puts + 1));
}

#[tokio::test]
async fn an_object_that_ends_early_is_an_error_and_never_a_short_success() {
    let server = S3Server::start();
    let content = bytes(300_000);
    put(&client(&server, 0), "a", &content).await;
    server.faults(&Faults { truncate_percent: 100, ..Faults::default() });
    let once = client(&server, 0);
    for _ in 0..50 {
        get(&once, "a").await.expect_err("it ends early");
        once.get_range(&key("a"), 1_000..200_000).await.expect_err("it ends early");
    }
    let counters = server.counters();
    assert!(counters.spoiled == 100 && counters.bytes_out > 1_000_000, "{counters:?}");
    // The rest is asked for, until all of it is there.
    server.faults(&Faults { seed: 1, truncate_percent: 50, ..Faults::default() });
    let patient = client(&server, 100);
    for _ in 0..20 {
        assert!(get(&patient, "a").await.expect("in the end") == content);
    }
    assert!(server.counters().spoiled > counters.spoiled);
}

#[tokio::test]
async fn an_object_that_arrives_short_is_for_its_reader_to_notice() {
    let server = S3Server::start();
    let store = client(&server, 0);
    let content = bytes(300_000);
    put(&store, "a", &content).await;
    server.faults(&Faults { shorten_percent: 100, ..Faults::default() });
    for _ in 0..20 {
        // The client has no way to tell: this is what checksums in objects are for.
        let read = get(&store, "a").await.expect("short, and well-formed");
        assert!(read.len() < content.len() && content.starts_with(&read));
    }
    assert_eq!(store.head(&key("a")).await.expect("it is there").size, 300_000);
    server.faults(&Faults::default());
    assert_eq!(get(&store, "a").await.expect("it is there"), content);
}

#[tokio::test]
async fn waiting_for_a_store_that_hangs_ends_with_the_clients_patience() {
    let server = S3Server::start();
    let short = ClientOptions::new().with_timeout(Duration::from_millis(300)).with_allow_http(true);
    let once = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let store = server.client().with_client_options(short).with_retry(once).build().expect("a client");
    put(&store, "a", b"x").await;
    server.faults(&Faults { hang: true, ..Faults::default() });
    let error =
        timeout(PATIENCE, get(&store, "a")).await.expect("the client gives up").expect_err("no answer");
    assert!(matches!(error, Error::Generic { .. }), "{error}");
    let put = timeout(PATIENCE, store.put(&key("b"), "x".into())).await.expect("the client gives up");
    put.expect_err("no answer");
    assert!(!server.folder().join("b").exists());
    assert_eq!(server.counters().spoiled, 2, "it still counts, and takes orders");
    server.faults(&Faults::default());
    assert_eq!(get(&store, "a").await.expect("it is there"), b"x");
}

#[tokio::test]
async fn a_bucket_that_is_gone_and_a_disk_that_is_full_say_so() {
    let server = S3Server::start();
    let store = client(&server, 0);
    put(&store, "a", b"x").await;
    server.faults(&Faults { gone: true, ..Faults::default() });
    let gone = |error: Error| {
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    };
    let error = get(&store, "a").await.expect_err("gone");
    assert!(std::error::Error::source(&error).is_some_and(|why| why.to_string().contains("NoSuchBucket")));
    gone(error);
    gone(store.head(&key("a")).await.expect_err("gone"));
    gone(store.put(&key("a"), "x".into()).await.expect_err("gone"));
    store.list(None).try_collect::<Vec<_>>().await.expect_err("gone");

    server.faults(&Faults { full: true, ..Faults::default() });
    let error = store.put(&key("b"), "x".into()).await.expect_err("full");
    assert!(matches!(error, Error::Generic { .. }) && error.to_string().contains("507"), "{error}");
    assert_eq!(get(&store, "a").await.expect("reads go on"), b"x");
    store.delete(&key("a")).await.expect("so does deletion");
}

#[tokio::test]
async fn what_is_stored_outlives_the_server() {
    let mut server = S3Server::start();
    let store = client(&server, 0);
    put(&store, "a", &bytes(100_000)).await;
    server.kill();
    get(&store, "a").await.expect_err("nobody is there");
    server.restart();
    assert_eq!(get(&client(&server, 0), "a").await.expect("it is there"), bytes(100_000));
}

/// `turnmill submit` of one turn whose prompt is short and whose envelope is too large for Redis.
async fn submit_large(line: &Line, server: &S3Server) -> turnmill_schema::TurnId {
    let stop: Vec<String> = (0..16).map(|number| format!("{number}{}", "x".repeat(20 * 1024))).collect();
    let turn = serde_json::json!({
        "message": "hi", "stop": stop, "temperature": 0.0, "max_tokens": 2, "ignore_eos": true,
    });
    let file = tempfile::NamedTempFile::new().expect("the temporary directory is writable");
    std::fs::write(file.path(), format!("{turn}\n")).expect("written");
    let mut command = Command::new(program("turnmill"));
    command.arg("submit").arg(file.path()).args(["--store", &server.url()]);
    command.env("TURNMILL_REDIS_URL", line.redis.url()).envs(server.env());
    let output = timeout(PATIENCE, command.kill_on_drop(true).output()).await;
    let output = output.expect("the command ends").expect("the command can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("the turn's id")
}

/// How many payloads of the queue are stored.
fn payloads(store: &File) -> usize {
    std::fs::read_dir(store.join("payloads/default")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn a_large_turn_goes_from_the_command_to_a_worker_over_s3_and_leaves_no_object() {
    let (line, server) = (Line::start().await, S3Server::start());
    let turn = submit_large(&line, &server).await;
    assert_eq!(payloads(&server.folder()), 1);
    let variables = server.env();
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let _worker = Worker::launch_with(&line.redis.url(), &["--store", &server.url()], &variables);
    let result = line.wait(turn).await;
    assert_eq!((result.outcome, result.tokens.len()), (Outcome::Completed, 2), "{:?}", result.error);
    let deadline = Instant::now() + PATIENCE;
    while payloads(&server.folder()) > 0 {
        assert!(Instant::now() < deadline, "the completed turn's object stays");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!((server.counters().puts, server.counters().gets), (1, 1));
}
