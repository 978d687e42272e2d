//! The HTTP server for orchestrators and Prometheus.
//!
//! | path | 200 | 503 |
//! |---|---|---|
//! | `/health/live` | the program moves, or has nothing to do | it hangs: restart it |
//! | `/health/startup` | it has started | it is still starting |
//! | `/health/ready` | give it work | it cannot take any now, with every reason |
//! | `/metrics` | Prometheus's text format | |
//! | `/log` | GET: the log filter in force; PUT: the one to put in force | |
//!
//! Everybody who reaches the server may read. What changes the program is for this machine: a PUT from elsewhere is refused
//! with 403, wherever the server listens. One that is no filter is refused with 400 and a sentence.
//!
//! Health bodies are `{"status": "pass" | "fail", "reasons": [{"code", "detail"}]}` (the status words come
//! from draft-inadarei-api-health-check). The body of `/health/ready` has `"degraded": [{"code", "detail"}]`
//! besides: what makes the program slower and does not keep it from work.
//!
//! What the answers are is the program's to say ([`Probed`]). Clients cannot take from the program what it lives on: see
//! `connections`.

mod connections;
mod server;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use serde_json::{Value, json};

use crate::Program;
use crate::logs::{LogControl, LogFilter};
use crate::metrics::{Recorded, collect_process};

pub use server::{ProbeServer, bind, serve};

/// One reason for an answer, for programs and for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason<C> {
    /// For programs: one of the closed list `C`.
    pub code: C,
    /// For people: one sentence, with its numbers.
    pub detail: String,
}

impl<C> Reason<C> {
    /// A reason.
    pub fn new(code: C, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }
}

/// What a program answers to probes and scrapes.
///
/// Invariant: an answer waits for nobody. What it is made of lies at hand.
pub trait Probed: Send + Sync + 'static {
    /// Why it does not live, has not started, or is not ready.
    type Code: Serialize;
    /// What makes it slower.
    type Degraded: Serialize;

    /// Whether it moves, or why only a restart helps.
    fn live(&self, now: Instant) -> Result<(), Reason<Self::Code>>;

    /// Whether it has started; what it did since does not matter.
    fn started(&self) -> Result<(), Reason<Self::Code>>;

    /// Whether it should be given work, or every reason why not.
    fn ready(&self, now: Instant) -> Result<(), Vec<Reason<Self::Code>>>;

    /// Everything that slows it down and does not keep it from work.
    fn degraded(&self) -> Vec<Reason<Self::Degraded>>;

    /// The metrics that are read at a scrape, in Prometheus's text format; the recorder's metrics follow them.
    fn scrape(&self, now: Instant) -> String;
}

/// What the server tells about.
pub struct ProbeState<P> {
    /// Who is probed.
    pub program: Program,
    /// Its answers.
    pub answers: Arc<P>,
    /// The recorder's metrics.
    pub metrics: Recorded,
    /// The log filter.
    pub logs: LogControl,
}

// Not derived: that would ask for answers that can be cloned.
impl<P> Clone for ProbeState<P> {
    fn clone(&self) -> Self {
        let (answers, metrics, logs) = (self.answers.clone(), self.metrics.clone(), self.logs.clone());
        Self { program: self.program, answers, metrics, logs }
    }
}

/// Longest log filter that is read.
const FILTER_BYTES: usize = 4096;

fn router<P: Probed>(state: ProbeState<P>) -> Router {
    Router::new()
        .route("/health/live", get(live::<P>))
        .route("/health/startup", get(startup::<P>))
        .route("/health/ready", get(ready::<P>))
        .route("/metrics", get(metrics::<P>))
        .route("/log", get(log::<P>).put(set_log::<P>).layer(DefaultBodyLimit::max(FILTER_BYTES)))
        .fallback(not_found)
        .with_state(state)
}

async fn live<P: Probed>(State(state): State<ProbeState<P>>) -> Response {
    health(state.answers.live(Instant::now()).err().into_iter().collect())
}

async fn startup<P: Probed>(State(state): State<ProbeState<P>>) -> Response {
    health(state.answers.started().err().into_iter().collect())
}

async fn ready<P: Probed>(State(state): State<ProbeState<P>>) -> Response {
    let reasons = state.answers.ready(Instant::now()).err().unwrap_or_default();
    answer(&reasons, json!({ "reasons": reasons, "degraded": state.answers.degraded() }))
}

async fn metrics<P: Probed>(State(state): State<ProbeState<P>>) -> Response {
    collect_process();
    let text = state.answers.scrape(Instant::now()) + &state.metrics.render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn log<P: Probed>(State(state): State<ProbeState<P>>) -> String {
    format!("{}\n", state.logs.filter().as_str())
}

async fn set_log<P: Probed>(
    State(state): State<ProbeState<P>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    text: String,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        let noun = state.program.noun;
        let error = format!("the log filter is changed from the {noun}'s own machine only; ask there");
        return (StatusCode::FORBIDDEN, Json(json!({ "error": error }))).into_response();
    }
    let refused = |error: String| (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response();
    let filter = match text.trim() {
        "" => {
            return refused("the body is empty; send a log filter, as in info,turnmill=debug".into());
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

fn health(reasons: Vec<Reason<impl Serialize>>) -> Response {
    answer(&reasons, json!({ "reasons": reasons }))
}

/// `body` with its status, which depends on `reasons` alone.
fn answer<C>(reasons: &[Reason<C>], mut body: Value) -> Response {
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
mod tests;
