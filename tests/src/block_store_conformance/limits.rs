//! Bounds, waiting, and the end.

use std::time::{Duration, Instant};

use turnmill_worker::store::Miss;

use super::*;

/// A segment that finds no room is dropped, counted, and never a hit.
pub async fn a_full_queue_drops_and_counts(place: &impl TestPlace) {
    let segment = segments(1, 4).remove(0);
    let worker = worker_with(place, |settings| settings.save_queue_bytes = segment.data.len() - 1);
    let dropped = || counted("turnmill_store_saves_total{outcome=\"dropped\"}");
    let before = dropped();
    assert!(!worker.save(segment.clone()) && !worker.is_saved(&segment.segment.id));
    assert!(dropped() > before);
    assert_eq!(worker.saved(&[segment.segment.id], PATIENCE).await, 0);
    assert!(matches!(worker.fetch(&segment.segment).await, Err(Miss::Absent)));
}

/// Room comes back with the acknowledgement.
pub async fn the_queue_has_room_again_once_a_segment_is_written(place: &impl TestPlace) {
    let segments = segments(1, 32);
    let worker = worker_with(place, |settings| settings.save_queue_bytes = segments[0].data.len());
    for segment in &segments {
        save_all(&worker, std::slice::from_ref(segment)).await;
    }
}

/// Two objects fit, so a third costs the one used longest ago.
pub async fn the_host_cache_keeps_to_its_budget(place: &impl TestPlace) {
    let segments = segments(1, 12);
    let budget = 5 * segments[0].data.len() / 2;
    let worker = worker_with(place, |settings| settings.host_cache_bytes = budget);
    for segment in &segments {
        save_all(&worker, std::slice::from_ref(segment)).await;
    }
    let cached = || ids(&segments).iter().map(|id| worker.is_cached(id)).collect::<Vec<_>>();
    assert_eq!(cached(), [false, true, true]);
    assert_fetched(&worker, &segments[1]).await;
    assert_fetched(&worker, &segments[0]).await;
    assert_eq!(cached(), [true, true, false]);
}

/// A segment that nobody saves ends the count, and is not waited for.
pub async fn only_leading_segments_are_counted(place: &impl TestPlace) {
    let (worker, segments) = (worker(place), segments(1, 12));
    save_all(&worker, &[segments[0].clone(), segments[2].clone()]).await;
    let start = Instant::now();
    assert_eq!(worker.saved(&ids(&segments), PATIENCE).await, 1);
    assert!(start.elapsed() < PATIENCE);
    assert_eq!(worker.saved(&[], PATIENCE).await, 0);
}

/// Without any time to wait: an answer comes, and everything is written all the same. That a wait ends in time is not shown here.
pub async fn who_does_not_wait_loses_nothing(place: &impl TestPlace) {
    let (worker, segments) = (worker(place), segments(1, 256));
    assert!(segments.iter().all(|segment| worker.save(segment.clone())));
    assert!(worker.saved(&ids(&segments), Duration::ZERO).await <= segments.len());
    worker.flush(Duration::ZERO).await;
    assert_eq!(worker.saved(&ids(&segments), PATIENCE).await, segments.len());
}

/// A segment whose bytes are not its blocks' is a mistake of ours: it fails, and the others are written.
pub async fn a_segment_that_cannot_be_encoded_fails_alone(place: &impl TestPlace) {
    let (worker, segments) = (worker(place), segments(1, 32));
    for segment in &segments {
        let bad = SegmentData { data: segment.data.slice(1..), ..segment.clone() };
        assert!(worker.save(bad));
    }
    assert_eq!(worker.saved(&ids(&segments), PATIENCE).await, 0);
    worker.flush(PATIENCE).await;
    assert!(segments.iter().all(|segment| !worker.is_saved(&segment.segment.id)));
    save_all(&worker, &segments).await;
}

/// Nothing is queued after a flush.
pub async fn flushing_waits_for_everything(place: &impl TestPlace) {
    let (worker, segments) = (worker(place), segments(1, 256));
    assert!(segments.iter().all(|segment| worker.save(segment.clone())));
    worker.flush(PATIENCE).await;
    assert_eq!(worker.saved(&ids(&segments), Duration::ZERO).await, segments.len());
    assert_eq!(Outside::of(place).list().await.len(), segments.len());
}

/// A worker that ends in the middle of its writes leaves whole objects and nothing else that is found.
pub async fn dropping_it_with_a_full_queue_is_clean(place: &impl TestPlace) {
    let (outside, segments) = (Outside::of(place), segments(1, 256));
    let dying = worker(place);
    assert!(segments.iter().all(|segment| dying.save(segment.clone())));
    assert!(dying.saved(&ids(&segments[..1]), PATIENCE).await == 1);
    drop(dying);
    let next = worker(place);
    for segment in &segments {
        match next.fetch(&segment.segment).await {
            Ok(fetched) => assert!(fetched.data == segment.data),
            Err(miss) => assert!(matches!(miss, Miss::Absent), "{miss}"),
        }
    }
    assert!(outside.list().await.iter().all(|path| path.starts_with("kv/")));
}
