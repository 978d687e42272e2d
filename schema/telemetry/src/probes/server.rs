//! The server's port and thread.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::connections::Connections;
use super::{ProbeState, Probed, router};
use crate::TelemetryError;
use crate::metrics::Recorded;

/// Samples of histograms are kept one by one until they are drained into buckets. This often bounds them when
/// nobody scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How long answers under way may take once the server is told to stop: a client that never finishes its
/// request must not keep the program from ending.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Clients that the system lets wait until they are accepted. With the 128 of the standard library, a burst of clients
/// makes the system drop a probe's first packet, and the probe tries again only after a second.
const BACKLOG: i32 = 1024;

/// Listens on `addr`; to be done before anything that takes long, so that a taken port is told at once.
///
/// # Errors
/// The port is taken, or the address is not this machine's.
pub fn bind(addr: SocketAddr) -> Result<TcpListener, TelemetryError> {
    let refused = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => TelemetryError::PortInUse { addr },
        _ => TelemetryError::Bind { addr, source },
    };
    let listener = TcpListener::bind(addr).map_err(refused)?;
    rustix::net::listen(&listener, BACKLOG).map_err(|error| refused(error.into()))?;
    listener.set_nonblocking(true).map_err(refused)?;
    Ok(listener)
}

/// The server, which serves until it is stopped or dropped.
#[derive(Debug)]
pub struct ProbeServer {
    shutdown: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl ProbeServer {
    /// Stops serving. Blocks until the port is free again: for a second at most.
    pub fn stop(mut self) {
        self.shutdown.cancel();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            // The panic itself was logged.
            warn!("the HTTP server's thread panicked");
        }
    }
}

impl Drop for ProbeServer {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Serves on `listener`, on a thread of its own. `descriptors` are what the process may have: the server takes a small share
/// of them.
///
/// The thread has a runtime of its own with nothing else in it. On the program's runtime a probe would wait
/// behind whatever work is doing; here it waits only for the kernel to run a thread that has slept, and the
/// kernel prefers those to threads that compute. So probes answer within 2 ms while a worker's engine keeps every
/// core busy.
///
/// # Errors
/// The system gives no thread, or no runtime for it.
pub fn serve<P: Probed>(
    listener: TcpListener,
    state: ProbeState<P>,
    descriptors: u64,
) -> Result<ProbeServer, TelemetryError> {
    let shutdown = CancellationToken::new();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(TelemetryError::Thread)?;
    let listener = {
        let _in_runtime = runtime.enter();
        tokio::net::TcpListener::from_std(listener).map_err(TelemetryError::Thread)?
    };
    let upkeep = upkeep(state.metrics.clone());
    let connections = Connections::new(router(state), descriptors, shutdown.clone());
    let thread = std::thread::Builder::new().name("http".to_owned());
    let stopped = shutdown.clone();
    let run = async move {
        let upkeep = tokio::spawn(upkeep);
        accept(listener, connections, stopped).await;
        upkeep.abort();
    };
    let thread = thread.spawn(move || runtime.block_on(run)).map_err(TelemetryError::Thread)?;
    Ok(ProbeServer { shutdown, thread: Some(thread) })
}

async fn accept(
    listener: tokio::net::TcpListener,
    mut connections: Connections,
    shutdown: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => connections.add(stream, peer),
            Err(error) => connections.refused(&error).await,
        }
        // In a burst, each client is answered before many others can take its place.
        tokio::task::yield_now().await;
    }
    drop(listener);
    connections.finish(LAST_ANSWERS).await;
}

async fn upkeep(metrics: Recorded) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
    }
}
