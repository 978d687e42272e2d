//! The HTTP server for orchestrators and Prometheus.
//!
//! | path | 200 | 503 |
//! |---|---|---|
//! | `/health/live` | the engine moves, or has nothing to do | it hangs: restart the worker |
//! | `/health/startup` | the worker has started | it is still loading |
//! | `/health/ready` | give it work | starting, draining, cut off from Redis, short of blocks, hung |
//! | `/metrics` | Prometheus's text format | |
//! | `/log` | GET: the log filter in force; PUT: the one to put in force | |
//!
//! Everybody who reaches the server may read. What changes the worker is for this machine: a PUT from elsewhere is refused
//! with 403, wherever the server listens. One that is no filter is refused with 400 and a sentence.
//!
//! Health bodies are `{"status": "pass" | "fail", "reasons": [{"code", "detail"}]}` (the status words are
//! those of draft-inadarei-api-health-check). That of `/health/ready` has `"degraded": [{"code", "detail"}]`
//! besides: what makes the worker slower and does not keep it from work.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::logs::LogControl;
use super::{ObserveError, QueueGauges, process};
use crate::config::LogFilter;
use crate::lifecycle::{Lifecycle, Reason};

/// What the server tells about.
#[derive(Clone)]
pub struct HttpState {
    /// Phase, readiness, liveness.
    pub lifecycle: Arc<Lifecycle>,
    /// The recorder's metrics.
    pub metrics: PrometheusHandle,
    /// The queue's metrics.
    pub queue: Arc<QueueGauges>,
    /// The log filter.
    pub logs: LogControl,
}

/// Samples of histograms are kept one by one until they are drained into buckets. This often bounds them when
/// nobody scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Longest log filter that is read.
const FILTER_BYTES: usize = 4096;

/// How long answers under way may take once the server is told to stop: a client that never finishes its
/// request must not keep the worker from ending.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Listens on `addr`; done before the model is loaded, so that a taken port is told at once.
pub fn bind(addr: SocketAddr) -> Result<TcpListener, ObserveError> {
    let refused = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ObserveError::PortInUse { addr },
        _ => ObserveError::Bind { addr, source },
    };
    let listener = TcpListener::bind(addr).map_err(refused)?;
    listener.set_nonblocking(true).map_err(refused)?;
    Ok(listener)
}

/// Serves until `shutdown`, on a thread of its own; join it to know that the port is free again.
///
/// The thread has a runtime of its own with nothing else in it. On the worker's runtime a probe would wait
/// behind whatever turns are doing; here it waits only for the kernel to run a thread that has slept, and the
/// kernel prefers those to threads that compute. So probes answer within 2 ms while the engine keeps every
/// core busy.
pub fn serve(
    listener: TcpListener,
    state: HttpState,
    shutdown: CancellationToken,
) -> Result<JoinHandle<()>, ObserveError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ObserveError::Thread)?;
    let listener = {
        let _in_runtime = runtime.enter();
        tokio::net::TcpListener::from_std(listener).map_err(ObserveError::Thread)?
    };
    let thread = std::thread::Builder::new().name("http".to_owned());
    thread.spawn(move || runtime.block_on(run(listener, state, shutdown))).map_err(ObserveError::Thread)
}

async fn run(listener: tokio::net::TcpListener, state: HttpState, shutdown: CancellationToken) {
    let upkeep = tokio::spawn(upkeep(state.metrics.clone()));
    let stop = shutdown.clone().cancelled_owned();
    let service = router(state).into_make_service_with_connect_info::<SocketAddr>();
    let server = axum::serve(listener, service).with_graceful_shutdown(stop);
    let cut_off = async {
        shutdown.cancelled().await;
        tokio::time::sleep(LAST_ANSWERS).await;
    };
    tokio::select! {
        result = server => if let Err(error) = result {
            tracing::error!(%error, "the HTTP server failed; probes will fail and restart the worker");
        },
        () = cut_off => tracing::warn!("an HTTP client did not finish its request; its connection is cut"),
    }
    upkeep.abort();
}

async fn upkeep(metrics: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
    }
}

fn router(state: HttpState) -> Router {
    Router::new()
        .route("/health/live", get(live))
        .route("/health/startup", get(startup))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/log", get(log).put(set_log).layer(DefaultBodyLimit::max(FILTER_BYTES)))
        .fallback(not_found)
        .with_state(state)
}

async fn live(State(state): State<HttpState>) -> Response {
    health(state.lifecycle.live(Instant::now()).err().into_iter().collect())
}

async fn startup(State(state): State<HttpState>) -> Response {
    health(state.lifecycle.started().err().into_iter().collect())
}

async fn ready(State(state): State<HttpState>) -> Response {
    let reasons = state.lifecycle.ready(Instant::now()).err().unwrap_or_default();
    answer(&reasons, json!({ "reasons": reasons, "degraded": state.lifecycle.degraded() }))
}

async fn metrics(State(state): State<HttpState>) -> Response {
    process::collect();
    let now = Instant::now();
    let text =
        state.queue.render(now) + &super::state::render(&state.lifecycle, now) + &state.metrics.render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn log(State(state): State<HttpState>) -> String {
    format!("{}\n", state.logs.filter().as_str())
}

async fn set_log(
    State(state): State<HttpState>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    text: String,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        let error = "the log filter is changed from the worker's own machine only; ask there";
        return (StatusCode::FORBIDDEN, Json(json!({ "error": error }))).into_response();
    }
    let refused = |error: String| (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response();
    let filter = match text.trim() {
        "" => {
            return refused("the body is empty; send a log filter, as in info,turnmill_worker=debug".into());
        }
        text => match text.parse::<LogFilter>() {
            Ok(filter) => filter,
            Err(error) => return refused(error.to_string()),
        },
    };
    let before = state.logs.filter();
    match state.logs.set(filter.clone()) {
        Ok(()) => {
            tracing::info!(
                filter = filter.as_str(),
                before = before.as_str(),
                "the log filter is another one"
            );
            log(State(state)).await.into_response()
        }
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({ "error": error.to_string() }))).into_response()
        }
    }
}

async fn not_found(uri: Uri) -> Response {
    let known = ["/health/live", "/health/startup", "/health/ready", "/metrics", "/log"];
    let error = format!("there is no {}; there are {}", uri.path(), known.join(", "));
    (StatusCode::NOT_FOUND, Json(json!({ "error": error }))).into_response()
}

fn health(reasons: Vec<Reason>) -> Response {
    answer(&reasons, json!({ "reasons": reasons }))
}

/// `body` with its status, which depends on `reasons` alone.
fn answer(reasons: &[Reason], mut body: Value) -> Response {
    let (code, status) = match reasons.is_empty() {
        true => (StatusCode::OK, "pass"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "fail"),
    };
    // A cached answer would be about the past.
    let fresh = [(header::CACHE_CONTROL, "no-store")];
    body["status"] = status.into();
    (code, fresh, Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::super::logs;
    use super::super::metrics::tests::recorded;
    use super::*;
    use crate::broker::{PriorityCounts, QueueCounts};
    use crate::config::LogFormat;
    use crate::lifecycle::{HeadroomLimits, Phase};
    use crate::observe::metrics::turn_claimed;

    const STALL: Duration = Duration::from_secs(30);

    /// Longer ago than an engine may be silent.
    fn long_ago() -> Instant {
        Instant::now().checked_sub(2 * STALL).expect("the machine has been up for a minute")
    }

    struct Server {
        addr: SocketAddr,
        state: HttpState,
        /// Keeps the log filter changeable; nothing is written with it.
        _log: Box<dyn tracing::Subscriber + Send + Sync>,
        shutdown: CancellationToken,
        thread: Option<JoinHandle<()>>,
    }

    impl Server {
        fn start() -> Self {
            let limits = HeadroomLimits { low: 0.05, high: 0.10 };
            let info = "info".parse().expect("a filter");
            let (log, logs) = logs::subscriber(LogFormat::Json, &info, false, std::io::sink);
            let state = HttpState {
                lifecycle: Arc::new(Lifecycle::new(limits, STALL, long_ago())),
                metrics: recorded(|| turn_claimed(None)),
                queue: Arc::new(QueueGauges::new(Duration::from_secs(3600))),
                logs,
            };
            let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
            let addr = listener.local_addr().expect("it is bound");
            let shutdown = CancellationToken::new();
            let thread = serve(listener, state.clone(), shutdown.clone()).expect("it starts");
            Self { addr, state, _log: log, shutdown, thread: Some(thread) }
        }

        fn connect(&self) -> TcpStream {
            let stream = TcpStream::connect(self.addr).expect("the server listens");
            stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a valid timeout");
            stream
        }

        /// Status, head and body of the answer.
        fn get(&self, path: &str) -> (u16, String, String) {
            self.ask("GET", path, "")
        }

        fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String, String) {
            let mut stream = self.connect();
            let length = body.len();
            let head = format!("{method} {path} HTTP/1.1\r\nhost: worker\r\ncontent-length: {length}");
            write!(stream, "{head}\r\nconnection: close\r\n\r\n{body}").expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
            let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
            let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
            (status, head.to_lowercase(), body.to_owned())
        }

        /// Status, status word and codes of the reasons.
        fn health(&self, which: &str) -> (u16, String, Vec<String>) {
            let (status, head, body) = self.get(&format!("/health/{which}"));
            assert!(head.contains("content-type: application/json"), "{head}");
            let body: Value = serde_json::from_str(&body).expect("JSON");
            let text = |value: &Value| value.as_str().expect("text").to_owned();
            let reasons = body["reasons"].as_array().expect("a list");
            assert!(reasons.iter().all(|reason| !text(&reason["detail"]).is_empty()));
            (status, text(&body["status"]), reasons.iter().map(|reason| text(&reason["code"])).collect())
        }

        fn stop(&mut self) {
            self.shutdown.cancel();
            if let Some(thread) = self.thread.take() {
                thread.join().expect("the server does not panic");
            }
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.shutdown.cancel();
        }
    }

    fn pass() -> (u16, String, Vec<String>) {
        (200, "pass".to_owned(), Vec::new())
    }

    fn fail(codes: &[&str]) -> (u16, String, Vec<String>) {
        (503, "fail".to_owned(), codes.iter().map(|code| code.to_string()).collect())
    }

    #[test]
    fn health_follows_the_workers_life() {
        let server = Server::start();
        let lifecycle = &server.state.lifecycle;
        assert_eq!(server.health("live"), pass());
        assert_eq!(server.health("startup"), fail(&["starting"]));
        assert_eq!(server.health("ready"), fail(&["starting", "redis_disconnected"]));

        lifecycle.advance(Phase::Ready);
        lifecycle.set_redis_connected(true, Instant::now());
        assert_eq!(server.health("startup"), pass());
        assert_eq!(server.health("ready"), pass());
        lifecycle.set_headroom(0.01);
        assert_eq!(server.health("ready"), fail(&["pool_headroom_low"]));
        lifecycle.set_headroom(0.5);

        lifecycle.advance(Phase::Draining);
        assert_eq!(server.health("ready"), fail(&["draining"]));
        assert_eq!(server.health("startup"), pass());
        assert_eq!(server.health("live"), pass());
    }

    #[test]
    fn a_worker_without_its_store_is_ready_and_says_what_it_lacks() {
        let server = Server::start();
        let lifecycle = &server.state.lifecycle;
        lifecycle.advance(Phase::Ready);
        lifecycle.set_redis_connected(true, Instant::now());
        let degraded = || {
            let body: Value = serde_json::from_str(&server.get("/health/ready").2).expect("JSON");
            body["degraded"].clone()
        };
        assert_eq!(degraded(), json!([]));
        lifecycle.set_store_trouble(Some("no route".into()));
        assert_eq!(server.health("ready"), pass());
        assert_eq!(degraded(), json!([{ "code": "store_unreachable", "detail": "no route" }]));
    }

    #[test]
    fn a_hung_engine_fails_liveness() {
        let server = Server::start();
        server.state.lifecycle.engine().set_busy(true, long_ago());
        assert_eq!(server.health("live"), fail(&["engine_stalled"]));
        server.state.lifecycle.engine().step_done(Instant::now());
        assert_eq!(server.health("live"), pass());
    }

    #[test]
    fn metrics_have_both_sources_and_the_right_type() {
        let server = Server::start();
        let (status, head, body) = server.get("/metrics");
        assert_eq!(status, 200);
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        assert!(body.contains("turnmill_turns_claimed_total 1\n"), "{body}");
        assert!(body.contains("turnmill_queue_source_up 0\n") && !body.contains("runnable"), "{body}");
        let interactive = PriorityCounts { runnable: 4, ..PriorityCounts::default() };
        let priorities = [interactive, PriorityCounts::default()];
        server.state.queue.set(QueueCounts { priorities, ..QueueCounts::default() }, Instant::now());
        assert!(server.get("/metrics").2.contains("turnmill_queue_runnable_agents 4\n"));
    }

    #[test]
    fn the_log_filter_is_read_and_changed() {
        let server = Server::start();
        assert_eq!(server.get("/log").2, "info\n");
        let (status, _, body) = server.ask("PUT", "/log", "warn,turnmill_worker=debug\n");
        assert_eq!((status, body.as_str()), (200, "warn,turnmill_worker=debug\n"));
        assert_eq!(server.get("/log").2, "warn,turnmill_worker=debug\n");
        for (filter, status) in [("info,a=loud", 400), ("\n", 400), (&"a,".repeat(FILTER_BYTES)[..], 413)] {
            assert_eq!(server.ask("PUT", "/log", filter).0, status);
        }
        let body: Value = serde_json::from_str(&server.ask("PUT", "/log", "info,a=loud").2).expect("JSON");
        assert!(body["error"].as_str().expect("text").contains("\"a=loud\""), "{body}");
        assert_eq!(server.ask("POST", "/log", "info").0, 405);
        assert_eq!(server.get("/log").2, "warn,turnmill_worker=debug\n", "a refused one changes nothing");
    }

    #[tokio::test]
    async fn only_this_machine_changes_the_log_filter() {
        let server = Server::start();
        for (peer, status) in [("192.0.2.1:9", 403), ("[2001:db8::1]:9", 403), ("[::ffff:127.0.0.1]:9", 200)]
        {
            let peer = ConnectInfo(peer.parse().expect("an address"));
            let answer = set_log(State(server.state.clone()), peer, "off".into()).await;
            assert_eq!(answer.status().as_u16(), status);
        }
    }

    #[test]
    fn other_paths_get_a_404_that_names_the_known_ones() {
        let (status, _, body) = Server::start().get("/healthz?x=1");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(status, 404);
        let error = body["error"].as_str().expect("text");
        assert!(error.starts_with("there is no /healthz; ") && error.contains("/health/ready"), "{error}");
    }

    #[test]
    fn a_port_in_use_is_told_by_its_address() {
        let server = Server::start();
        let refused = bind(server.addr).expect_err("in use");
        assert!(matches!(refused, ObserveError::PortInUse { addr } if addr == server.addr), "{refused}");
        // TEST-NET-1: no machine has it.
        let foreign = SocketAddr::from(([192, 0, 2, 1], 9470));
        assert!(matches!(bind(foreign), Err(ObserveError::Bind { addr, .. }) if addr == foreign));
    }

    #[test]
    fn stopping_frees_the_port_even_from_a_client_that_says_nothing_more() {
        let mut server = Server::start();
        assert_eq!(server.health("live"), pass());
        let mut half_asked = server.connect();
        half_asked.write_all(b"GET /health/live HTTP/1.1\r\n").expect("sent");
        server.stop();
        bind(server.addr).expect("the port is free again");
    }

    #[tokio::test]
    async fn probes_do_not_need_the_workers_runtime() {
        // The only thread of this runtime waits in `health`; a server on it would never answer.
        assert_eq!(Server::start().health("live"), pass());
    }
}
