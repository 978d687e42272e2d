//! The way to Redis: one shared connection for short commands, one of its own for each blocking read.
//!
//! Invariants: Nagle's algorithm is off (a token waits for nothing); a blocking read's response timeout is longer
//! than its BLOCK (the client's own default is 500 ms); every retry ends after `retry_for`.

use std::future::Future;
use std::time::{Duration, Instant};

use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, RedisError, RedisResult, RetryMethod,
    Script, Value,
};
use rustls::crypto::CryptoProvider;
use turnmill_schema::scripts::Call;

use crate::error::ProducerError;
use crate::settings::ProducerSettings;
use crate::suitable;

/// How long establishing a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A Redis that was reached at least once.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    client: Client,
    short: ConnectionManager,
    address: String,
    response_timeout: Duration,
    retry_for: Duration,
    block: Duration,
}

impl Connection {
    /// Connects, and checks that the server can carry a queue. Does not retry: a wrong address is told at once.
    pub(crate) async fn open(url: &str, settings: &ProducerSettings) -> Result<Self, ProducerError> {
        let invalid = |error: RedisError| ProducerError::InvalidUrl { reason: error.to_string() };
        let info = url.into_connection_info().map_err(invalid)?;
        let address = info.addr().to_string();
        choose_cryptography(info.addr());
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = Client::open(info).map_err(invalid)?;
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(settings.response_timeout));
        let mut short = ConnectionManager::new_with_config(client.clone(), config)
            .await
            .map_err(|error| failure("the connection", &address, &error))?;
        suitable::check(&mut short, &address).await?;
        let ProducerSettings { response_timeout, retry_for, block, .. } = *settings;
        Ok(Self { client, short, address, response_timeout, retry_for, block })
    }

    /// How long a blocking read waits.
    pub(crate) fn block(&self) -> Duration {
        self.block
    }

    /// Runs a short command that may be repeated, until it is answered or `retry_for` has passed.
    pub(crate) async fn call<T, F>(
        &self,
        step: &'static str,
        mut command: impl FnMut(ConnectionManager) -> F,
    ) -> Result<T, ProducerError>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let mut patience = self.patience();
        loop {
            match command(self.short.clone()).await {
                Ok(reply) => return Ok(reply),
                Err(error) if passing(&error) && patience.pause().await => {}
                Err(error) => return Err(self.failure(step, &error)),
            }
        }
    }

    /// Runs a script that may be repeated.
    pub(crate) async fn script(
        &self,
        step: &'static str,
        code: &str,
        call: &Call,
    ) -> Result<Value, ProducerError> {
        let script = Script::new(code);
        let mut invocation = script.prepare_invoke();
        for key in &call.keys {
            invocation.key(key);
        }
        for arg in &call.args {
            invocation.arg(arg.as_slice());
        }
        let invocation = &invocation;
        self.call(step, |mut redis| async move { invocation.invoke_async(&mut redis).await }).await
    }

    /// A new connection for blocking reads.
    pub(crate) async fn blocking(&self) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.block + self.response_timeout));
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// Retries from now on.
    pub(crate) fn patience(&self) -> Patience {
        Patience { until: Instant::now() + self.retry_for, pause: Patience::FIRST }
    }

    /// The error of ours for one of the client's.
    pub(crate) fn failure(&self, step: &'static str, error: &RedisError) -> ProducerError {
        failure(step, &self.address, error)
    }
}

/// TLS has no cryptography of its own, and panics where nobody chose one. A program's own choice stays.
fn choose_cryptography(address: &ConnectionAddr) {
    let tls = matches!(address, ConnectionAddr::TcpTls { .. });
    if tls && CryptoProvider::get_default().is_none() {
        // An error means that another thread was faster, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

fn failure(step: &'static str, address: &str, error: &RedisError) -> ProducerError {
    let reason = error.to_string();
    match error.kind() {
        redis::ErrorKind::Io => ProducerError::Unreachable { address: address.to_owned(), reason },
        redis::ErrorKind::AuthenticationFailed => {
            ProducerError::Unsuitable(format!("Redis at {address} refused the user or password: {reason}"))
        }
        redis::ErrorKind::UnexpectedReturnType | redis::ErrorKind::Parse => {
            ProducerError::Unreadable { what: format!("the answer to {step}"), reason }
        }
        _ => ProducerError::Refused { step, reason },
    }
}

/// Whether trying again can help: the connection broke, or the server is loading, failing over or busy.
pub(crate) fn passing(error: &RedisError) -> bool {
    error.is_io_error() || !matches!(error.retry_method(), RetryMethod::NoRetry)
}

/// Pauses that double from 25 ms to 2 s, until a fixed time.
#[derive(Debug)]
pub(crate) struct Patience {
    until: Instant,
    pause: Duration,
}

impl Patience {
    const FIRST: Duration = Duration::from_millis(25);
    const LONGEST: Duration = Duration::from_secs(2);

    /// Waits; false, at once, when the time is over.
    pub(crate) async fn pause(&mut self) -> bool {
        if Instant::now() + self.pause > self.until {
            return false;
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(Self::LONGEST);
        true
    }
}
