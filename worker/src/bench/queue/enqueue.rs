//! Getting turns into the queue, and what Redis could take at best.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use turnmill_redis::Server;
use turnmill_redis::steps::{DepthLimits, Enqueue, EnqueueTurn};
use turnmill_schema::envelope::encode_turn;
use turnmill_schema::{Turn, TurnId};

use super::{BATCH_TURNS, Bench, BenchError, per_second};
use crate::broker::BrokerError;

/// Pipelined XADD of the payload, from two connections so that neither end waits for the other.
pub(super) async fn raw(bench: &Bench) -> Result<f64, BenchError> {
    let payload = vec![b'x'; bench.options.payload];
    let key = format!("{}-raw", bench.keys().events());
    let each = bench.options.turns / 2;
    let began = Instant::now();
    try_join_all((0..2).map(|_| async {
        let mut connection = bench.server()?.blocking(Duration::ZERO).await?;
        for start in (0..each).step_by(BATCH_TURNS) {
            connection.raw_xadd(&key, &payload, each.min(start + BATCH_TURNS) - start).await?;
        }
        Ok::<_, BenchError>(())
    }))
    .await?;
    let figure = per_second(2 * each, began);
    bench.server()?.delete_matching(key).await?;
    Ok(figure)
}

/// Many turns to a call, from two producers.
pub(super) async fn batched(bench: &Bench) -> Result<f64, BenchError> {
    let turns = bench.options.turns;
    let began = Instant::now();
    try_join_all((0..2).map(|half| async move {
        let producer = Producer::new(bench)?;
        for start in (half * turns / 2..(half + 1) * turns / 2).step_by(BATCH_TURNS) {
            let end = (start + BATCH_TURNS).min((half + 1) * turns / 2);
            producer.enqueue((start..end).map(|i| bench.turn(i)).collect()).await?;
        }
        Ok::<_, BenchError>(())
    }))
    .await?;
    Ok(per_second(turns, began))
}

/// One turn to a call, from as many producers as there are workers; a tenth of the turns.
pub(super) async fn single(bench: &Bench) -> Result<f64, BenchError> {
    let each = bench.options.turns / 10 / bench.options.workers;
    let began = Instant::now();
    try_join_all((0..bench.options.workers).map(|worker| async move {
        let producer = Producer::new(bench)?;
        for i in 0..each {
            producer.enqueue(vec![bench.turn(worker * each + i)]).await?;
        }
        Ok::<_, BenchError>(())
    }))
    .await?;
    Ok(per_second(each * bench.options.workers, began))
}

/// Enqueues as the client library does.
pub(super) struct Producer<'a> {
    bench: &'a Bench,
    server: Arc<Server>,
}

impl<'a> Producer<'a> {
    pub(super) fn new(bench: &'a Bench) -> Result<Self, BenchError> {
        Ok(Self { bench, server: bench.server()? })
    }

    /// Enqueues turns in one call; their ids.
    pub(super) async fn enqueue(&self, turns: Vec<Turn>) -> Result<Vec<TurnId>, BenchError> {
        let limits = DepthLimits { queue: u64::MAX >> 12, tenant: u64::MAX >> 12 };
        let stored = turns
            .iter()
            .map(|turn| Ok(EnqueueTurn::new(turn, encode_turn(turn).map_err(BrokerError::from)?)));
        let stored: Vec<_> = stored.collect::<Result<_, BrokerError>>()?;
        self.server.run(&self.bench.keys(), &Enqueue { limits, turns: stored }).await?;
        Ok(turns.into_iter().map(|turn| turn.id).collect())
    }
}
