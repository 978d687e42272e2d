//! The connections of the HTTP server.
//!
//! Invariants: there are never more than a fixed number of them, because each takes a descriptor that Redis or the store may
//! need; a new client is always let in, if need be in place of the one that has been idle longest; a request that does not
//! come to its end is given up after [`PATIENCE`].

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at most: orchestrator, Prometheus and a few people have room, and the program keeps its descriptors.
const MOST: u64 = 64;
/// Connections at least, however few descriptors there are.
const LEAST: u64 = 4;
/// The share of all descriptors that connections may take is one in this many.
const SHARE: u64 = 8;

/// Time for the head of a request, and once more for its body and the answer. A connection that is kept open for another
/// request waits this long for it, too.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest head of a request.
const HEAD_BYTES: usize = 16 << 10;

/// Pause after the system refused a connection, so that the refusals do not become a busy loop.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);
/// Time between two log lines about a crowd.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// What stands for "idle since" while a request is answered.
const ANSWERING: u64 = u64::MAX;

/// How many connections may be open if the process may have `descriptors`.
fn limit(descriptors: u64) -> usize {
    (descriptors / SHARE).clamp(LEAST, MOST) as usize
}

/// An open connection.
struct Open {
    task: AbortHandle,
    /// When it was last waited for, counted in waits of all connections; or [`ANSWERING`].
    idle_since: Arc<AtomicU64>,
}

/// All open connections.
pub(super) struct Connections {
    router: Router,
    limit: usize,
    open: Vec<Open>,
    tasks: TaskTracker,
    waits: Arc<AtomicU64>,
    warned: Option<Instant>,
    shutdown: CancellationToken,
}

impl Connections {
    /// None yet. `shutdown` lets them end their answers and nothing more.
    pub fn new(router: Router, descriptors: u64, shutdown: CancellationToken) -> Self {
        Self {
            router,
            limit: limit(descriptors),
            open: Vec::new(),
            tasks: TaskTracker::new(),
            waits: Arc::default(),
            warned: None,
            shutdown,
        }
    }

    /// Answers the requests of a new client.
    pub fn add(&mut self, stream: TcpStream, peer: SocketAddr) {
        self.open.retain(|connection| !connection.task.is_finished());
        if self.open.len() >= self.limit {
            self.close_oldest();
            self.warn(
                "there are too many HTTP connections; the ones that were idle longest are closed",
                None,
            );
        }
        let idle_since = Arc::new(AtomicU64::new(self.waits.fetch_add(1, Ordering::Relaxed)));
        let conversation = Conversation {
            router: TowerToHyperService::new(self.router.clone()),
            peer,
            waits: self.waits.clone(),
            idle_since: idle_since.clone(),
        };
        let task = self.tasks.spawn(conversation.hold(stream, self.shutdown.clone()));
        self.open.push(Open { task: task.abort_handle(), idle_since });
    }

    /// A connection could not be accepted, most likely because no descriptor was left. One is made free.
    pub async fn refused(&mut self, error: &io::Error) {
        self.open.retain(|connection| !connection.task.is_finished());
        self.close_oldest();
        self.warn("an HTTP connection was not accepted; an idle one is closed", Some(error));
        tokio::time::sleep(REFUSED_PAUSE).await;
    }

    /// Waits for answers under way, and cuts off what remains after `time`.
    pub async fn finish(self, time: Duration) {
        self.tasks.close();
        if tokio::time::timeout(time, self.tasks.wait()).await.is_err() {
            tracing::warn!("an HTTP client did not finish its request; its connection is cut");
        }
        self.open.iter().for_each(|connection| connection.task.abort());
    }

    fn close_oldest(&mut self) {
        let idle_since = |(_, connection): &(usize, &Open)| connection.idle_since.load(Ordering::Relaxed);
        if let Some((oldest, _)) = self.open.iter().enumerate().min_by_key(idle_since) {
            self.open.swap_remove(oldest).task.abort();
        }
    }

    fn warn(&mut self, what: &'static str, error: Option<&io::Error>) {
        if self.warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            self.warned = Some(Instant::now());
            tracing::warn!(limit = self.limit, error = error.map(tracing::field::display), "{what}");
        }
    }
}

/// What is said on one connection.
struct Conversation {
    router: TowerToHyperService<Router>,
    peer: SocketAddr,
    waits: Arc<AtomicU64>,
    idle_since: Arc<AtomicU64>,
}

impl Conversation {
    /// Answers requests until the client ends it, says nothing for too long, or `shutdown`.
    async fn hold(self, stream: TcpStream, shutdown: CancellationToken) {
        let service = service_fn(|request| self.answer(request));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(HEAD_BYTES);
        let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
        // What went wrong on a connection is for its client to know.
        tokio::select! {
            _ = connection.as_mut() => return,
            () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }

    async fn answer(&self, mut request: Request<Incoming>) -> Result<Response, Infallible> {
        self.idle_since.store(ANSWERING, Ordering::Relaxed);
        request.extensions_mut().insert(ConnectInfo(self.peer));
        let answer = tokio::time::timeout(PATIENCE, self.router.call(request)).await;
        self.idle_since.store(self.waits.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        answer.unwrap_or_else(|_| Ok(StatusCode::REQUEST_TIMEOUT.into_response()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn the_connection_that_was_idle_longest_goes_first() {
        let mut connections = Connections::new(Router::new(), 0, CancellationToken::new());
        for idle_since in [3, ANSWERING, 1, 2] {
            let task = tokio::spawn(pending::<()>()).abort_handle();
            connections.open.push(Open { task, idle_since: Arc::new(AtomicU64::new(idle_since)) });
        }
        for left in [[2, 3, ANSWERING].as_slice(), &[3, ANSWERING], &[ANSWERING], &[], &[]] {
            connections.close_oldest();
            let mut open: Vec<u64> =
                connections.open.iter().map(|open| open.idle_since.load(Ordering::Relaxed)).collect();
            open.sort_unstable();
            assert_eq!(open, left);
        }
    }

    #[test]
    fn connections_take_a_share_of_the_descriptors() {
        let limits = [0, 64, 256, 1024, u64::MAX].map(limit);
        assert_eq!(limits, [4, 8, 32, 64, 64]);
    }
}
