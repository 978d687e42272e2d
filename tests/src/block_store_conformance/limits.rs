//! Bounds, waiting, and the end.

use std::time::{Duration, Instant};

use turnmill_worker::store::Miss;

use super::*;

/// A run that finds no room is dropped, counted, and never a hit.
pub async fn a_full_queue_drops_and_counts(place: &impl TestPlace) {
    let run = runs(1, 4).remove(0);
    let worker = worker_with(place, |settings| settings.save_queue_bytes = run.data.len() - 1);
    let dropped = || counted("turnmill_store_saves_total{outcome=\"dropped\"}");
    let before = dropped();
    assert!(!worker.save(run.clone()) && !worker.is_saved(&run.run.id));
    assert!(dropped() > before);
    assert_eq!(worker.saved(&[run.run.id], PATIENCE).await, 0);
    assert!(matches!(worker.fetch(&run.run).await, Err(Miss::Absent)));
}

/// Room comes back with the acknowledgement.
pub async fn the_queue_has_room_again_once_a_run_is_written(place: &impl TestPlace) {
    let runs = runs(1, 32);
    let worker = worker_with(place, |settings| settings.save_queue_bytes = runs[0].data.len());
    for run in &runs {
        save_all(&worker, std::slice::from_ref(run)).await;
    }
}

/// Two objects fit, so a third costs the one used longest ago.
pub async fn the_host_cache_keeps_to_its_budget(place: &impl TestPlace) {
    let runs = runs(1, 12);
    let budget = 5 * runs[0].data.len() / 2;
    let worker = worker_with(place, |settings| settings.host_cache_bytes = budget);
    for run in &runs {
        save_all(&worker, std::slice::from_ref(run)).await;
    }
    let cached = || ids(&runs).iter().map(|id| worker.is_cached(id)).collect::<Vec<_>>();
    assert_eq!(cached(), [false, true, true]);
    assert_fetched(&worker, &runs[1]).await;
    assert_fetched(&worker, &runs[0]).await;
    assert_eq!(cached(), [true, true, false]);
}

/// A run that nobody saves ends the count, and is not waited for.
pub async fn only_leading_runs_are_counted(place: &impl TestPlace) {
    let (worker, runs) = (worker(place), runs(1, 12));
    save_all(&worker, &[runs[0].clone(), runs[2].clone()]).await;
    let start = Instant::now();
    assert_eq!(worker.saved(&ids(&runs), PATIENCE).await, 1);
    assert!(start.elapsed() < PATIENCE);
    assert_eq!(worker.saved(&[], PATIENCE).await, 0);
}

/// However much is queued.
pub async fn waiting_ends_in_time(place: &impl TestPlace) {
    let (worker, runs) = (worker(place), runs(1, 256));
    assert!(runs.iter().all(|run| worker.save(run.clone())));
    assert!(worker.saved(&ids(&runs), Duration::ZERO).await <= runs.len());
    worker.flush(Duration::ZERO).await;
    assert_eq!(worker.saved(&ids(&runs), PATIENCE).await, runs.len());
}

/// A run whose bytes are not its blocks' is a mistake of ours: it fails, and the others are written.
pub async fn a_run_that_cannot_be_encoded_fails_alone(place: &impl TestPlace) {
    let (worker, runs) = (worker(place), runs(1, 32));
    for run in &runs {
        let bad = RunData { data: run.data.slice(1..), ..run.clone() };
        assert!(worker.save(bad));
    }
    assert_eq!(worker.saved(&ids(&runs), PATIENCE).await, 0);
    worker.flush(PATIENCE).await;
    assert!(runs.iter().all(|run| !worker.is_saved(&run.run.id)));
    save_all(&worker, &runs).await;
}

/// Nothing is queued after a flush.
pub async fn flushing_waits_for_everything(place: &impl TestPlace) {
    let (worker, runs) = (worker(place), runs(1, 256));
    assert!(runs.iter().all(|run| worker.save(run.clone())));
    worker.flush(PATIENCE).await;
    assert_eq!(worker.saved(&ids(&runs), Duration::ZERO).await, runs.len());
    assert_eq!(Outside::of(place).list().await.len(), runs.len());
}

/// A worker that ends in the middle of its writes leaves whole objects and nothing else that is found.
pub async fn dropping_it_with_a_full_queue_is_clean(place: &impl TestPlace) {
    let (outside, runs) = (Outside::of(place), runs(1, 256));
    let dying = worker(place);
    assert!(runs.iter().all(|run| dying.save(run.clone())));
    assert!(dying.saved(&ids(&runs[..1]), PATIENCE).await == 1);
    drop(dying);
    let next = worker(place);
    for run in &runs {
        match next.fetch(&run.run).await {
            Ok(fetched) => assert!(fetched.data == run.data),
            Err(miss) => assert!(matches!(miss, Miss::Absent), "{miss}"),
        }
    }
    assert!(outside.list().await.iter().all(|path| path.starts_with("kv/")));
}
