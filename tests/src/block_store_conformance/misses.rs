//! What is not whole and not the segment asked for is a miss, and out of the way.

use turnmill_worker::store::Miss;

use super::*;

/// Nobody saved it.
pub async fn what_is_absent_is_a_miss(place: &impl TestPlace) {
    let (worker, segment) = (worker(place), segments(1, 4).remove(0));
    let misses = || counted("turnmill_store_misses_total{reason=\"absent\"}");
    let before = misses();
    assert!(matches!(worker.fetch(&segment.segment).await, Err(Miss::Absent)));
    assert!(!worker.is_saved(&segment.segment.id) && misses() > before);
}

/// Cuts, additions and flipped bits anywhere. The damaged object is kept where it harms nobody, and the segment can be
/// saved again.
pub async fn every_damage_is_a_miss_and_set_aside(place: &impl TestPlace) {
    let (worker, outside, segment) = (worker(place), Outside::of(place), segments(1, 2).remove(0));
    let (id, path) = (segment.segment.id, path(&segment.segment.id));
    save_all(&worker, std::slice::from_ref(&segment)).await;
    let whole = outside.get(&path).await.expect("it is there");
    for damaged in damages(&whole) {
        outside.put(&path, damaged.clone()).await;
        let miss = worker.fetch(&segment.segment).await.expect_err("it is damaged");
        let Miss::Damaged(damage) = &miss else { panic!("no damage: {miss}") };
        assert!(counted(&format!("turnmill_store_misses_total{{reason=\"{}\"}}", damage.reason())) > 0);
        assert!(outside.get(&path).await.is_none(), "{damage}: it is still there");
        assert_eq!(outside.get(&path_aside(&id)).await.as_deref(), Some(&damaged[..]), "{damage}");
        assert!(!worker.is_saved(&id), "{damage}");
        save_all(&worker, std::slice::from_ref(&segment)).await;
        assert_fetched(&worker, &segment).await;
    }
}

/// Every way in which an object can be off, roughly by growing distance from the start.
fn damages(whole: &[u8]) -> Vec<Vec<u8>> {
    let cuts = [0, 1, 3, 103, 104, whole.len() / 2, whole.len() - 1];
    let cut = cuts.iter().map(|&at| whole[..at].to_vec());
    let longer = [whole, b"x"].concat();
    // Longer than is read.
    let huge = [whole, &vec![0; 1 << 20]].concat();
    // Magic, version, flags, namespace, parent, hash; codec, shape, tokens, checksums; payload. The lowest bit of byte
    // 6 says that a key is needed, which is not damage.
    let header = (0..256).step_by(7).chain([0, 4, 7, 8, 40, 72, 103, 104, 105, 106]);
    let payload = (256..whole.len()).step_by(whole.len() / 16).chain([whole.len() - 1]);
    let flipped = header.chain(payload).map(|at| {
        let mut object = whole.to_vec();
        object[at] ^= 1;
        object
    });
    cut.chain([longer, huge]).chain(flipped).collect()
}

/// A whole object under another's name, as after a mistake with a backup: equal tokens after another prefix are
/// another segment.
pub async fn another_segments_object_is_a_miss(place: &impl TestPlace) {
    let (worker, outside, segment) = (worker(place), Outside::of(place), segments(1, 8).remove(1));
    let others = [segments(1, 8).remove(0), segments(2, 8).remove(1), segments_of("u", 1, 8).remove(1)];
    save_all(&worker, &others).await;
    for other in &others {
        let object = outside.get(&path(&other.segment.id)).await.expect("it is there");
        outside.put(&path(&segment.segment.id), object).await;
        assert!(matches!(worker.fetch(&segment.segment).await, Err(Miss::Damaged(_))));
        assert!(outside.get(&path(&segment.segment.id)).await.is_none());
        assert_fetched(&worker, other).await;
    }
}

/// Equal tokens of another queue or another tenant.
pub async fn queues_and_tenants_share_nothing(place: &impl TestPlace) {
    let segment = segments(1, 4).remove(0);
    save_all(&worker(place), std::slice::from_ref(&segment)).await;
    let other_queue = worker_with(place, |settings| settings.queue = Name::new("..").expect("a name"));
    assert!(matches!(other_queue.fetch(&segment.segment).await, Err(Miss::Absent)));
    let theirs = segments_of("u", 1, 4).remove(0);
    assert_eq!(theirs.segment.tokens, segment.segment.tokens);
    assert!(matches!(worker(place).fetch(&theirs.segment).await, Err(Miss::Absent)));
}
