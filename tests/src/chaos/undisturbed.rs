//! The same turns, in the same order, on one worker that nothing happens to, in a Redis of its own.
//!
//! Invariant: it has no object store, so that every word is computed: K and V that came back in the storm are right where
//! the words are equal.

use turnmill_client::{Client, ClientError};
use turnmill_schema::Name;

use super::ChaosError;
use super::audit::Undisturbed;
use super::ledger::Acknowledged;
use super::store::Store;
use crate::line::ids;
use crate::redis_server::RedisServer;
use crate::worker::Worker;

/// Runs the ledger's turns to their ends.
pub async fn undisturbed(ledger: &[Acknowledged], queue: &Name) -> Result<Undisturbed, ChaosError> {
    let redis = RedisServer::start();
    let builder = Client::builder(redis.url()).queue(queue.clone().into()).tenant(queue.clone().into());
    let producer = builder.connect().await?;
    let requests = ledger.iter().map(|known| known.request.clone()).collect();
    let turns = ids(producer.enqueue_batch(requests).await.map_err(ClientError::from)?);
    // With every core: nothing else runs by now, and words depend on no number of threads.
    let flags = ["--queue", queue.as_str()];
    let mut worker = tokio::task::block_in_place(|| Worker::start(&redis, &flags));
    for turn in &turns {
        producer.wait(*turn).await?;
    }
    worker.sigterm();
    tokio::task::block_in_place(|| worker.wait_exit());
    let stored = Store::open(&redis.url(), queue)?.snapshot().await?;
    Ok(Undisturbed { turns, stored })
}
