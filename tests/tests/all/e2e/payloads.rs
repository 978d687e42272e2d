//! Turns too large for Redis: run by a worker that has the store, ended with a sentence by one that has not.

use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use turnmill::{NewTurn, Producer, ProducerSettings};
use turnmill_schema::{Outcome, Sampling};
use turnmill_tests::PATIENCE;
use turnmill_tests::line::{Line, exactly, name};

/// A turn whose prompt is short and whose envelope is large.
fn large() -> NewTurn {
    let stop = (0..16).map(|i| format!("{i}{}", "x".repeat(20 * 1024))).collect();
    NewTurn::user("hi").sampling(Sampling { stop, ..exactly(2) })
}

fn objects(store: &Path) -> usize {
    std::fs::read_dir(store.join("payloads/default")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn a_large_turn_runs_where_the_store_is_and_leaves_no_object() {
    let line = Line::start().await;
    let store = TempDir::new().expect("the temporary directory is writable");
    let url = format!("file://{}", store.path().display());
    let mut settings = ProducerSettings::new(name("default"), name("default"));
    settings.store = Some(url.clone());
    let producer = Producer::connect(&line.redis.url(), settings).await.expect("Redis answers");

    let stranded = producer.enqueue(large()).await.expect("enqueued");
    {
        let _worker = line.worker(&[]);
        let result = line.wait(stranded).await;
        let error = result.error.unwrap_or_default();
        assert!(result.outcome == Outcome::Failed && error.contains("TURNMILL_STORE"), "{error}");
        assert_eq!(objects(store.path()), 1, "a failed turn's object stays for a replay");
    }

    let turn = producer.enqueue(large()).await.expect("enqueued");
    assert_eq!(objects(store.path()), 2);
    let _worker = line.worker(&["--store", &url]);
    let result = line.wait(turn).await;
    assert_eq!((result.outcome, result.tokens.len()), (Outcome::Completed, 2), "{:?}", result.error);
    let deadline = Instant::now() + PATIENCE;
    while objects(store.path()) > 1 {
        assert!(Instant::now() < deadline, "the completed turn's object stays");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
