//! Drops running turns that somebody cancelled, as soon as the queue says so.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::link::Backoff;
use super::{Held, Link};
use crate::broker::Broker;

/// Listens until `stop`. What is missed while the queue does not answer, renewals find.
pub async fn notices<B: Broker>(broker: Arc<B>, held: Held, link: Link, stop: CancellationToken) {
    let mut backoff = Backoff::default();
    loop {
        let heard = tokio::select! {
            () = stop.cancelled() => return,
            heard = broker.next_cancelled() => heard,
        };
        match link.note(heard) {
            Ok(turn) => {
                backoff = Backoff::default();
                held.lose(turn);
            }
            Err(error) => {
                debug!(%error, "cancellations are found by renewals only");
                backoff.pause().await;
            }
        }
    }
}
