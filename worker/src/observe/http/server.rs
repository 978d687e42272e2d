//! The server's port and thread.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use super::connections::Connections;
use super::{HttpState, ObserveError, router};

/// Samples of histograms are kept one by one until they are drained into buckets. This often bounds them when
/// nobody scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How long answers under way may take once the server is told to stop: a client that never finishes its
/// request must not keep the worker from ending.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Clients that the system lets wait until they are accepted. With the 128 of the standard library, a burst of clients
/// makes the system drop a probe's first packet, and the probe tries again only after a second.
const BACKLOG: i32 = 1024;

/// Listens on `addr`; done before the model is loaded, so that a taken port is told at once.
pub fn bind(addr: SocketAddr) -> Result<TcpListener, ObserveError> {
    let refused = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ObserveError::PortInUse { addr },
        _ => ObserveError::Bind { addr, source },
    };
    let listener = TcpListener::bind(addr).map_err(refused)?;
    rustix::net::listen(&listener, BACKLOG).map_err(|error| refused(error.into()))?;
    listener.set_nonblocking(true).map_err(refused)?;
    Ok(listener)
}

/// Serves until `shutdown`, on a thread of its own; join it to know that the port is free again. `descriptors` are what
/// the process may have: the server takes a small share of them.
///
/// The thread has a runtime of its own with nothing else in it. On the worker's runtime a probe would wait
/// behind whatever turns are doing; here it waits only for the kernel to run a thread that has slept, and the
/// kernel prefers those to threads that compute. So probes answer within 2 ms while the engine keeps every
/// core busy.
pub fn serve(
    listener: TcpListener,
    state: HttpState,
    descriptors: u64,
    shutdown: CancellationToken,
) -> Result<JoinHandle<()>, ObserveError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ObserveError::Thread)?;
    let listener = {
        let _in_runtime = runtime.enter();
        tokio::net::TcpListener::from_std(listener).map_err(ObserveError::Thread)?
    };
    let upkeep = upkeep(state.metrics.clone());
    let connections = Connections::new(router(state), descriptors, shutdown.clone());
    let thread = std::thread::Builder::new().name("http".to_owned());
    let run = async move {
        let upkeep = tokio::spawn(upkeep);
        accept(listener, connections, shutdown).await;
        upkeep.abort();
    };
    thread.spawn(move || runtime.block_on(run)).map_err(ObserveError::Thread)
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

async fn upkeep(metrics: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
    }
}
