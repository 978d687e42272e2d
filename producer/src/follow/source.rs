//! Where a reader gets a turn's entries from.

use tokio::sync::mpsc;
use turnmill_redis::steps::ResultEntry;
use turnmill_redis::{Fault, ReadUpTo, TurnState};
use turnmill_schema::keys::Keys;

use super::assembly::id_of;
use super::waiters::{Waiter, Waiters};
use crate::connection::Connection;
use crate::error::ClientError;

/// Entries in one reply at most.
const COUNT: usize = 256;
/// News that a reader has not taken yet, at most; then its stream is not read any further.
const NEWS: usize = 16;

/// What is told of a turn.
#[derive(Debug)]
pub(super) enum News {
    /// What is there of it: at the start, and when nothing came for a while.
    State(TurnState),
    /// The next entries of its result stream.
    Entries(Vec<ResultEntry>),
    /// It cannot be read any further.
    Failed(ClientError),
}

/// Tells what is new of a turn after `read`. If the telling ends, the task that told is gone: start again from what was read by then.
///
/// A task catches up with what is there, then hands the turn over to those who wait for many.
pub(super) fn open(
    connection: &Connection,
    waiters: &Waiters,
    keys: &Keys,
    read: ReadUpTo,
) -> mpsc::Receiver<News> {
    let (news, told) = mpsc::channel(NEWS);
    let (connection, waiters, keys) = (connection.clone(), waiters.clone(), keys.clone());
    tokio::spawn(async move {
        match catch_up(&connection, &waiters, &keys, read, &news).await {
            Ok(Some(read)) => waiters.wait(&connection, &keys, Waiter::new(read, news)),
            Ok(None) => {}
            // A reader that is gone need not be told.
            Err(error) => drop(news.send(News::Failed(error)).await),
        }
    });
    told
}

/// Tells what is there; then how far that is. None: the reader is gone.
async fn catch_up(
    connection: &Connection,
    waiters: &Waiters,
    keys: &Keys,
    mut read: ReadUpTo,
    news: &mpsc::Sender<News>,
) -> Result<Option<ReadUpTo>, ClientError> {
    // Leave is taken for each try, and not kept while it pauses: in an outage everybody's time runs from their own start.
    let state = connection
        .ask(async |server| {
            let _leave = waiters.catching_up().await;
            only(server.turn_states(keys, &[read.turn]).await?)
        })
        .await?;
    connection.end_overdue(keys, [&state].into_iter()).await;
    if news.send(News::State(state)).await.is_err() {
        return Ok(None);
    }
    loop {
        let entries = connection
            .ask(async |server| {
                let _leave = waiters.catching_up().await;
                only(server.results_after(keys, &[read], COUNT).await?)
            })
            .await?;
        let Some(last) = entries.last() else { return Ok(Some(read)) };
        read.last = id_of(last)?;
        if news.send(News::Entries(entries)).await.is_err() {
            return Ok(None);
        }
    }
}

/// The answer to a question about one turn.
fn only<T: Default>(answers: Vec<Result<T, Fault>>) -> Result<T, Fault> {
    answers.into_iter().next().unwrap_or_else(|| Ok(T::default()))
}
