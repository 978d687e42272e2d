//! What was saved is had again.

use std::time::Duration;

use futures::future::join_all;
use turnmill_worker::store::Miss;

use super::*;

/// Full segments and a short one, from one worker through the store to another.
pub async fn what_one_worker_saved_another_fetches(place: &impl TestPlace) {
    let (one, other, segments) = (worker(place), worker(place), segments(1, 10));
    assert_eq!(segments.iter().map(|segment| segment.segment.tokens.len()).collect::<Vec<_>>(), [64, 64, 32]);
    save_all(&one, &segments).await;
    assert!(
        segments
            .iter()
            .all(|segment| one.is_saved(&segment.segment.id) && !other.is_saved(&segment.segment.id))
    );
    for segment in &segments {
        assert_fetched(&other, segment).await;
        assert!(other.is_saved(&segment.segment.id), "a segment that was fetched need not be saved");
    }
    let cost = other.fetch_cost();
    assert!(cost.latency > Duration::ZERO && cost.bytes_per_second.is_finite(), "{cost:?}");
}

/// Put-if-absent: the first object stays, whatever it is.
pub async fn what_is_there_already_is_not_written_again(place: &impl TestPlace) {
    let (worker, outside, segment) = (worker(place), Outside::of(place), segments(1, 4).remove(0));
    let path = path(&segment.segment.id);
    outside.put(&path, "first").await;
    save_all(&worker, std::slice::from_ref(&segment)).await;
    assert_eq!(outside.get(&path).await.as_deref(), Some(&b"first"[..]));
}

/// Two workers that computed the same segment at the same time.
pub async fn two_writers_of_one_segment_both_succeed(place: &impl TestPlace) {
    let (one, other, outside) = (worker(place), worker(place), Outside::of(place));
    for seed in 0..8 {
        let segments = segments(seed, 4);
        tokio::join!(save_all(&one, &segments), save_all(&other, &segments));
        assert_fetched(&worker(place), &segments[0]).await;
    }
    assert_eq!(outside.list().await.len(), 8);
}

/// What a worker saved or fetched it has at hand, even when the store lost it.
pub async fn the_host_cache_answers_without_the_store(place: &impl TestPlace) {
    let cached = || worker_with(place, |settings| settings.host_cache_bytes = 1 << 20);
    let (one, other, none) = (cached(), cached(), worker(place));
    let (outside, segment) = (Outside::of(place), segments(1, 4).remove(0));
    save_all(&one, std::slice::from_ref(&segment)).await;
    assert!(one.is_cached(&segment.segment.id) && !other.is_cached(&segment.segment.id));
    let fetches = counted("turnmill_store_fetches_total");
    let hits = counted("turnmill_host_cache_hits_total");
    for worker in [&other, &none] {
        assert_fetched(worker, &segment).await;
    }
    assert!(counted("turnmill_store_fetches_total") >= fetches + 2);
    assert!(other.is_cached(&segment.segment.id) && !none.is_cached(&segment.segment.id));
    outside.remove(&path(&segment.segment.id)).await;
    for worker in [&one, &other] {
        assert_fetched(worker, &segment).await;
    }
    assert!(counted("turnmill_host_cache_hits_total") >= hits + 2);
    assert!(matches!(none.fetch(&segment.segment).await, Err(Miss::Absent)));
}

/// More fetches at once than reads are allowed.
pub async fn many_fetches_share_few_reads(place: &impl TestPlace) {
    let segments = segments(1, 96);
    save_all(&worker(place), &segments).await;
    let reader = worker_with(place, |settings| settings.parallel = 2);
    join_all(segments.iter().map(|segment| assert_fetched(&reader, segment))).await;
}

/// What a folder's limit takes is not believed to be stored, and may be saved again.
pub async fn what_a_limit_removes_is_saved_again(place: &impl TestPlace) {
    if !place.url().starts_with("file:") {
        // Buckets have rules of their own.
        return;
    }
    // Two segments, with their folders.
    let worker = worker_with(place, |settings| settings.folder_bytes = Some(62 << 10));
    let [first, second] = [1, 2].map(|seed| segments(seed, 8));
    for segments in [&first, &second, &first] {
        save_all(&worker, segments).await;
    }
    assert!(
        second.iter().all(|segment| !worker.is_saved(&segment.segment.id)),
        "what is gone counts as stored"
    );
    for segment in &first {
        assert_fetched(&worker, segment).await;
    }
    let trimmed = worker.tidy().await.expect("the folder is listed");
    assert_eq!(trimmed.objects as usize, first.len() + second.len());
}

/// `check` says that all is well, and cleans up.
pub async fn a_check_leaves_nothing_behind(place: &impl TestPlace) {
    worker(place).check().await.expect("the store takes, gives and removes");
    assert_eq!(Outside::of(place).list().await, Vec::<String>::new());
}

/// With a key the store holds nothing readable, and who has no key has a miss and harms nothing.
pub async fn a_tenants_key_is_needed_to_read(place: &impl TestPlace) {
    let keys = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(keys.path().join("t.key"), "0123456789abcdef".repeat(4)).expect("written");
    let with_key = || worker_with(place, |settings| settings.keys = Some(keys.path().to_owned()));
    let (outside, segment) = (Outside::of(place), segments(1, 4).remove(0));
    save_all(&with_key(), std::slice::from_ref(&segment)).await;
    let object = outside.get(&path(&segment.segment.id)).await.expect("it is there");
    let shows = |part: &[u8]| object.windows(part.len()).any(|window| window == part);
    let tokens: Vec<u8> = segment.segment.tokens[..8].iter().flat_map(|token| token.to_le_bytes()).collect();
    assert!(!shows(&segment.data[..32]) && !shows(&tokens), "it can be read without a key");
    let miss = worker(place).fetch(&segment.segment).await.expect_err("no key");
    assert_eq!(miss.reason(), "key_missing");
    assert_fetched(&with_key(), &segment).await;
}
