//! The block store on local files, in memory and on S3: the conformance suite, and what only files can do.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use turnmill_tests::block_store_conformance::*;
use turnmill_tests::s3_server::S3Server;
use turnmill_worker::store::{BlockStore, Miss};

/// A folder of its own.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().expect("a temporary folder"))
    }

    fn path(&self) -> PathBuf {
        // Made by whoever opens it first.
        self.0.path().join("made/by-us")
    }
}

impl TestPlace for Folder {
    fn url(&self) -> String {
        format!("file://{}", self.path().display())
    }
}

/// A part of its own of this process's memory, which is there for as long as somebody has it open.
struct Memory {
    url: String,
    _open: Outside,
}

impl Memory {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let url = format!("memory:///place-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Self { _open: Outside::at(&url), url }
    }
}

impl TestPlace for Memory {
    fn url(&self) -> String {
        self.url.clone()
    }
}

/// A prefix of its own in the bucket that [`an_s3_store_conforms`] gives.
struct Prefix(String);

impl Prefix {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let bucket = std::env::var(BUCKET).expect("an_s3_store_conforms runs this test");
        Self(format!("{bucket}/{}", NEXT.fetch_add(1, Ordering::Relaxed)))
    }
}

impl TestPlace for Prefix {
    fn url(&self) -> String {
        self.0.clone()
    }
}

/// The variable that names the bucket to [`Prefix`].
const BUCKET: &str = "TURNMILL_TEST_BUCKET";

mod files {
    use super::*;
    turnmill_tests::block_store_conformance!(Folder::new());
}

mod memory {
    use super::*;
    turnmill_tests::block_store_conformance!(Memory::new());
}

mod s3 {
    use super::*;
    turnmill_tests::block_store_conformance!(
        ignore = "an_s3_store_conforms runs it";
        Prefix::new()
    );
}

/// Clients of S3 are told where it is by the environment, which only a new process can be given: this one runs the
/// suite in another.
#[test]
fn an_s3_store_conforms() {
    let server = S3Server::start();
    let mut suite = Command::new(std::env::current_exe().expect("a running program has a path"));
    suite.args(["block_store::s3::", "--ignored"]).envs(server.env()).env(BUCKET, server.url());
    let output = suite.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains(" 0 passed"), "{said}");
    assert!(server.counters().puts > 0, "nothing was written to it");
}

/// What a worker said about its store, last thing last.
fn listened(worker: &BlockStore) -> Arc<Mutex<Vec<Option<String>>>> {
    let told: Arc<Mutex<Vec<_>>> = Arc::default();
    let sink = told.clone();
    worker.on_trouble(move |trouble| sink.lock().expect("no panic").push(trouble));
    told
}

/// A store that takes no writes, as when a disk is full: nothing is a hit, it is told once, and it ends by itself.
#[tokio::test]
async fn a_failed_write_is_never_a_hit_and_may_be_repeated() {
    let (folder, segments) = (Folder::new(), segments(1, 16));
    let worker = worker_with(&folder, |settings| settings.host_cache_bytes = 1 << 20);
    let told = listened(&worker);
    let failed = || counted("turnmill_store_saves_total{outcome=\"failed\"}");
    let before = failed();
    // A file where a folder should be; permissions do not stop root.
    let in_the_way = folder.path().join("kv");
    std::fs::write(&in_the_way, "").expect("written");
    assert!(worker.check().await.is_ok(), "only this folder is off");
    assert!(segments.iter().all(|segment| worker.save(segment.clone())));
    assert_eq!(worker.saved(&ids(&segments), PATIENCE).await, 0);
    worker.flush(PATIENCE).await;
    assert!(failed() >= before + 4);
    assert!(
        segments
            .iter()
            .all(|segment| !worker.is_saved(&segment.segment.id) && !worker.is_cached(&segment.segment.id))
    );
    {
        let told = told.lock().expect("no panic");
        assert!(matches!(&told[..], [None, Some(trouble)] if trouble.contains("writes of the object store")));
    }
    assert!(worker.fetch(&segments[0].segment).await.is_err());

    std::fs::remove_file(&in_the_way).expect("removed");
    save_all(&worker, &segments).await;
    assert_fetched(&worker, &segments[0]).await;
    assert_eq!(told.lock().expect("no panic").last(), Some(&None));
}

/// While the store cannot be read, turns do not wait for it, and it is tried again by itself.
#[tokio::test]
async fn a_store_that_cannot_be_read_fails_at_once_and_recovers() {
    let (folder, segments) = (Folder::new(), segments(1, 8));
    save_all(&worker(&folder), &segments).await;
    let worker = worker(&folder);
    let told = listened(&worker);
    let (kv, away) = (folder.path().join("kv"), folder.path().join("away"));
    std::fs::rename(&kv, &away).expect("renamed");
    std::fs::write(&kv, "").expect("written");
    for _ in 0..10 {
        assert!(matches!(worker.fetch(&segments[0].segment).await, Err(Miss::Unreachable(_))));
    }
    assert!(
        matches!(told.lock().expect("no panic").last(), Some(Some(trouble)) if trouble.contains("reads of"))
    );
    std::fs::remove_file(&kv).expect("removed");
    std::fs::rename(&away, &kv).expect("renamed");
    let start = Instant::now();
    while let Err(miss) = worker.fetch(&segments[0].segment).await {
        assert!(start.elapsed() < PATIENCE && matches!(miss, Miss::Unreachable(_)), "{miss}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(told.lock().expect("no panic").last(), Some(&None));
    assert_fetched(&worker, &segments[1]).await;
}

/// A disk that hangs: a file that cannot be opened until somebody writes to it.
#[tokio::test]
async fn a_store_that_hangs_is_given_up_in_time() {
    let (folder, segment) = (Folder::new(), segments(1, 4).remove(0));
    let worker = worker_with(&folder, |settings| settings.timeout = Duration::from_millis(50));
    let pipe = folder.path().join(path(&segment.segment.id));
    std::fs::create_dir_all(pipe.parent().expect("it has a folder")).expect("made");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
    let misses = || counted("turnmill_store_misses_total{reason=\"timed_out\"}");
    let (before, optimistic) = (misses(), worker.fetch_cost());
    assert!(matches!(worker.fetch(&segment.segment).await, Err(Miss::TimedOut)));
    assert!(misses() > before);
    assert!(worker.fetch_cost().latency > optimistic.latency);
    // Lets the thread go that waits for it.
    std::fs::OpenOptions::new().write(true).open(&pipe).expect("a reader waits");
}

/// What cannot be opened or does not take a probe says so in a sentence.
#[tokio::test]
async fn a_check_says_what_the_store_refused() {
    let folder = Folder::new();
    let worker = worker(&folder);
    std::fs::write(folder.path().join("kv-probe"), "").expect("written");
    let error = worker.check().await.expect_err("a file is in the way").to_string();
    assert!(error.contains("kv-probe/q/") && error.contains("it cannot be written"), "{error}");
}
