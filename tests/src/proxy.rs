//! A TCP proxy that hurts: it stands between one client and Redis, passes bytes both ways, and on demand cuts
//! connections, holds bytes back, or lets nobody in.
//!
//! Invariant: bytes that are held are passed on in order once they are released, or dropped with their connection
//! where that is cut first. Holding replies and then cutting is how a reply gets lost after its command was done.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What is held back just now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// Everything passes.
    #[default]
    Nothing,
    /// Commands reach the server, its answers do not come back.
    Replies,
    /// Nothing passes in either direction.
    Everything,
}

/// A running proxy; its connections are cut when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

struct Shared {
    server: watch::Sender<SocketAddr>,
    hold: watch::Sender<Hold>,
    state: Mutex<State>,
    stop: CancellationToken,
}

#[derive(Default)]
struct State {
    refusing: bool,
    connections: BTreeMap<u64, Connection>,
    made: u64,
}

/// A client's connection.
#[derive(Clone)]
struct Connection {
    /// Cancelled, it is closed.
    cut: CancellationToken,
    /// Cancelled, it stays open and passes nothing.
    forgotten: CancellationToken,
}

impl Proxy {
    /// Listens on a free local port and connects all who come to `server`.
    pub async fn start(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            server: watch::Sender::new(server),
            hold: watch::Sender::new(Hold::Nothing),
            state: Mutex::default(),
            stop: stop.clone(),
        });
        tokio::spawn(stop.clone().run_until_cancelled_owned(listen(listener, shared.clone())));
        Ok(Self { address, shared, _stop: stop.drop_guard() })
    }

    /// Where clients connect: `redis://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Whether it lets everybody in and holds nothing back.
    pub fn is_clear(&self) -> bool {
        *self.shared.hold.borrow() == Hold::Nothing && !self.shared.lock().refusing
    }

    /// How many clients are connected.
    pub fn connections(&self) -> usize {
        self.shared.lock().connections.len()
    }

    /// Cuts every connection; how many there were.
    pub fn cut_all(&self) -> usize {
        let cut = std::mem::take(&mut self.shared.lock().connections);
        cut.values().for_each(|connection| connection.cut.cancel());
        cut.len()
    }

    /// From now on the connections that there are pass nothing, though they stay open: as a firewall does with those that were idle
    /// for too long. Both sides only learn of it by waiting in vain.
    pub fn forget_all(&self) {
        self.shared.lock().connections.values().for_each(|connection| connection.forgotten.cancel());
    }

    /// Cuts the connection that `choice`, a random number, falls on. False if there is none.
    pub fn cut_one(&self, choice: u64) -> bool {
        let mut state = self.shared.lock();
        let count = state.connections.len().max(1) as u64;
        let Some(id) = state.connections.keys().nth((choice % count) as usize).copied() else { return false };
        state.connections.remove(&id).is_some_and(|connection| {
            connection.cut.cancel();
            true
        })
    }

    /// From now on connects all who come to another server; those who are connected stay with the old one.
    pub fn lead_to(&self, server: SocketAddr) {
        self.shared.server.send_replace(server);
    }

    /// From now on holds back what `hold` says, and passes on the rest.
    pub fn hold(&self, hold: Hold) {
        self.shared.hold.send_replace(hold);
    }

    /// From now on closes new connections at once, or lets them in again.
    pub fn refuse(&self, refusing: bool) {
        self.shared.lock().refusing = refusing;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a single insert, remove or store, so a panic elsewhere left nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new connection and its number; none where nobody is let in.
    fn admit(&self) -> Option<(u64, Connection)> {
        let mut state = self.lock();
        if state.refusing {
            return None;
        }
        state.made += 1;
        let connection = Connection { cut: self.stop.child_token(), forgotten: CancellationToken::new() };
        let id = state.made;
        state.connections.insert(id, connection.clone());
        Some((id, connection))
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        // An error is the client's (it went away) or passes (no file descriptor is free).
        let Ok((client, _)) = listener.accept().await else { continue };
        let Some((id, connection)) = shared.admit() else { continue };
        let shared = shared.clone();
        tokio::spawn(async move {
            // What is held back when a connection is cut is lost, also if the hold ends in the same moment. However it ends, both
            // sides are closed by dropping them.
            tokio::select! {
                biased;
                () = connection.cut.cancelled() => {}
                _ended = connect(client, &shared, &connection.forgotten) => {}
            }
            shared.lock().connections.remove(&id);
        });
    }
}

async fn connect(client: TcpStream, shared: &Shared, forgotten: &CancellationToken) -> io::Result<()> {
    let address = *shared.server.borrow();
    let server = TcpStream::connect(address).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let hold = || shared.hold.subscribe();
    let commands = pump(from_client, to_server, hold(), |hold| *hold != Hold::Everything, forgotten);
    let replies = pump(from_server, to_client, hold(), |hold| *hold == Hold::Nothing, forgotten);
    // A server that is gone must be seen by its client at once, and the other way round.
    tokio::select! {
        ended = commands => ended,
        ended = replies => ended,
    }
}

/// Passes bytes on until `from` ends, each read once `passes` lets it. Drops them once the connection is forgotten.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut hold: watch::Receiver<Hold>,
    passes: fn(&Hold) -> bool,
    forgotten: &CancellationToken,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 || hold.wait_for(passes).await.is_err() {
            return Ok(());
        }
        if !forgotten.is_cancelled() {
            to.write_all(&buffer[..read]).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use redis::aio::MultiplexedConnection;
    use redis::{AsyncCommands, AsyncConnectionConfig, RedisResult};

    use super::*;
    use crate::redis_server::RedisServer;

    async fn line() -> (RedisServer, Proxy) {
        let redis = RedisServer::start();
        let proxy = Proxy::start(redis.address()).await.expect("a local port is free");
        (redis, proxy)
    }

    async fn client(url: &str) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(20)));
        redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await
    }

    async fn set(mut client: MultiplexedConnection, value: u32) -> RedisResult<()> {
        client.set("key", value).await
    }

    /// Waits until Redis itself holds `value`.
    async fn until_stored(redis: &RedisServer, value: u32) {
        let mut direct = client(&redis.url()).await.expect("Redis answers");
        let stored = async {
            while direct.get::<_, Option<u32>>("key").await.expect("GET") != Some(value) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(crate::PATIENCE, stored).await.expect("the command arrives");
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_a_cut_connection_can_be_made_again() {
        let (redis, proxy) = line().await;
        let first = client(&proxy.url()).await.expect("connects");
        let mut second = client(&proxy.url()).await.expect("connects");
        set(first.clone(), 1).await.expect("SET");
        assert_eq!((second.get("key").await, proxy.connections()), (Ok(1), 2));
        let large = vec![7_u8; 1 << 20];
        let () = second.set("large", &large).await.expect("SET");
        assert_eq!(second.get::<_, Vec<u8>>("large").await, Ok(large));

        assert_eq!(proxy.cut_all(), 2);
        set(first, 2).await.expect_err("it was cut");
        set(second, 2).await.expect_err("it was cut, too");
        set(client(&proxy.url()).await.expect("connects again"), 3).await.expect("SET");
        until_stored(&redis, 3).await;
    }

    #[tokio::test]
    async fn connections_that_were_forgotten_stay_open_and_say_nothing_and_new_ones_work() {
        let (redis, proxy) = line().await;
        let first = client(&proxy.url()).await.expect("connects");
        proxy.forget_all();
        let asked = tokio::spawn(set(first, 1));
        let second = client(&proxy.url()).await.expect("connects");
        set(second.clone(), 2).await.expect("SET");
        until_stored(&redis, 2).await;
        assert!(!asked.is_finished() && proxy.connections() == 2);
    }

    #[tokio::test]
    async fn one_of_two_connections_is_cut() {
        let (_redis, proxy) = line().await;
        assert!(!proxy.cut_one(5), "there is none yet");
        let first = client(&proxy.url()).await.expect("connects");
        let second = client(&proxy.url()).await.expect("connects");
        assert!(proxy.cut_one(5));
        set(second, 1).await.expect_err("5 falls on the second of two");
        set(first, 1).await.expect("the other one lives");
    }

    #[tokio::test]
    async fn held_replies_are_lost_by_a_cut_and_their_command_was_done() {
        let (redis, proxy) = line().await;
        let asking = client(&proxy.url()).await.expect("connects");
        proxy.hold(Hold::Replies);
        let asked = tokio::spawn(set(asking, 4));
        until_stored(&redis, 4).await;
        assert!(!asked.is_finished(), "the answer is held");
        proxy.cut_all();
        asked.await.expect("no panic").expect_err("the answer is lost");
    }

    #[tokio::test]
    async fn what_is_held_arrives_late_and_whole() {
        let (redis, proxy) = line().await;
        let asking = client(&proxy.url()).await.expect("connects");
        let mut direct = client(&redis.url()).await.expect("Redis answers");
        let () = direct.set("key", 0).await.expect("SET");
        proxy.hold(Hold::Everything);
        let asked = tokio::spawn(set(asking, 5));
        // A command sent later on another connection overtakes it.
        let () = direct.set("key", 6).await.expect("SET");
        assert_eq!(direct.get("key").await, Ok(6));
        proxy.hold(Hold::Nothing);
        asked.await.expect("no panic").expect("the answer comes");
        assert_eq!(direct.get("key").await, Ok(5));
    }

    #[tokio::test]
    async fn nobody_is_let_in_while_it_refuses() {
        let (_redis, proxy) = line().await;
        let before = client(&proxy.url()).await.expect("connects");
        proxy.refuse(true);
        assert!(client(&proxy.url()).await.is_err());
        set(before, 1).await.expect("who is in stays in");
        proxy.refuse(false);
        client(&proxy.url()).await.expect("connects");
    }

    #[tokio::test]
    async fn a_server_that_goes_away_is_seen_at_once() {
        let (mut redis, proxy) = line().await;
        let asking = client(&proxy.url()).await.expect("connects");
        redis.crash();
        set(asking.clone(), 1).await.expect_err("the server is gone");
        redis.restart();
        set(client(&proxy.url()).await.expect("connects"), 2).await.expect("SET");
    }
}
