//! The way to Redis: one shared connection for short commands, one of its own for each blocking read.
//!
//! Invariants: Nagle's algorithm is off (a token waits for nothing); a blocking read's response timeout is longer
//! than its BLOCK (the client's own default is 500 ms); every retry ends after `retry_for`.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, FromRedisValue, IntoConnectionInfo, RedisError,
    RedisResult, RetryMethod, Script, TlsCertificates, Value,
};
use turnmill_schema::scripts::Call;

use crate::cryptography;
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
    /// Connects. Does not retry: a wrong address is told at once.
    pub(crate) async fn open(url: &str, settings: &ProducerSettings) -> Result<Self, ProducerError> {
        let invalid = |error: RedisError| ProducerError::InvalidUrl { reason: error.to_string() };
        let info = url.into_connection_info().map_err(invalid)?;
        let address = info.addr().to_string();
        if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            cryptography::choose();
        }
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = match &settings.ca_file {
            Some(file) => Client::build_with_tls(info, trust(file)?).map_err(invalid)?,
            None => Client::open(info).map_err(invalid)?,
        };
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(settings.response_timeout));
        let short = ConnectionManager::new_with_config(client.clone(), config)
            .await
            .map_err(|error| failure("the connection", &address, &error))?;
        let ProducerSettings { response_timeout, retry_for, block, .. } = *settings;
        Ok(Self { client, short, address, response_timeout, retry_for, block })
    }

    /// Checks that the server can carry a queue.
    pub(crate) async fn check(&self) -> Result<(), ProducerError> {
        suitable::check(&mut self.short.clone(), &self.address).await
    }

    /// Where it is: host and port, or a socket's path.
    pub(crate) fn address(&self) -> &str {
        &self.address
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

    /// Runs a short command that may be repeated.
    pub(crate) async fn ask<T: FromRedisValue>(
        &self,
        step: &'static str,
        command: &redis::Cmd,
    ) -> Result<T, ProducerError> {
        self.call(step, |mut redis| async move { command.query_async(&mut redis).await }).await
    }

    /// Runs short commands that may be repeated, in one round trip.
    pub(crate) async fn ask_all<T: FromRedisValue>(
        &self,
        step: &'static str,
        commands: &redis::Pipeline,
    ) -> Result<T, ProducerError> {
        self.call(step, |mut redis| async move { commands.query_async(&mut redis).await }).await
    }

    /// Reads an answer.
    pub(crate) fn read<T: FromRedisValue>(
        &self,
        step: &'static str,
        answer: Value,
    ) -> Result<T, ProducerError> {
        T::from_redis_value(answer).map_err(|error| self.failure(step, &error.into()))
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

/// The authorities of a PEM file.
fn trust(file: &Path) -> Result<TlsCertificates, ProducerError> {
    let read = std::fs::read(file);
    let root_cert = read.map_err(|error| ProducerError::InvalidUrl {
        reason: format!("the file of authorities {} cannot be read: {error}", file.display()),
    })?;
    Ok(TlsCertificates { client_tls: None, root_cert: Some(root_cert) })
}

/// Whether the server does not know who asks. One that nobody logged in to refuses long commands as a protocol error.
fn is_login(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
        || error.detail().is_some_and(|detail| detail.contains("unauthenticated"))
}

fn failure(step: &'static str, address: &str, error: &RedisError) -> ProducerError {
    let reason = error.to_string();
    match (error.kind(), error.code()) {
        _ if is_login(error) => ProducerError::Unsuitable(format!(
            "Redis at {address} wants another user or password ({reason}); give them in the URL: \
             redis://user:password@host"
        )),
        (_, Some("NOPERM")) => ProducerError::Unsuitable(format!(
            "Redis at {address} does not let this user do it ({step}: {reason}); ask for the commands and keys that \
             docs/CLI.md lists"
        )),
        (_, Some("READONLY")) => {
            let reason = format!("{reason}; this is a replica: connect to its master");
            ProducerError::Refused { step, reason }
        }
        (_, Some("OOM")) => {
            let reason = format!(
                "{reason}; this command wrote nothing: try again once turns have ended, or raise maxmemory"
            );
            ProducerError::Refused { step, reason }
        }
        (_, Some("WRONGTYPE")) => {
            let reason = format!("{reason}; turnmill doctor tells which keys are not ours");
            ProducerError::Refused { step, reason }
        }
        (ErrorKind::Io, _) => ProducerError::Unreachable { address: address.to_owned(), reason },
        (ErrorKind::UnexpectedReturnType | ErrorKind::Parse, _) => {
            ProducerError::Unreadable { what: format!("the answer to {step}"), reason }
        }
        _ => ProducerError::Refused { step, reason },
    }
}

/// Whether trying again can help: the connection broke, or the server is loading, failing over or busy.
pub(crate) fn passing(error: &RedisError) -> bool {
    !is_login(error) && (error.is_io_error() || !matches!(error.retry_method(), RetryMethod::NoRetry))
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
