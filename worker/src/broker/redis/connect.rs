//! Connections: one that many tasks share for the steps of every turn, a pool for the rare commands, one of its own for
//! each read that blocks.
//!
//! Invariants: no error text carries the password of the URL; whatever breaks is replaced by the next call that needs
//! it, and counted, because a server that restarted may have lost its last second.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deadpool_redis::{Connection, Hook, Manager, Pool, Runtime};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue};
use redis::{IntoConnectionInfo, RedisError, TlsCertificates, Value};
use turnmill_schema::keys::GROUP;
use turnmill_schema::scripts::Call;

use super::facts::ServerFacts;
use super::steps::Step;
use super::waiting::BLOCK;
use super::{BrokerError, RedisBroker, RedisEndpoint, RedisUrl};
use crate::cryptography;

/// How long a short command may take; a full pool, a connection attempt: the same.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The client gives up on a blocking read this long after the server should have answered.
const BLOCK_MARGIN: Duration = Duration::from_secs(3);
/// Commands on the shared connection that wait for their answers, at most; more wait to be sent.
const SHARED_IN_FLIGHT: usize = 1024;
/// Connections for rare commands at most. They are multiplexed and short: a few keep a worker busy.
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

fn is_passing(code: &str) -> bool {
    PASSING.contains(&code)
}

/// A Redis server and the ways to it.
pub(super) struct Server {
    client: Client,
    pool: Pool,
    shared: tokio::sync::Mutex<Option<Shared>>,
    masked_url: String,
    connects: Arc<Connects>,
}

/// A connection that many tasks use at once: what they send together goes out together.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) connection: MultiplexedConnection,
    /// Which of the connections made it is: what was known of the server before may not hold.
    pub(super) generation: u64,
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
    /// One more; returns how many there were before.
    fn note(&self) -> u64 {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.count.fetch_add(1, Ordering::SeqCst)
    }
}

impl Server {
    /// Prepares connections to `redis`; none is made yet.
    pub(super) fn new(redis: &RedisEndpoint) -> Result<Self, BrokerError> {
        let RedisEndpoint { url, ca } = redis;
        let invalid = |e: &dyn std::fmt::Display| unusable_url(url, e);
        let info = connection_info(url)?;
        let client = match ca {
            Some(file) => trusting(info, file)?,
            None => Client::open(info).map_err(|e| invalid(&e))?,
        };
        let info = client.get_connection_info().clone();
        let manager = Manager::new_with_config(info, timeouts(TIMEOUT)).map_err(|e| invalid(&e))?;
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
        let shared = tokio::sync::Mutex::default();
        Ok(Self { client, pool, shared, masked_url: url.masked(), connects })
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

    /// The connection for the steps of turns.
    pub(super) async fn shared(&self) -> Result<Shared, BrokerError> {
        let mut shared = self.shared.lock().await;
        if let Some(shared) = &*shared {
            return Ok(shared.clone());
        }
        let config = timeouts(TIMEOUT).set_pipeline_buffer_size(SHARED_IN_FLIGHT);
        let made = self.client.get_multiplexed_async_connection_with_config(&config).await;
        let connection = made.map_err(|e| self.unreachable(&e))?;
        let made = Shared { connection, generation: self.connects.note() };
        *shared = Some(made.clone());
        Ok(made)
    }

    /// Our words for an error of `step` on `used`. Where it says that the connection is of no more use, the next caller
    /// gets another.
    pub(super) async fn shared_error(
        &self,
        used: &Shared,
        step: &'static str,
        error: &RedisError,
    ) -> BrokerError {
        if error.is_io_error() || error.is_unrecoverable_error() {
            let mut shared = self.shared.lock().await;
            if shared.as_ref().is_some_and(|shared| shared.generation == used.generation) {
                *shared = None;
            }
        }
        self.error(step, error)
    }

    /// A connection for published messages.
    pub(super) async fn subscriber(&self) -> Result<redis::aio::PubSub, BrokerError> {
        let made = tokio::time::timeout(TIMEOUT, self.client.get_async_pubsub()).await;
        made.map_err(|e| self.unreachable(&e))?.map_err(|e| self.unreachable(&e))
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
    pub(super) async fn run<T: FromRedisValue>(&self, step: &Step, call: &Call) -> Result<T, BrokerError> {
        let mut connection = self.connection().await?;
        step.invocation(call).invoke_async(&mut connection).await.map_err(|e| self.error(step.name, &e))
    }

    /// Runs a script on the shared connection.
    pub(super) async fn run_shared(&self, step: &Step, call: &Call) -> Result<Value, BrokerError> {
        let shared = self.shared().await?;
        match step.invocation(call).invoke_async(&mut shared.connection.clone()).await {
            Ok(value) => Ok(value),
            Err(e) => Err(self.shared_error(&shared, step.name, &e).await),
        }
    }

    /// Our words for an error of `step`.
    pub(super) fn error(&self, step: &'static str, error: &RedisError) -> BrokerError {
        match error.kind() {
            ErrorKind::Server(_)
            | ErrorKind::Extension
            | ErrorKind::Parse
            | ErrorKind::UnexpectedReturnType => {
                let passing = error.code().is_some_and(is_passing);
                BrokerError::Refused { step, passing, reason: error.to_string() }
            }
            ErrorKind::AuthenticationFailed => BrokerError::Unsuitable(format!(
                "Redis at {} refused the user or password: {error}; correct redis_url",
                self.masked_url
            )),
            _ => self.unreachable(error),
        }
    }

    /// The server went away in the middle of `what`.
    pub(super) fn lost(&self, what: &str) -> BrokerError {
        self.unreachable(&format!("{what} was lost"))
    }

    /// The error of one item of `step`, in the script's words.
    pub(super) fn item_error(&self, step: &'static str, reason: String) -> BrokerError {
        let passing = reason.split(' ').next().is_some_and(is_passing);
        BrokerError::Refused { step, passing, reason }
    }

    fn unreachable(&self, reason: &dyn std::fmt::Display) -> BrokerError {
        BrokerError::Unreachable { url: self.masked_url.clone(), reason: reason.to_string() }
    }
}

impl RedisBroker {
    /// Creates every ready stream with its group; groups start at 0, so that no ticket written before is missed.
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

    /// Asks for the server's time. A worker may enter itself in the registry before anything else was answered.
    pub(super) async fn set_clock(&self) -> Result<(), BrokerError> {
        let mut connection = self.server.connection().await?;
        let time = redis::cmd("TIME")
            .query_async(&mut connection)
            .await
            .map_err(|e| self.server.error("TIME", &e))?;
        self.held.clock().set_time(time);
        Ok(())
    }
}

/// Connects to `redis` and tells what the server is; [`BrokerError::Unsuitable`] where it cannot carry a queue.
pub async fn check_server(redis: &RedisEndpoint) -> Result<ServerFacts, BrokerError> {
    let server = Server::new(redis)?;
    let mut connection = server.reader().await?;
    let info: String =
        redis::cmd("INFO").query_async(&mut connection).await.map_err(|e| server.error("INFO", &e))?;
    ServerFacts::from_info(&info).suitable(&server.masked_url)
}

fn connection_info(url: &RedisUrl) -> Result<ConnectionInfo, BrokerError> {
    if let Some(problem) = url.problem() {
        return Err(BrokerError::Unsuitable(format!("redis_url {problem}")));
    }
    let info = url.expose().into_connection_info().map_err(|e| unusable_url(url, &e))?;
    if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
        cryptography::choose();
    }
    // Deltas are small writes; Nagle's algorithm would hold them back.
    let tcp = TcpSettings::default().set_nodelay(true);
    Ok(info.set_tcp_settings(tcp))
}

/// A client that believes the authorities of a PEM file and no others.
fn trusting(info: ConnectionInfo, file: &Path) -> Result<Client, BrokerError> {
    let unusable = |what: &str, e: &dyn std::fmt::Display| {
        let file = file.display();
        BrokerError::Unsuitable(format!("redis_ca {file} {what}: {e}; name a PEM file of certificates"))
    };
    let pem = std::fs::read(file).map_err(|e| unusable("cannot be read", &e))?;
    if !String::from_utf8_lossy(&pem).contains("BEGIN CERTIFICATE") {
        return Err(unusable("holds no certificate", &"every server would be refused"));
    }
    let certificates = TlsCertificates { client_tls: None, root_cert: Some(pem) };
    Client::build_with_tls(info, certificates).map_err(|e| unusable("is not usable", &e))
}

fn unusable_url(url: &RedisUrl, reason: &dyn std::fmt::Display) -> BrokerError {
    BrokerError::Unsuitable(format!(
        "redis_url {url} is not a Redis URL: {reason}; one looks like redis://host:6379"
    ))
}

fn timeouts(response: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(TIMEOUT)).set_response_timeout(Some(response))
}
