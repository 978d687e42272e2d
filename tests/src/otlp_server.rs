//! A real receiver of spans: OTLP over HTTP, decoded as a collector would, kept in memory.
//!
//! It runs on a thread of its own, because tests block theirs while they wait for processes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio_util::sync::CancellationToken;

use crate::PATIENCE;

/// A span as it was received. Ids are hexadecimal digits; no parent is an empty text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Received {
    /// Its trace.
    pub trace: String,
    /// Its own id.
    pub id: String,
    /// Its parent's.
    pub parent: String,
    /// What it is called.
    pub name: String,
    /// `SpanKind` by number: 1 internal, 4 producer, 5 consumer.
    pub kind: i32,
    /// Traces and spans that it links to.
    pub links: Vec<(String, String)>,
    /// Its attributes as texts.
    pub attributes: BTreeMap<String, String>,
    /// Who sent it.
    pub service: String,
    /// Whether its status is an error.
    pub is_error: bool,
    /// Unix nanoseconds.
    pub from_ns: u64,
    /// Unix nanoseconds.
    pub to_ns: u64,
}

/// A running receiver; gone when dropped.
pub struct OtlpServer {
    address: SocketAddr,
    spans: Spans,
    stop: CancellationToken,
}

type Spans = Arc<Mutex<Vec<Received>>>;

impl OtlpServer {
    /// Starts one on a free port.
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a local port is free");
        listener.set_nonblocking(true).expect("sockets can be told");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (spans, stop) = (Spans::default(), CancellationToken::new());
        let router = Router::new().route("/v1/traces", post(receive)).with_state(spans.clone());
        let stopped = stop.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be made").block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("it is not blocking");
                let server = axum::serve(listener, router);
                tokio::select! {
                    served = server => served.expect("the receiver serves"),
                    () = stopped.cancelled() => {}
                }
            });
        });
        Self { address, spans, stop }
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` is set to.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What was received so far.
    pub fn spans(&self) -> Vec<Received> {
        lock(&self.spans).clone()
    }

    /// Waits until what was received `is` as it should be. Panics with what there is where it never gets there.
    pub async fn until(&self, is: impl Fn(&[Received]) -> bool) -> Vec<Received> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let spans = self.spans();
            if is(&spans) {
                return spans;
            }
            assert!(Instant::now() < deadline, "not the spans that are waited for: {spans:#?}");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

impl Drop for OtlpServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn lock(spans: &Spans) -> MutexGuard<'_, Vec<Received>> {
    spans.lock().expect("nobody panics while they add spans")
}

async fn receive(State(spans): State<Spans>, headers: HeaderMap, body: Bytes) -> Response {
    let protobuf = "application/x-protobuf";
    if headers.get(header::CONTENT_TYPE).is_none_or(|kind| kind != protobuf) {
        return StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response();
    }
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    lock(&spans).extend(read(request));
    let answer = ExportTraceServiceResponse::default().encode_to_vec();
    ([(header::CONTENT_TYPE, protobuf)], answer).into_response()
}

fn read(request: ExportTraceServiceRequest) -> Vec<Received> {
    let mut received = Vec::new();
    for of_resource in request.resource_spans {
        let resource = of_resource.resource.unwrap_or_default();
        let service = texts(resource.attributes).remove("service.name").unwrap_or_default();
        for span in of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans) {
            received.push(read_span(span, &service));
        }
    }
    received
}

fn read_span(span: Span, service: &str) -> Received {
    Received {
        trace: digits(&span.trace_id),
        id: digits(&span.span_id),
        parent: digits(&span.parent_span_id),
        kind: span.kind,
        links: span.links.iter().map(|link| (digits(&link.trace_id), digits(&link.span_id))).collect(),
        attributes: texts(span.attributes),
        service: service.to_owned(),
        // STATUS_CODE_ERROR
        is_error: span.status.is_some_and(|status| status.code == 2),
        from_ns: span.start_time_unix_nano,
        to_ns: span.end_time_unix_nano,
        name: span.name,
    }
}

fn digits(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(is)) => is.to_string(),
        other => format!("{other:?}"),
    };
    attributes.into_iter().map(|attribute| (attribute.key, text(attribute.value))).collect()
}
