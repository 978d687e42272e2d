//! Following turns: their events as they are made, each token once, whatever happens to the connection.
//!
//! * `reader`: what one turn's entries say, in order and once.
//! * `assembly`: how a reply is put together out of entries and what the turn's hash keeps.
//! * `entry`: what one entry says; those that are not ours are passed by.
//! * `seen`: which part of a reply a reader already has.
//! * `source`: where a reader gets entries from: a task catches up with what is there, then the turn is waited for.
//! * `waiters`, `watch`: tasks that wait for many turns, each on one connection.
//!
//! Invariant: a follower that nobody polls holds nothing that others need. Whatever asks Redis runs in a task of its own.

mod assembly;
mod entry;
mod reader;
mod seen;
mod source;
mod waiters;
mod watch;

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::stream::{BoxStream, SelectAll, StreamExt};
use serde::Serialize;
use turnmill_schema::{Event, StreamId, TurnId};

use crate::client::Client;
use crate::error::ClientError;

pub(crate) use assembly::Assembly;
#[cfg(test)]
pub(crate) use entry::foreign;
pub(crate) use reader::Reader;
pub(crate) use waiters::Waiters;

/// An event and where it stands in the result stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Followed {
    /// Its entry, to go on from later. None: the stream has expired, its text with it, and this is the outcome kept of it.
    pub id: Option<StreamId>,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// A turn's events: a stream, and [`Follow::next`] for who has no use for streams. Dropping it is all it takes to end it.
#[must_use = "nothing is followed before it is polled"]
pub struct Follow(BoxStream<'static, Result<Followed, ClientError>>);

impl Follow {
    /// The next event; none after the End, or after an error.
    pub async fn next(&mut self) -> Option<Result<Followed, ClientError>> {
        self.0.next().await
    }
}

impl Stream for Follow {
    type Item = Result<Followed, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

impl fmt::Debug for Follow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Follow")
    }
}

impl Client {
    /// The turn's events after entry `from` (none: from the start), waiting for those to come. Ends after its End.
    ///
    /// ```no_run
    /// use turnmill_client::{Client, Event, TurnId};
    ///
    /// # async fn example(client: Client, turn: TurnId) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut events = client.follow(turn, None);
    /// while let Some(followed) = events.next().await {
    ///     if let Event::Delta(delta) = followed?.event {
    ///         print!("{}", delta.content());
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Followers of one client and its clones share a few connections. Fails if no trace of the turn is left, or if Redis is
    /// away for longer than [`crate::ClientBuilder::retry_for`]; the turn goes on all the same.
    ///
    /// It must be polled by a task of a tokio runtime.
    pub fn follow(&self, turn: TurnId, from: Option<StreamId>) -> Follow {
        let reader = Reader::new(self, turn, from);
        let events = futures_util::stream::try_unfold(reader, |mut reader| async move {
            let followed = reader.next().await?;
            Ok(followed.map(|followed| (followed, reader)))
        });
        Follow(events.boxed())
    }

    /// The events of many turns from their start, as they come, each with its turn. A turn that cannot be followed any further
    /// ends with its error, and the others go on.
    pub fn follow_many(
        &self,
        turns: Vec<TurnId>,
    ) -> impl Stream<Item = (TurnId, Result<Followed, ClientError>)> + Send + use<> {
        let follow = |turn| self.follow(turn, None).map(move |followed| (turn, followed)).boxed();
        turns.into_iter().map(follow).collect::<SelectAll<_>>()
    }
}
