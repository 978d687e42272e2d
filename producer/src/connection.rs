//! The way to Redis, with patience: what may pass is asked again until it is answered or `retry_for` has passed.
//!
//! Everything else (connecting, which server is the queue's, what an error means) is [`turnmill_redis`]'s.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use turnmill_redis::{Advice, Blocking, Endpoint, Fault, RedisUrl, Scan, Server, Step};
use turnmill_schema::keys::Keys;

use crate::error::ProducerError;
use crate::settings::ProducerSettings;

/// A Redis that was reached at least once.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    server: Arc<Server>,
    retry_for: Duration,
    block: Duration,
}

impl Connection {
    /// Connects to a server that can carry a queue. A wrong address is told at once; a server that loads its data is waited for.
    pub(crate) async fn open(url: &str, settings: &ProducerSettings) -> Result<Self, ProducerError> {
        let server = Server::new(&endpoint(url, settings), settings.response_timeout).map_err(unusable)?;
        let connection = Self::of(server, settings);
        let mut patience = connection.patience();
        loop {
            match connection.server.check().await {
                Ok(_) => return Ok(connection),
                Err(fault @ Fault::Stale { .. }) if patience.pause().await => tracing::warn!("{fault}"),
                Err(fault) => return Err(fault.into()),
            }
        }
    }

    /// Connects, and takes the server as it is.
    pub(crate) async fn reach(url: &str, settings: &ProducerSettings) -> Result<Self, ProducerError> {
        let endpoint = endpoint(url, settings);
        let server = Server::undemanding(&endpoint, settings.response_timeout).map_err(unusable)?;
        server.reach().await?;
        Ok(Self::of(server, settings))
    }

    /// Has connected to nothing, for tests of what asks nothing.
    #[cfg(test)]
    pub(crate) fn unconnected(settings: &ProducerSettings) -> Self {
        let server = Server::new(&endpoint("redis://127.0.0.1:1", settings), settings.response_timeout);
        Self::of(server.expect("the URL is usable"), settings)
    }

    fn of(server: Arc<Server>, settings: &ProducerSettings) -> Self {
        Self { server, retry_for: settings.retry_for, block: settings.block }
    }

    /// Where it is: host and port, or a socket's path.
    pub(crate) fn address(&self) -> &str {
        self.server.address()
    }

    /// How long a blocking read waits.
    pub(crate) fn block(&self) -> Duration {
        self.block
    }

    /// How long to go on trying.
    pub(crate) fn retry_for(&self) -> Duration {
        self.retry_for
    }

    /// The server, for one who has a patience of its own.
    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// Asks a question that may be asked again.
    pub(crate) async fn ask<'a, T, F>(
        &'a self,
        mut question: impl FnMut(&'a Server) -> F,
    ) -> Result<T, ProducerError>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let mut patience = self.patience();
        loop {
            match question(&self.server).await {
                Ok(answer) => return Ok(answer),
                Err(fault) if passes(&fault) && patience.pause().await => {}
                Err(fault) => return Err(fault.into()),
            }
        }
    }

    /// Takes a step; every step may be repeated.
    pub(crate) async fn run<S: Step>(&self, keys: &Keys, step: &S) -> Result<S::Reply, ProducerError> {
        self.ask(|server| server.run(keys, step)).await
    }

    /// The next page of a scan; none: that was all.
    pub(crate) async fn next_page(&self, scan: &mut Scan<'_>) -> Result<Option<Vec<String>>, ProducerError> {
        let mut patience = self.patience();
        loop {
            match scan.next().await {
                Ok(page) => return Ok(page),
                Err(fault) if passes(&fault) && patience.pause().await => {}
                Err(fault) => return Err(fault.into()),
            }
        }
    }

    /// A new connection for reads that wait for up to `block`.
    pub(crate) async fn blocking(&self, block: Duration) -> Result<Blocking, Fault> {
        self.server.blocking(block).await
    }

    /// Retries from now on.
    pub(crate) fn patience(&self) -> Patience {
        Patience { until: Instant::now() + self.retry_for, pauses: Pauses::default() }
    }
}

fn endpoint(url: &str, settings: &ProducerSettings) -> Endpoint {
    Endpoint { url: RedisUrl::from(url.to_owned()), ca: settings.ca_file.clone() }
}

fn unusable(fault: Fault) -> ProducerError {
    ProducerError::InvalidUrl(fault.to_string())
}

/// Whether trying again can help, soon. A full Redis gets room when turns have ended: the caller knows better when to come back.
pub(crate) fn passes(fault: &Fault) -> bool {
    fault.advice() == Advice::Retry && !matches!(fault, Fault::Full { .. })
}

/// Pauses that double from 25 ms to 2 s.
#[derive(Debug)]
pub(crate) struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(Duration::from_millis(25))
    }
}

impl Pauses {
    const LONGEST: Duration = Duration::from_secs(2);

    pub(crate) fn next(&mut self) -> Duration {
        let longer = (self.0 * 2).min(Self::LONGEST);
        std::mem::replace(&mut self.0, longer)
    }
}

/// Pauses until a fixed time.
#[derive(Debug)]
pub(crate) struct Patience {
    until: Instant,
    pauses: Pauses,
}

impl Patience {
    /// Waits; false, at once, when the time is over.
    pub(crate) async fn pause(&mut self) -> bool {
        let pause = self.pauses.next();
        if Instant::now() + pause > self.until {
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }
}
