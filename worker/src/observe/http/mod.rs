//! The HTTP server for orchestrators and Prometheus.
//!
//! | path | 200 | 503 |
//! |---|---|---|
//! | `/health/live` | the engine moves, or has nothing to do | it hangs: restart the worker |
//! | `/health/startup` | the worker has started | it is still loading |
//! | `/health/ready` | give it work | starting, failing, draining, cut off from Redis, short of blocks, hung |
//! | `/metrics` | Prometheus's text format | |
//! | `/log` | GET: the log filter in force; PUT: the one to put in force | |
//!
//! Everybody who reaches the server may read. What changes the worker is for this machine: a PUT from elsewhere is refused
//! with 403, wherever the server listens. One that is no filter is refused with 400 and a sentence.
//!
//! Health bodies are `{"status": "pass" | "fail", "reasons": [{"code", "detail"}]}` (the status words are
//! those of draft-inadarei-api-health-check). That of `/health/ready` has `"degraded": [{"code", "detail"}]`
//! besides: what makes the worker slower and does not keep it from work.
//!
//! Clients cannot take from the worker what it lives on: see `connections`.

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
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};

use super::logs::LogControl;
use super::{ObserveError, QueueGauges, process};
use crate::config::LogFilter;
use crate::lifecycle::{Lifecycle, Reason};

pub use server::{bind, serve};

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

/// Longest log filter that is read.
const FILTER_BYTES: usize = 4096;

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
mod tests;
