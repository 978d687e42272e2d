//! Connections of their own: for a read that blocks, and for a subscription.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::{Cmd, FromRedisValue, Pipeline, RedisResult};
use tokio::sync::watch;

use crate::fault::Fault;
use crate::link::Link;
use crate::server::{Server, timeouts};

/// A connection for reads that wait on the server. After an error, or if a read's future is dropped, it is of no more use,
/// and what the read had delivered by then must be looked for.
#[derive(Debug)]
pub struct Blocking {
    server: Arc<Server>,
    connection: MultiplexedConnection,
    eras: watch::Receiver<u64>,
}

impl Server {
    /// A new connection for reads that wait for up to `block`.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn blocking(self: &Arc<Self>, block: Duration) -> Result<Blocking, Fault> {
        let Link { connection, era, .. } =
            Link::open(self, &timeouts(block + self.response_timeout())).await?;
        let eras = self.eras();
        self.expect_era(era)?;
        Ok(Blocking { server: Arc::clone(self), connection, eras })
    }

    /// A new connection that hears what is published on `channels`.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn subscribe(self: &Arc<Self>, channels: Vec<String>) -> Result<Subscription, Fault> {
        let eras = self.eras();
        // A subscription cannot ask who the server is; this can.
        drop(self.shared_link().await?);
        let subscribe = async {
            let mut inner = self.client.get_async_pubsub().await?;
            inner.subscribe(channels).await?;
            Ok(inner)
        };
        let made = tokio::time::timeout(self.response_timeout(), subscribe).await;
        let made: RedisResult<_> = made.map_err(|error| self.unreachable(&error))?;
        let inner = made.map_err(|error| self.classify("subscribe", &error))?;
        Ok(Subscription { server: Arc::clone(self), inner, eras })
    }
}

impl Blocking {
    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    pub(crate) async fn ask<T: FromRedisValue>(
        &mut self,
        step: &'static str,
        command: &Cmd,
    ) -> Result<T, Fault> {
        let asked = command.query_async(&mut self.connection);
        answer(&self.server, &mut self.eras, step, asked).await
    }

    pub(crate) async fn ask_all<T: FromRedisValue>(
        &mut self,
        step: &'static str,
        commands: &Pipeline,
    ) -> Result<T, Fault> {
        let asked = commands.query_async(&mut self.connection);
        answer(&self.server, &mut self.eras, step, asked).await
    }
}

/// Waits for an answer for as long as the server is the queue's.
async fn answer<T>(
    server: &Server,
    eras: &mut watch::Receiver<u64>,
    step: &'static str,
    asked: impl Future<Output = redis::RedisResult<T>>,
) -> Result<T, Fault> {
    tokio::select! {
        biased;
        answer = asked => answer.map_err(|error| {
            server.note_broken();
            server.classify(step, &error)
        }),
        // The sender lives as long as the server does.
        _ = eras.changed() => Err(server.stale("another server may answer at its address")),
    }
}

/// Hears what is published. After an error it is of no more use.
pub struct Subscription {
    server: Arc<Server>,
    inner: PubSub,
    eras: watch::Receiver<u64>,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Subscription {
    /// Waits for the next message that is text: its channel and what it says. What was published while no connection stood is
    /// not heard.
    ///
    /// # Errors
    /// [`Fault::Unreachable`] or [`Fault::Stale`]: the subscription ended.
    pub async fn next(&mut self) -> Result<(String, String), Fault> {
        loop {
            let mut messages = self.inner.on_message();
            let message = tokio::select! {
                message = messages.next() => message,
                _ = self.eras.changed() => return Err(self.server.stale("another server may answer at its address")),
            };
            let Some(message) = message else {
                return Err(self.server.unreachable(&"the subscription was lost"));
            };
            if let Ok(text) = message.get_payload() {
                return Ok((message.get_channel_name().to_owned(), text));
            }
        }
    }
}
