//! Turns too large for Redis. What a worker with the store does is in `s3.rs`; one that has none ends them with a sentence.

use tempfile::TempDir;
use turnmill_client::{Client, NewTurn};
use turnmill_schema::{Outcome, Sampling};
use turnmill_tests::line::{Line, exactly};

#[tokio::test]
async fn a_worker_without_the_store_fails_a_large_turn_and_its_object_stays_for_a_replay() {
    let line = Line::start().await;
    let store = TempDir::new().expect("the temporary directory is writable");
    let builder = Client::builder(line.redis.url()).store(format!("file://{}", store.path().display()));
    let producer = builder.connect().await.expect("Redis answers");
    // Its prompt is short and its envelope is large.
    let stop = (0..16).map(|i| format!("{i}{}", "x".repeat(20 * 1024))).collect();
    let large = NewTurn::user("hi").sampling(Sampling { stop, ..exactly(2) });
    let stranded = producer.enqueue(large).await.expect("enqueued").turn;
    let _worker = line.worker(&[]);
    let result = line.wait(stranded).await;
    let error = result.error.unwrap_or_default();
    assert!(result.outcome == Outcome::Failed && error.contains("TURNMILL_STORE"), "{error}");
    let payloads = std::fs::read_dir(store.path().join("payloads/default"));
    assert_eq!(payloads.map_or(0, Iterator::count), 1);
}
