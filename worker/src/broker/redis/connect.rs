//! Connections: a pool for short commands, one connection of its own for the blocking read.
//!
//! Invariant: no error text carries the password of the URL.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deadpool_redis::{Connection, Hook, Manager, Pool, Runtime};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, ErrorKind, FromRedisValue, IntoConnectionInfo};
use redis::{ConnectionAddr, RedisError, ScriptInvocation};
use rustls::crypto::CryptoProvider;
use turnmill_schema::keys::GROUP;

use super::facts::ServerFacts;
use super::steps::Step;
use super::{BrokerError, RedisBroker, RedisUrl};

/// How long the blocking read waits on the server.
pub(super) const BLOCK: Duration = Duration::from_millis(2000);
/// How long a short command may take; a full pool, a connection attempt: the same.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The client gives up on a blocking read this long after the server should have answered.
const BLOCK_MARGIN: Duration = Duration::from_secs(3);
/// Connections for short commands at most. They are multiplexed and short: a few keep a worker busy.
const POOL_CONNECTIONS: usize = 8;

/// Refusals that pass: a full server, one that loads its data or fails over, a group that is made again.
const PASSING: [&str; 11] = [
    "OOM",
    "LOADING",
    "BUSY",
    "TRYAGAIN",
    "READONLY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "NOREPLICAS",
    "MISCONF",
    "NOGROUP",
    "UNBLOCKED",
];

/// A Redis server and the ways to it.
pub(super) struct Server {
    client: Client,
    pool: Pool,
    masked_url: String,
    connects: Arc<Connects>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("url", &self.masked_url).finish_non_exhaustive()
    }
}

/// How often, and when last, a connection was made.
#[derive(Debug)]
struct Connects {
    count: AtomicU64,
    last: Mutex<Instant>,
}

impl Connects {
    fn note(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl Server {
    /// Prepares connections to `url`; none is made yet.
    pub(super) fn new(url: &RedisUrl) -> Result<Self, BrokerError> {
        let info = connection_info(url)?;
        let invalid = |e: &dyn std::fmt::Display| unusable_url(url, e);
        let manager = Manager::new_with_config(info.clone(), timeouts(TIMEOUT)).map_err(|e| invalid(&e))?;
        let connects = Arc::new(Connects { count: AtomicU64::new(0), last: Mutex::new(Instant::now()) });
        let noted = Arc::clone(&connects);
        let pool = Pool::builder(manager)
            .max_size(POOL_CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .timeouts(deadpool_redis::Timeouts {
                wait: Some(TIMEOUT),
                create: Some(TIMEOUT),
                recycle: Some(TIMEOUT),
            })
            .post_create(Hook::sync_fn(move |_, _| {
                noted.note();
                Ok(())
            }))
            .build()
            .map_err(|e| invalid(&e))?;
        let client = Client::open(info).map_err(|e| invalid(&e))?;
        Ok(Self { client, pool, masked_url: url.masked(), connects })
    }

    /// A connection for short commands, known to answer.
    pub(super) async fn connection(&self) -> Result<Connection, BrokerError> {
        self.pool.get().await.map_err(|e| self.unreachable(&e))
    }

    /// A new connection for the blocking read.
    pub(super) async fn reader(&self) -> Result<MultiplexedConnection, BrokerError> {
        let config = timeouts(BLOCK + BLOCK_MARGIN);
        let made = self.client.get_multiplexed_async_connection_with_config(&config).await;
        made.map_err(|e| self.unreachable(&e))
    }

    /// Grows with every connection made: what was known of the server before may be gone, since a server
    /// that restarted may have lost its last second.
    pub(super) fn generation(&self) -> u64 {
        self.connects.count.load(Ordering::SeqCst)
    }

    /// How long no connection had to be made.
    pub(super) fn steady_for(&self) -> Duration {
        self.connects.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Counts a lost connection that no pool notices.
    pub(super) fn note_lost_reader(&self) {
        self.connects.note();
    }

    /// Runs a script on a pooled connection.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        step: &Step,
        call: &ScriptInvocation<'_>,
    ) -> Result<T, BrokerError> {
        let mut connection = self.connection().await?;
        call.invoke_async(&mut connection).await.map_err(|e| self.error(step.name, &e))
    }

    /// Our words for an error of `step`.
    pub(super) fn error(&self, step: &'static str, error: &RedisError) -> BrokerError {
        match error.kind() {
            ErrorKind::Server(_)
            | ErrorKind::Extension
            | ErrorKind::Parse
            | ErrorKind::UnexpectedReturnType => {
                let passing = error.code().is_some_and(|code| PASSING.contains(&code));
                BrokerError::Refused { step, passing, reason: error.to_string() }
            }
            ErrorKind::AuthenticationFailed => BrokerError::Unsuitable(format!(
                "Redis at {} refused the user or password: {error}; correct redis_url",
                self.masked_url
            )),
            _ => self.unreachable(error),
        }
    }

    fn unreachable(&self, reason: &dyn std::fmt::Display) -> BrokerError {
        BrokerError::Unreachable { url: self.masked_url.clone(), reason: reason.to_string() }
    }
}

impl RedisBroker {
    /// Creates every ready stream with its group; groups start at 0, so that no token written before is missed.
    pub(super) async fn create_groups(&self) -> Result<(), BrokerError> {
        let mut connection = self.server.connection().await?;
        for stream in &self.streams {
            let mut create = redis::cmd("XGROUP");
            create.arg("CREATE").arg(&stream.key).arg(GROUP).arg(0).arg("MKSTREAM");
            match create.query_async::<()>(&mut connection).await {
                Err(e) if e.code() != Some("BUSYGROUP") => {
                    return Err(self.server.error("create the consumer group", &e));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Connects to `url` and tells what the server is; [`BrokerError::Unsuitable`] where it cannot carry a queue.
pub async fn check_server(url: &RedisUrl) -> Result<ServerFacts, BrokerError> {
    let server = Server::new(url)?;
    let mut connection = server.reader().await?;
    let info: String =
        redis::cmd("INFO").query_async(&mut connection).await.map_err(|e| server.error("INFO", &e))?;
    ServerFacts::from_info(&info).suitable(&server.masked_url)
}

fn connection_info(url: &RedisUrl) -> Result<ConnectionInfo, BrokerError> {
    let info = url.expose().into_connection_info().map_err(|e| unusable_url(url, &e))?;
    choose_cryptography(info.addr());
    // Deltas are small writes; Nagle's algorithm would hold them back.
    let tcp = TcpSettings::default().set_nodelay(true);
    Ok(info.set_tcp_settings(tcp))
}

/// The TLS library comes without cryptography; the process chooses one before its first `rediss://`.
fn choose_cryptography(address: &ConnectionAddr) {
    if matches!(address, ConnectionAddr::TcpTls { .. }) && CryptoProvider::get_default().is_none() {
        // An error means that another thread was faster, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

fn unusable_url(url: &RedisUrl, reason: &dyn std::fmt::Display) -> BrokerError {
    BrokerError::Unsuitable(format!(
        "redis_url {url} is not a Redis URL: {reason}; one looks like redis://host:6379"
    ))
}

fn timeouts(response: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(TIMEOUT)).set_response_timeout(Some(response))
}
