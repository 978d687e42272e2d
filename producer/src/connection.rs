//! The way to Redis, with patience: what may pass is asked again until it is answered or `retry_for` has passed.
//!
//! Everything else (connecting, which server is the queue's, what an error means) is [`turnmill_redis`]'s.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use turnmill_redis::{Advice, Blocking, Endpoint, Fault, RedisUrl, Scan, Server, Step, TurnState};
use turnmill_schema::keys::Keys;

use crate::error::{ClientError, may_be_done};
use crate::overdue::Overdue;
use crate::settings::Settings;

/// A Redis that was reached at least once.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    server: Arc<Server>,
    retry_for: Duration,
    block: Duration,
    overdue: Arc<Overdue>,
}

impl Connection {
    /// Connects to a server that can carry a queue. A wrong address is told at once; a server that loads its data is waited for.
    pub(crate) async fn open(url: RedisUrl, settings: &Settings) -> Result<Self, ClientError> {
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
    pub(crate) async fn reach(url: RedisUrl, settings: &Settings) -> Result<Self, ClientError> {
        let endpoint = endpoint(url, settings);
        let server = Server::undemanding(&endpoint, settings.response_timeout).map_err(unusable)?;
        server.reach().await?;
        Ok(Self::of(server, settings))
    }

    /// Has connected to nothing, for tests of what asks nothing.
    #[cfg(test)]
    pub(crate) fn unconnected(settings: &Settings) -> Self {
        let server = Server::new(
            &endpoint("redis://127.0.0.1:1".to_owned().into(), settings),
            settings.response_timeout,
        );
        Self::of(server.expect("the URL is usable"), settings)
    }

    fn of(server: Arc<Server>, settings: &Settings) -> Self {
        let overdue = Arc::new(Overdue::new(settings));
        Self { server, retry_for: settings.retry_for, block: settings.block, overdue }
    }

    /// Where it is: host and port, or a socket's path.
    pub(crate) fn address(&self) -> &str {
        self.server.address()
    }

    /// See [`crate::ClientBuilder::block`].
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

    /// Ends those of the turns that are past their deadline; see [`Overdue`].
    pub(crate) async fn end_overdue(&self, keys: &Keys, states: impl Iterator<Item = &TurnState>) {
        self.overdue.end(&self.server, keys, states).await;
    }

    /// Asks a question that may be asked again.
    pub(crate) async fn ask<'a, T, F>(
        &'a self,
        question: impl FnMut(&'a Server) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        Ok(self.try_on(question).await.answer?)
    }

    /// As [`Self::ask`], for a caller who must know what the earlier tries may have done.
    async fn try_on<'a, T, F>(&'a self, mut question: impl FnMut(&'a Server) -> F) -> Tried<T>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let (mut patience, mut unsure) = (self.patience(), false);
        loop {
            match question(&self.server).await {
                Err(fault) if passes(&fault) && patience.pause().await => unsure |= may_be_done(&fault),
                answer => return Tried { answer, unsure },
            }
        }
    }

    /// Takes a step; every step may be repeated.
    pub(crate) async fn run<S: Step>(&self, keys: &Keys, step: &S) -> Result<S::Reply, ClientError> {
        self.ask(|server| server.run(keys, step)).await
    }

    /// As [`Self::run`], for a caller who must know what the earlier tries may have done.
    pub(crate) async fn try_step<S: Step>(&self, keys: &Keys, step: &S) -> Tried<S::Reply> {
        self.try_on(|server| server.run(keys, step)).await
    }

    /// The next page of a scan; none: that was all.
    pub(crate) async fn next_page(&self, scan: &mut Scan<'_>) -> Result<Option<Vec<String>>, ClientError> {
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

fn endpoint(url: RedisUrl, settings: &Settings) -> Endpoint {
    Endpoint { url, ca: settings.ca_file.clone() }
}

fn unusable(fault: Fault) -> ClientError {
    ClientError::InvalidUrl(fault.to_string())
}

/// What came of a question that was asked until it was answered.
#[derive(Debug)]
pub(crate) struct Tried<T> {
    /// Of the last try.
    pub(crate) answer: Result<T, Fault>,
    /// An earlier try had no answer: what was asked for may be done, or be done yet.
    pub(crate) unsure: bool,
}

/// The answers about many things, unless the server could not answer just then: that is told of single ones too, and asking
/// again helps all of them.
pub(crate) fn unless_passing<T>(answers: Vec<Result<T, Fault>>) -> Result<Vec<Result<T, Fault>>, Fault> {
    let mut faults = answers.iter().filter_map(|answer| answer.as_ref().err());
    match faults.find(|fault| passes(fault)).cloned() {
        Some(fault) => Err(fault),
        None => Ok(answers),
    }
}

/// Whether trying again can help, soon. A full Redis gets room when turns have ended: the caller knows better when to come back.
pub(crate) fn passes(fault: &Fault) -> bool {
    fault.advice() == Advice::Retry && !matches!(fault, Fault::Full { .. })
}

/// Pauses that double.
#[derive(Debug)]
pub(crate) struct Pauses {
    next: Duration,
    longest: Duration,
}

impl Default for Pauses {
    /// From 25 ms to 2 s.
    fn default() -> Self {
        Self::between(Duration::from_millis(25), Duration::from_secs(2))
    }
}

impl Pauses {
    pub(crate) fn between(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let longer = (self.next * 2).min(self.longest);
        std::mem::replace(&mut self.next, longer)
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn unreachable() -> Fault {
        Fault::Unreachable { address: "h:1".to_owned(), reason: "no answer".to_owned() }
    }

    fn stale() -> Fault {
        Fault::Stale { address: "h:1".to_owned(), reason: "LOADING".to_owned() }
    }

    fn busy() -> Fault {
        Fault::Refused { step: "step", passing: true, reason: "BUSY".to_owned() }
    }

    fn full() -> Fault {
        Fault::Full { step: "step", reason: "OOM".to_owned() }
    }

    #[tokio::test]
    async fn a_try_without_an_answer_is_remembered_whatever_the_last_one_says() {
        let connection = Connection::unconnected(&Settings::default());
        for (tries, expected) in [
            (vec![Ok(())], (Ok(()), false)),
            (vec![Err(stale()), Err(busy()), Ok(())], (Ok(()), false)),
            (vec![Err(unreachable()), Ok(())], (Ok(()), true)),
            (vec![Err(unreachable()), Err(stale()), Err(full())], (Err(full()), true)),
            (vec![Err(stale()), Err(full())], (Err(full()), false)),
        ] {
            let answers = RefCell::new(tries.clone().into_iter());
            let question = |_: &_| std::future::ready(answers.borrow_mut().next().expect("not asked again"));
            let Tried { answer, unsure } = connection.try_on(question).await;
            assert_eq!((answer, unsure), expected, "{tries:?}");
        }
    }

    #[test]
    fn a_fault_that_passes_is_that_of_the_whole_call() {
        let refused = || Fault::Refused { step: "step", passing: false, reason: "WRONGTYPE".to_owned() };
        for (answers, expected) in [
            (vec![], None),
            (vec![Ok(1), Err(refused())], None),
            (vec![Ok(1), Err(refused()), Err(busy()), Err(stale())], Some(busy())),
            (vec![Err(stale())], Some(stale())),
        ] {
            let expected = expected.map_or_else(|| Ok(answers.clone()), Err);
            assert_eq!(unless_passing(answers), expected);
        }
    }
}
