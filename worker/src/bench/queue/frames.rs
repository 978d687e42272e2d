//! Token frames: deltas of turns that run, as fast as they can be published.

use std::sync::Arc;
use std::time::Instant;

use futures::future::try_join_all;
use turnmill_schema::Delta;

use super::enqueue::Producer;
use super::{Bench, BenchError, ROOM, per_second};
use crate::broker::redis::RedisBroker;
use crate::broker::{Broker, BrokerError, Lease};

/// Each worker runs its full number of turns, and each of them appends one delta after the other.
pub(super) async fn append(bench: &Bench) -> Result<f64, BenchError> {
    let turns = ROOM * bench.options.workers;
    let producer = Producer::new(bench)?;
    let enqueued = (0..turns).map(|i| {
        // A turn an agent: all of them run at once.
        let turn = bench.turn(i);
        turnmill_schema::Turn { agent: None, ..turn }
    });
    producer.enqueue(enqueued.collect()).await?;
    let mut running = Vec::new();
    for worker in 0..bench.options.workers {
        let broker = Arc::new(bench.broker(&format!("f{worker}")).await?);
        let tickets = broker.read(ROOM).await?;
        let leased = try_join_all(tickets.iter().map(|ticket| broker.lease(ticket))).await?;
        running.extend(leased.into_iter().flatten().map(|claim| (broker.clone(), claim.lease)));
    }
    if running.len() < turns {
        return Err(BenchError::Lost(turns - running.len()));
    }
    let each = bench.options.turns.div_ceil(turns) as u32;
    let began = Instant::now();
    let tasks = running.into_iter().map(|(broker, lease)| tokio::spawn(publish(broker, lease, each)));
    for published in futures::future::join_all(tasks).await {
        published.expect("no task is cancelled, and none panics")?;
    }
    Ok(per_second(turns * each as usize, began))
}

async fn publish(broker: Arc<RedisBroker>, lease: Arc<Lease>, frames: u32) -> Result<(), BrokerError> {
    for index in 0..frames {
        let mut delta = Delta { index, ..Delta::default() };
        delta.push(index, " word", None);
        broker.append(&lease, &delta).await?;
    }
    Ok(())
}
