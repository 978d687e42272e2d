//! A Redis server and the ways to it: one connection that many tasks share for the steps of turns, a pool for the rest, and
//! one of its own for each read that blocks and each subscription.
//!
//! Invariants: no error text carries the password of the URL; a connection is used only while its server is the queue's
//! primary, as far as its answers tell: a server that says that it is a replica, or loads, or another server at the same
//! address, ends the era, and with that every connection made before; whatever breaks is replaced by the next call that
//! needs it, and counted, because a server that restarted may have lost its last second.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deadpool::Runtime;
use deadpool::managed::{Pool, PoolError, Timeouts};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, FromRedisValue, IntoConnectionInfo,
    Pipeline, RedisError, Script, TlsCertificates, Value,
};
use tokio::sync::watch;
use turnmill_schema::keys::Keys;

use crate::call::{Call, ItemStep, Step};
use crate::clock::ServerClock;
use crate::cryptography;
use crate::facts::ServerFacts;
use crate::fault::{self, Fault};
use crate::link::{Link, Manager};
use crate::url::{Endpoint, RedisUrl};

/// How long establishing a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Commands on the shared connection that wait for their answers, at most; more wait to be sent.
const SHARED_IN_FLIGHT: usize = 1024;
/// Connections for rare commands at most. They are multiplexed and short: a few keep a program busy.
const POOL_CONNECTIONS: usize = 8;
/// How long one short command may take, unless set.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A Redis server and the ways to it.
pub struct Server {
    pub(crate) client: Client,
    /// Whether it must be able to carry a queue.
    demanding: bool,
    pool: Pool<Manager>,
    shared: tokio::sync::Mutex<Option<Link>>,
    address: String,
    response_timeout: Duration,
    known: Mutex<Known>,
    /// The era, for a task that waits on a connection and must hear that the connection is of no use any more.
    era: watch::Sender<u64>,
    clock: ServerClock,
    scripts: Mutex<HashMap<&'static str, Arc<Script>>>,
}

/// What is known of the server at the address.
#[derive(Debug)]
struct Known {
    /// Of the server that answered last.
    run_id: String,
    /// Connections ever made.
    connections: u64,
    /// When one was made last, or broke.
    changed: Instant,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Prepares connections to `endpoint`; none is made yet.
    ///
    /// # Errors
    /// [`Fault::Unsuitable`] if the URL or the file of authorities is of no use.
    pub fn new(endpoint: &Endpoint, response_timeout: Duration) -> Result<Arc<Self>, Fault> {
        Self::prepare(endpoint, response_timeout, true)
    }

    /// As [`Server::new`], for one who wants to know what is wrong with the server: it is taken as it is.
    ///
    /// # Errors
    /// As [`Server::new`].
    pub fn undemanding(endpoint: &Endpoint, response_timeout: Duration) -> Result<Arc<Self>, Fault> {
        Self::prepare(endpoint, response_timeout, false)
    }

    fn prepare(endpoint: &Endpoint, response_timeout: Duration, demanding: bool) -> Result<Arc<Self>, Fault> {
        let Endpoint { url, ca } = endpoint;
        let info = connection_info(url)?;
        let address = info.addr().to_string();
        let client = match ca {
            Some(file) => trusting(info, file)?,
            None => Client::open(info).map_err(|error| unusable_url(url, &error))?,
        };
        let config = timeouts(response_timeout);
        Ok(Arc::new_cyclic(|server| {
            let manager = Manager { server: server.clone(), config };
            let pool = Pool::builder(manager)
                .max_size(POOL_CONNECTIONS)
                .runtime(Runtime::Tokio1)
                .timeouts(Timeouts {
                    wait: Some(response_timeout),
                    create: Some(CONNECT_TIMEOUT + response_timeout),
                    recycle: Some(response_timeout),
                })
                .build()
                .expect("a pool with timeouts has a runtime");
            let known = Known { run_id: String::new(), connections: 0, changed: Instant::now() };
            Self {
                client,
                demanding,
                pool,
                shared: tokio::sync::Mutex::default(),
                address,
                response_timeout,
                known: Mutex::new(known),
                era: watch::Sender::new(0),
                clock: ServerClock::default(),
                scripts: Mutex::default(),
            }
        }))
    }

    /// Where it is: host and port, or a socket's path. Never a password.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The server's clock.
    pub fn clock(&self) -> &ServerClock {
        &self.clock
    }

    /// Connects once and tells what the server is.
    ///
    /// # Errors
    /// [`Fault::Unsuitable`] if it cannot carry a queue until an operator changes something: too old, evicting, or a
    /// replica. [`Fault::Stale`] if it loads its data. A user who may not ask takes the server as it is.
    pub async fn check(&self) -> Result<ServerFacts, Fault> {
        let made =
            self.client.get_multiplexed_async_connection_with_config(&timeouts(self.response_timeout)).await;
        let mut connection = made.map_err(|error| self.classify("connect", &error))?;
        let facts = self.ask_facts(&mut connection, &["everything"]).await?;
        if facts.loading {
            return Err(self.stale("it is loading its data"));
        }
        if facts.role == "slave" {
            return Err(Fault::Unsuitable(format!(
                "Redis at {} is a read-only replica (role {}); give its master's address",
                self.address, facts.role
            )));
        }
        match facts.unsuitable(&self.address) {
            Some(reason) => Err(Fault::Unsuitable(reason)),
            None => Ok(facts),
        }
    }

    /// Makes sure that the server answers, and that it can carry a queue unless this is [`Server::undemanding`].
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn reach(&self) -> Result<(), Fault> {
        self.pooled().await.map(drop)
    }

    /// Replaces the text of a step's script: for tests that show what a check in it is for.
    pub fn replace_script(&self, name: &'static str, text: &str) {
        self.lock(&self.scripts).insert(name, Arc::new(Script::new(text)));
    }

    /// How long no connection had to be made. Idle times of pending entries count a server's downtime, so nobody's work
    /// is taken over before this is a whole lease.
    pub fn steady_for(&self) -> Duration {
        self.lock(&self.known).changed.elapsed()
    }

    /// Takes a step.
    ///
    /// # Errors
    /// See [`Fault`]. After [`Fault::Unreachable`] the step may have been taken; it may be repeated.
    pub async fn run<S: Step>(&self, keys: &Keys, step: &S) -> Result<S::Reply, Fault> {
        let reply = self.script(S::NAME, S::SCRIPT, &step.call(keys)).await?;
        S::read(reply).map_err(|error| unreadable(S::NAME, &error.into()))
    }

    /// Takes a step for many items at once; an answer for each, in order.
    ///
    /// # Errors
    /// See [`Fault`]: of the whole call, or of one item.
    pub async fn run_items<'a, S: ItemStep + 'a>(
        &self,
        keys: &Keys,
        common: &S::Common,
        items: impl IntoIterator<Item = &'a S>,
    ) -> Result<Vec<Result<S::Answer, Fault>>, Fault> {
        let mut call = Call::new(keys);
        S::begin(common, &mut call);
        let mut count = 0;
        for item in items {
            item.add(keys, &mut call);
            count += 1;
        }
        let link = self.shared_link().await?;
        let reply = self.invoke(S::NAME, S::SCRIPT, &call, &mut link.connection.clone()).await;
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => return Err(self.shared_fault(&link, S::NAME, &error).await),
        };
        let read: Result<(u64, Vec<Value>), _> = redis::from_redis_value(reply);
        let (now_ms, answers) = read.map_err(|error| unreadable(S::NAME, &error.into()))?;
        self.clock.set(now_ms);
        if answers.len() != count {
            let reason = format!("it answers {} of {count} items", answers.len());
            return Err(Fault::Unreadable { step: S::NAME, reason });
        }
        Ok(answers.into_iter().map(|answer| self.item::<S>(answer)).collect())
    }

    /// An item's answer; `error` and a reason are the script's way to say that it could not be read.
    fn item<S: ItemStep>(&self, answer: Value) -> Result<S::Answer, Fault> {
        if let Value::Array(parts) = &answer
            && let [Value::BulkString(status), Value::BulkString(reason)] = &parts[..]
            && status == b"error"
        {
            let reason = String::from_utf8_lossy(reason).into_owned();
            return Err(fault::classify_text(S::NAME, &self.address, reason));
        }
        S::read(answer).map_err(|error| unreadable(S::NAME, &error.into()))
    }

    /// Runs a script on a pooled connection.
    async fn script(&self, name: &'static str, text: &'static str, call: &Call) -> Result<Value, Fault> {
        let mut link = self.pooled().await?;
        let answer = self.invoke(name, text, call, &mut link.connection).await;
        answer.map_err(|error| self.pooled_fault(&link, name, &error))
    }

    /// Runs a command on a pooled connection.
    pub(crate) async fn ask<T: FromRedisValue>(&self, step: &'static str, command: &Cmd) -> Result<T, Fault> {
        let mut link = self.pooled().await?;
        let answer = command.query_async(&mut link.connection).await;
        answer.map_err(|error| self.pooled_fault(&link, step, &error))
    }

    /// Runs commands in one round trip on a pooled connection.
    pub(crate) async fn ask_all<T: FromRedisValue>(
        &self,
        step: &'static str,
        commands: &Pipeline,
    ) -> Result<T, Fault> {
        let mut link = self.pooled().await?;
        let answer = commands.query_async(&mut link.connection).await;
        answer.map_err(|error| self.pooled_fault(&link, step, &error))
    }

    /// Sets the clock by an answer to `TIME`: seconds and microseconds.
    pub(crate) fn note_time(&self, (seconds, micros): (u64, u64)) -> u64 {
        let now_ms = seconds * 1000 + micros / 1000;
        self.clock.set(now_ms);
        now_ms
    }

    /// Sets the clock by what a step answered, in Unix milliseconds.
    pub fn note_now_ms(&self, now_ms: u64) {
        self.clock.set(now_ms);
    }

    /// Asks for the server's time, in Unix milliseconds.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn now_ms(&self) -> Result<u64, Fault> {
        Ok(self.note_time(self.ask("reading the clock", &redis::cmd("TIME")).await?))
    }

    pub(crate) async fn invoke(
        &self,
        name: &'static str,
        text: &'static str,
        call: &Call,
        connection: &mut MultiplexedConnection,
    ) -> Result<Value, RedisError> {
        let known = self.lock(&self.scripts).get(name).cloned();
        let script = known.unwrap_or_else(|| {
            let script = Arc::new(Script::new(text));
            self.lock(&self.scripts).insert(name, Arc::clone(&script));
            script
        });
        let mut invocation = script.prepare_invoke();
        for key in &call.keys {
            invocation.key(key.as_str());
        }
        for arg in &call.args {
            invocation.arg(arg.as_slice());
        }
        invocation.invoke_async(connection).await
    }

    /// A connection for short commands. It goes back to the pool before anything is asked on it: a caller that nobody polls must
    /// not keep it from others, and many questions go over one connection side by side.
    async fn pooled(&self) -> Result<Link, Fault> {
        match self.pool.get().await {
            Ok(link) => Ok(link.clone()),
            Err(PoolError::Backend(fault)) => Err(fault),
            Err(other) => Err(self.unreachable(&other)),
        }
    }

    /// The connection for the steps of turns.
    pub(crate) async fn shared_link(&self) -> Result<Link, Fault> {
        let mut shared = self.shared.lock().await;
        // It stays in its place meanwhile: a caller that goes away must not take a good connection with it.
        if let Some(link) = &mut *shared
            && link.recheck(self).await.is_ok()
        {
            return Ok(link.clone());
        }
        let config = timeouts(self.response_timeout).set_pipeline_buffer_size(SHARED_IN_FLIGHT);
        Ok(shared.insert(Link::open(self, &config).await?).clone())
    }

    /// Our words for an error of `step` on the shared connection. If it says that the connection is of no more use, the
    /// next caller gets another.
    pub(crate) async fn shared_fault(&self, used: &Link, step: &'static str, error: &RedisError) -> Fault {
        let fault = self.classify(step, error);
        if fault.is_outage() || error.is_unrecoverable_error() {
            let mut shared = self.shared.lock().await;
            if shared.as_ref().is_some_and(|shared| shared.generation == used.generation) {
                *shared = None;
            }
        }
        fault
    }

    fn pooled_fault(&self, link: &Link, step: &'static str, error: &RedisError) -> Fault {
        let fault = self.classify(step, error);
        if fault.is_outage() || error.is_unrecoverable_error() {
            link.give_up();
        }
        fault
    }

    /// Our words for an error of `step`. One that says that the server is not the primary ends the era.
    pub(crate) fn classify(&self, step: &'static str, error: &RedisError) -> Fault {
        let fault = fault::classify(step, &self.address, error);
        if matches!(fault, Fault::Stale { .. }) {
            self.end_era();
        }
        fault
    }

    /// Asks the server at the other end of `connection` who it is.
    pub(crate) async fn verify(&self, connection: &mut MultiplexedConnection) -> Result<(), Fault> {
        let facts = self.ask_facts(connection, &["server", "replication", "persistence", "memory"]).await?;
        let trouble =
            facts.trouble_that_passes().map(str::to_owned).or_else(|| facts.unsuitable(&self.address));
        if let Some(reason) = trouble.filter(|_| self.demanding) {
            self.end_era();
            return Err(self.stale(&reason));
        }
        let before = std::mem::replace(&mut self.lock(&self.known).run_id, facts.run_id.clone());
        if !before.is_empty() && before != facts.run_id {
            tracing::info!(
                address = self.address,
                run_id = facts.run_id,
                "another Redis server, or a restarted one, answers"
            );
            self.end_era();
        }
        Ok(())
    }

    async fn ask_facts(
        &self,
        connection: &mut MultiplexedConnection,
        sections: &[&str],
    ) -> Result<ServerFacts, Fault> {
        let mut info = redis::cmd("INFO");
        info.arg(sections);
        match info.query_async::<String>(connection).await {
            Ok(info) => Ok(ServerFacts::from_info(&info)),
            // A user without that right: commands will tell.
            Err(error) if error.code() == Some("NOPERM") => Ok(ServerFacts::default()),
            Err(error) => Err(self.classify("INFO", &error)),
        }
    }

    /// Connections made so far are of no use any more.
    pub(crate) fn end_era(&self) {
        self.lock(&self.known).changed = Instant::now();
        self.era.send_modify(|era| *era += 1);
    }

    /// Counts a connection: its era and its number.
    pub(crate) fn note_connection(&self) -> (u64, u64) {
        let mut known = self.lock(&self.known);
        known.connections += 1;
        known.changed = Instant::now();
        (*self.era.borrow(), known.connections)
    }

    /// Counts a connection that broke and that no pool notices.
    pub(crate) fn note_broken(&self) {
        self.lock(&self.known).changed = Instant::now();
    }

    pub(crate) fn expect_era(&self, era: u64) -> Result<(), Fault> {
        if *self.era.borrow() == era {
            Ok(())
        } else {
            Err(self.stale("another server may answer at its address"))
        }
    }

    /// Tells of the end of the era.
    pub(crate) fn eras(&self) -> watch::Receiver<u64> {
        self.era.subscribe()
    }

    pub(crate) fn response_timeout(&self) -> Duration {
        self.response_timeout
    }

    pub(crate) fn stale(&self, reason: &str) -> Fault {
        Fault::Stale { address: self.address.clone(), reason: reason.to_owned() }
    }

    pub(crate) fn unreachable(&self, reason: &dyn std::fmt::Display) -> Fault {
        Fault::Unreachable { address: self.address.clone(), reason: reason.to_string() }
    }

    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
        // Every change under these locks is a single assignment, so a panic elsewhere left nothing half done.
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer that is not one of the protocol.
pub(crate) fn unreadable(step: &'static str, error: &RedisError) -> Fault {
    Fault::Unreadable { step, reason: fault::unquoted(&error.to_string()) }
}

fn connection_info(url: &RedisUrl) -> Result<ConnectionInfo, Fault> {
    if let Some(problem) = url.problem() {
        return Err(Fault::Unsuitable(format!("the Redis URL {problem}")));
    }
    let info = url.expose().into_connection_info().map_err(|error| unusable_url(url, &error))?;
    if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
        cryptography::choose();
    }
    // Deltas are small writes; Nagle's algorithm would hold them back.
    let tcp = TcpSettings::default().set_nodelay(true);
    Ok(info.set_tcp_settings(tcp))
}

/// A client that believes the authorities of a PEM file and no others.
fn trusting(info: ConnectionInfo, file: &Path) -> Result<Client, Fault> {
    let unusable = |what: &str, reason: &dyn std::fmt::Display| {
        let file = file.display();
        Fault::Unsuitable(format!(
            "the file of authorities {file} {what}: {reason}; name a PEM file of certificates"
        ))
    };
    let pem = std::fs::read(file).map_err(|error| unusable("cannot be read", &error))?;
    if !String::from_utf8_lossy(&pem).contains("BEGIN CERTIFICATE") {
        return Err(unusable("holds no certificate", &"every server would be refused"));
    }
    let certificates = TlsCertificates { client_tls: None, root_cert: Some(pem) };
    Client::build_with_tls(info, certificates).map_err(|error| unusable("is not usable", &error))
}

fn unusable_url(url: &RedisUrl, reason: &dyn std::fmt::Display) -> Fault {
    Fault::Unsuitable(format!(
        "{} is not a Redis URL: {reason}; one looks like redis://host:6379, with reserved characters of a password \
         percent-encoded",
        url.masked()
    ))
}

/// How a connection behaves whose answers may take so long.
pub(crate) fn timeouts(response: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(response))
}
